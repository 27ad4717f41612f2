"""Published results to stand beside one's own, by data set.

The numbers are as printed in the sources; `published_rows` brings them to the units of our metrics
(fractions, not percent). A mean over several runs is said to be one. Where ours and a paper's
definition differ, the metric's name tells: MTSAM's depth error is a mean over batches, so it stands
under `per_image`; what PASCAL-Context tables call the normals' rmse is the mean angle; NYUD-MT's
edges are matched within 0.011 of the diagonal, ours everywhere within 0.0075.
"""

import dataclasses
from collections.abc import Mapping

PERCENT = 0.01


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """One method's results.

    Attributes:
      tasks: of the table's models.
      metrics: by `<task>/<metric>`, in our units.
      delta_p, delta_m: relative improvement over the same table's single-task row in %, if printed.
      parameters: that train, if printed.
    """

    method: str
    source: str
    tasks: frozenset[str]
    metrics: Mapping[str, float]
    delta_p: float | None = None
    delta_m: float | None = None
    parameters: float | None = None


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table as printed: what each column is, its unit in ours, and lines of method and numbers.

    A column is a metric's name, or `delta_p`, `delta_m`, `parameters`; "-" stands for not printed.
    `classes` is how many `semantic` has there.
    """

    source: str
    classes: int
    columns: tuple[tuple[str, float], ...]
    lines: str

    def rows(self) -> list[PublishedRow]:
        tasks = frozenset(name.split("/")[0] for name, _ in self.columns if "/" in name)
        rows = []
        for line in self.lines.strip().splitlines():
            method, *numbers = (cell.strip() for cell in line.split("|"))
            values = {
                name: float(number) * unit
                for (name, unit), number in zip(self.columns, numbers, strict=True)
                if number != "-"
            }
            beside = {name: values.pop(name, None) for name in ("delta_p", "delta_m", "parameters")}
            rows.append(PublishedRow(method, self.source, tasks, values, **beside))
        return rows


# Of five tasks, as InvPT's tables have them.
_PASCAL = (
    ("semantic/miou", PERCENT),
    ("human_parts/miou", PERCENT),
    ("saliency/invpt/max_f", PERCENT),
    ("normals/pooled/mean", 1),
    ("edges/ods_f", PERCENT),
)
_NYUD_MT = (
    ("semantic/miou", PERCENT),
    ("depth/pooled/rmse", 1),
    ("normals/pooled/mean", 1),
    ("edges/within_0.011/ods_f", PERCENT),
)
_TABLES = {
    "nyuv2_mtan": (
        _Table(
            "DB-MTL paper, table 1: ResNet-50 DeepLabV3+, mean of 3 runs",
            13,
            (
                ("semantic/miou", PERCENT),
                ("semantic/pixel_acc", PERCENT),
                ("depth/pooled/abs_err", 1),
                ("depth/pooled/rel_err", 1),
                ("normals/pooled/mean", 1),
                ("normals/pooled/median", 1),
                ("normals/pooled/within_11.25", PERCENT),
                ("normals/pooled/within_22.5", PERCENT),
                ("normals/pooled/within_30", PERCENT),
                ("delta_p", 1),
            ),
            """
            STL      | 53.50 | 75.39 | .3926 | .1605 | 21.99 | 15.16 | 39.04 | 65.00 | 75.16 | 0
            EW       | 53.93 | 75.53 | .3825 | .1577 | 23.57 | 17.01 | 35.04 | 60.99 | 72.05 | -1.78
            UW       | 54.29 | 75.64 | .3815 | .1583 | 23.48 | 16.92 | 35.26 | 61.17 | 72.21 | -1.52
            PCGrad   | 53.94 | 75.62 | .3804 | .1578 | 23.52 | 16.93 | 35.19 | 61.17 | 72.19 | -1.57
            CAGrad   | 53.97 | 75.54 | .3885 | .1588 | 22.47 | 15.71 | 37.77 | 63.82 | 74.30 | -0.27
            Nash-MTL | 53.41 | 74.95 | .3867 | .1612 | 22.57 | 15.94 | 37.30 | 63.40 | 74.09 | -1.01
            DB-MTL   | 53.92 | 75.60 | .3768 | .1557 | 21.97 | 15.37 | 38.43 | 64.81 | 75.24 | 1.15
            """,
        ),
        _Table(
            "MTSAM (ICLR 2025), second hand: SAM ViT-L, one run",
            13,
            (("semantic/miou", PERCENT), ("depth/per_image/abs_err", 1)),
            """
            ToRA     | 52.1 | 0.282
            LoRA-STL | 51.8 | 0.283
            """,
        ),
    ),
    "cityscapes_mtan": (
        _Table(
            "DB-MTL paper, table 2: mean of 3 runs",
            7,
            (
                ("semantic/miou", PERCENT),
                ("semantic/pixel_acc", PERCENT),
                ("disparity/pooled/abs_err", 1),
                ("disparity/pooled/rel_err", 1),
                ("delta_p", 1),
            ),
            """
            STL    | 69.06 | 91.54 | .01282 | 43.53 | 0
            EW     | 68.93 | 91.58 | .01315 | 45.90 | -2.05
            DB-MTL | 69.17 | 91.56 | .01280 | 43.46 | 0.20
            """,
        ),
    ),
    "pascal_context": (
        _Table(
            "published, parameter-efficient, Swin-T, four tasks",
            21,
            (
                ("semantic/miou", PERCENT),
                ("human_parts/miou", PERCENT),
                ("saliency/miou_max", PERCENT),
                ("normals/pooled/mean", 1),
                ("delta_m", 1),
                ("parameters", 1e6),
            ),
            """
            STL                   | 67.21 | 61.93 | 62.35 | 17.97 | 0    | 112.6
            MTLoRA r64            | 67.90 | 59.84 | 65.40 | 16.60 | 2.55 | 8.34
            MTLoRA, outside rerun | -     | -     | -     | -     | 1.77 | -
            TADFormer             | 70.82 | 60.45 | 65.88 | 16.48 | 4.24 | 7.38
            Free Sinewich r64     | 71.25 | 61.38 | 66.24 | 16.14 | 5.39 | 6.53
            Free Sinewich r32     | 71.02 | 60.75 | 65.94 | 16.44 | 4.51 | 4.04
            """,
        ),
        _Table(
            "published, full fine-tuning, ViT-L, five tasks",
            21,
            _PASCAL,
            """
            InvPT          | 79.03 | 67.61 | 84.81 | 14.15 | 73.00
            TaskPrompter-L | 80.89 | 68.89 | 84.83 | 13.72 | 73.50
            """,
        ),
        _Table(
            "github.com/prismformore/Multi-Task-Transformer, READMEs: trained again by the authors",
            21,
            _PASCAL,
            """
            InvPT, again        | 79.91 | 68.54 | 84.38 | 13.90 | 72.90
            TaskPrompter, again | 80.79 | 68.81 | 84.26 | 13.58 | 73.80
            """,
        ),
        # Its saliency is left out: nothing says which metric it is.
        _Table(
            "github.com/innovator-zero/MTDP_Lib, README: five tasks, one decoder for all",
            21,
            (
                ("semantic/miou", PERCENT),
                ("human_parts/miou", PERCENT),
                ("normals/pooled/mean", 1),
                ("edges/ods_f", PERCENT),
            ),
            """
            PGT Swin-T | 67.58 | 62.58 | 13.95 | 73.93
            PGT Swin-S | 73.66 | 67.35 | 13.71 | 75.63
            TIT Swin-T | 70.04 | 62.68 | 14.43 | 73.91
            """,
        ),
    ),
    "nyud_mt": (
        _Table(
            "github.com/innovator-zero/MTDP_Lib, README: one decoder for all tasks",
            40,
            _NYUD_MT,
            """
            PGT Swin-T | 41.61 | 0.5900 | 20.06 | 77.05
            PGT Swin-S | 46.43 | 0.5468 | 19.24 | 78.04
            PGT Swin-B | 47.42 | 0.5502 | 19.12 | 78.28
            TIT Swin-T | 41.36 | 0.5925 | 19.68 | 77.30
            """,
        ),
        _Table(
            "github.com/prismformore/Multi-Task-Transformer, READMEs: ViT-L; again: trained by the "
            "authors once more",
            40,
            _NYUD_MT,
            """
            InvPT               | 53.56 | 0.5183 | 19.04 | 78.10
            InvPT, again        | 53.65 | 0.5083 | 18.68 | 77.80
            TaskPrompter, again | 55.90 | 0.5062 | 18.58 | 77.7
            """,
        ),
        _Table(
            "github.com/UAV-Centre-ITC/M2H, README, where neither classes nor means are said",
            40,
            _NYUD_MT,
            """
            MTMamba++ | 57.01 | 0.4818 | 18.27 | 79.40
            SwinMTL   | 58.14 | 0.5179 | -     | -
            M2H-small | 58.05 | 0.4396 | 14.04 | 74.44
            M2H       | 61.54 | 0.4196 | 13.81 | 85.27
            """,
        ),
    ),
}


def published_rows(dataset: str, classes: int | None = None) -> list[PublishedRow]:
    """What is published on a data set; nothing for most.

    Args:
      dataset: `config.data.name`, or the description that comes along with a folder's layout.
      classes: how many `semantic` has: what is published of another number is left out.
    """
    tables = _TABLES.get(dataset, ())
    return [row for table in tables if classes in (None, table.classes) for row in table.rows()]
