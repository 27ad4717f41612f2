"""The report on workdirs made by hand, against numbers computed by hand."""

import csv
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from talora_jax import config as config_lib
from talora_jax.errors import UserError
from talora_jax.experiments.finished_run import read_run, settings
from talora_jax.experiments.improvement import COMPARED, delta_m, delta_p
from talora_jax.experiments.published import _TABLES, published_rows
from talora_jax.experiments.report import main, markdown, plot, report
from talora_jax.experiments.tables import make_tables
from talora_jax.tasks import TASKS

BOTH = ("semantic", "depth")


def metrics(miou=None, pixel_acc=None, abs_err=None, rel_err=None, rmse=None):
    values = {
        "semantic/miou": miou,
        "semantic/pixel_acc": pixel_acc,
        "depth/pooled/abs_err": abs_err,
        "depth/pooled/rel_err": rel_err,
        "depth/pooled/rmse": rmse,
    }
    return {name: value for name, value in values.items() if value is not None}


def write(workdir, tasks, values, *, step=1000, parameters=100, times=(0.0, 0.2, 0.4, 0.3), **set_):
    """A workdir as a run leaves it; fields of the config by `adapter__kind="none"`."""
    config = config_lib.default()
    config.data.name = "nyuv2_mtan"
    config.tasks = tasks
    for name, value in set_.items():
        *parents, last = name.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    counted = {} if parameters is None else {"trainable_parameters": parameters}
    rows = [
        {"step": 0, "split": "model", **counted, "parameters": 1000},
        {"step": 0, "split": "val_constant", "semantic/miou": 0.01},
        *({"step": i, "split": "train", "step_time": t} for i, t in enumerate(times, 1)),
        {"step": step, "split": "val", **values},
    ]
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workdir


@pytest.fixture
def singles(tmp_path):
    """Single-task runs of two seeds; the means are 0.5, 0.8 and 0.5, 0.2, 1.0."""
    full = {"adapter__kind": "full"}
    return [
        write(tmp_path / "s0", ("semantic",), metrics(0.4, 0.8), parameters=60, **full),
        write(tmp_path / "s1", ("semantic",), metrics(0.6, 0.8), parameters=60, seed=1, **full),
        write(tmp_path / "d0", ("depth",), metrics(None, None, 0.4, 0.2, 0.9), **full),
        write(tmp_path / "d1", ("depth",), metrics(None, None, 0.6, 0.2, 1.1), seed=1, **full),
    ]


@pytest.fixture
def joint(tmp_path):
    """Δp: ((10 + 5) / 2 + (20 - 25) / 2) / 2 = 2.5 and ((-10 + 0) / 2 + (0 + 10) / 2) / 2 = 0.

    Δm: (10 + 10) / 2 = 10 and (-10 - 20) / 2 = -15.
    """
    return [
        write(tmp_path / "j0", BOTH, metrics(0.55, 0.84, 0.4, 0.25, 0.9)),
        write(tmp_path / "j1", BOTH, metrics(0.45, 0.80, 0.5, 0.18, 1.2), seed=1),
    ]


def measured(tables):
    return {row.method: row for row in tables[0].rows if row.source == "measured"}


def cells(line):
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def test_relative_improvements_and_deviations_are_those_computed_by_hand(singles, joint, tmp_path):
    tables, left_out = report([*singles, *joint], tmp_path / "out")
    assert left_out == [] and tables[0].notes == ()
    rows = measured(tables)
    assert list(rows) == ["single-task full", "talora"]
    talora, single = rows["talora"].values, rows["single-task full"].values
    assert talora["Δp (%)"] == pytest.approx([2.5, 0], abs=1e-9)
    assert talora["Δm (%)"] == pytest.approx([10, -15], abs=1e-9)
    assert sum(single["Δp (%)"]) == pytest.approx(0, abs=1e-9)
    # Of one run per task added up: parameters 60 + 100, and the median of 0.2, 0.3, 0.4 twice.
    assert single["trainable parameters"] == [160, 160]
    assert single["step time (s)"] == pytest.approx([0.6, 0.6])

    text = (tmp_path / "out" / "table.md").read_text().splitlines()
    told = dict(zip(*(cells(text[i]) for i in (2, 5)), strict=True))
    assert told == {
        "method": "talora",
        "seeds": "2",
        "trainable parameters": "100",
        "step time (s)": "0.3000 ± 0.0000",
        "Δp (%)": "+1.25 ± 1.77",
        "Δm (%)": "-2.50 ± 17.68",
        "semantic/miou": "0.5000 ± 0.0707",
        "semantic/pixel_acc": "0.8200 ± 0.0283",
        "depth/pooled/abs_err": "0.4500 ± 0.0707",
        "depth/pooled/rel_err": "0.2150 ± 0.0495",
        "depth/pooled/rmse": "1.050 ± 0.212",
        "depth/per_image/abs_err": "–",
        "source": "measured",
    }
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table.csv").read_text())))
    assert [line["method"] for line in lines[:2]] == list(rows)
    assert float(lines[1]["Δm (%) std"]) == pytest.approx(25 / math.sqrt(2))
    assert float(lines[1]["semantic/miou"]) == pytest.approx(0.5)
    with Image.open(tmp_path / "out" / "plot.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize("count", [1, 40])
def test_a_legend_of_many_rows_lies_on_nothing(count, joint, tmp_path):
    more = [
        write(
            tmp_path / f"r{i}", BOTH, metrics(0.5, 0.8), adapter__scale=i / 10, data__name="rooms"
        )
        for i in range(count)
    ]
    tables, _ = report([*joint, *more], tmp_path / "out")
    figure = plot(tables)
    figure.draw_without_rendering()
    for part in figure.subfigs:
        legend = part.legends[0].get_window_extent()
        assert part.bbox.y0 <= legend.y0
        assert all(legend.y1 <= ax.get_tightbbox().y0 for ax in part.axes)


def test_published_rows_stand_beside_with_their_source(joint, tmp_path, capsys):
    tables, _ = report(joint, tmp_path / "out")
    text = (tmp_path / "out" / "table.md").read_text()
    tora = next(cells(line) for line in text.splitlines() if line.startswith("| ToRA"))
    assert "0.5210" in tora and "0.2820" in tora and "MTSAM (ICLR 2025)" in tora[-1]
    single = next(row for row in tables[0].rows if row.method == "STL")
    # Of the tasks at hand only, and no Δp over three tasks beside one over two.
    assert single.values["depth/pooled/rel_err"] == [0.1605] and "Δp (%)" not in single.values
    assert not any(name.startswith("normals") for name in single.values)
    assert "* ToRA, LoRA-STL: MTSAM (ICLR 2025), second hand" in capsys.readouterr().out
    assert tables[0].notes == ("no Δ for tiny: no finished single-task run of semantic, depth",)


def published_tables():
    return [
        pytest.param(table.rows(), id=f"{dataset}-{i}")
        for dataset, tables in _TABLES.items()
        for i, table in enumerate(tables)
    ]


@pytest.mark.parametrize("rows", published_tables())
def test_published_improvements_follow_from_the_published_metrics(rows):
    """Catches a slip in a number, in a metric's direction or in the formulas."""
    single = rows[0].metrics
    tasks = sorted(rows[0].tasks)
    for row in rows:
        for published, ours in ((row.delta_p, delta_p), (row.delta_m, delta_m)):
            if published is not None and row.metrics:
                # Rounded metrics, and a mean over runs of Δ is not the Δ of a mean.
                assert ours(tasks, row.metrics, single) == pytest.approx(published, abs=0.1)


def test_published_numbers_are_in_the_units_of_ours():
    for dataset in _TABLES:
        for row in published_rows(dataset):
            shares = (
                "miou",
                "miou_max",
                "pixel_acc",
                "max_f",
                "ods_f",
                "within_11.25",
                "within_30",
            )
            values = [v for name, v in row.metrics.items() if name.split("/")[-1] in shares]
            assert all(0.3 < value < 1 for value in values), row
    mtlora, rerun = published_rows("pascal_context")[1:3]
    assert mtlora.parameters == pytest.approx(8.34e6)
    assert (rerun.metrics, rerun.delta_m, rerun.tasks) == ({}, 1.77, mtlora.tasks)
    assert published_rows("rooms") == []


def test_every_task_says_what_improvement_is_made_of():
    assert COMPARED.keys() == TASKS.keys()
    for name, compared in COMPARED.items():
        assert set(compared.delta_p.values()) | set(compared.delta_m.values()) <= {1, -1}, name
        assert len(compared.delta_p) and len(compared.delta_m) == 1, name


def test_workdirs_without_a_finished_run_are_told_one_line_each(joint, singles, tmp_path, capsys):
    broken = {
        "half": "unfinished, the last logged step is 4 of 1000",
        "bare": "bare holds no run",
        "cut": "config.json is damaged: Expecting",
        "foreign": "config.json: a config that this talora_jax does not understand",
        "list": "config.json: a config that this talora_jax does not understand",
        "table": "metrics.jsonl: line 1 is not of a run",
        "early": "unfinished, no step is logged of 1000",
        "nowhere": "there is no such directory",
        "twice": f"the same settings and seed as {joint[0]}",
    }
    for name in ("half", "cut", "foreign", "list", "table", "early"):
        write(tmp_path / name, BOTH, {}, step=400)
    (tmp_path / "bare").mkdir()
    (tmp_path / "cut" / "config.json").write_text('{"seed"')
    (tmp_path / "foreign" / "config.json").write_text('{"learning_rate": 1}')
    (tmp_path / "list" / "config.json").write_text("[1]")
    (tmp_path / "table" / "metrics.jsonl").write_text("[1, 2]\n")
    (tmp_path / "early" / "metrics.jsonl").unlink()
    write(tmp_path / "twice", BOTH, metrics(0.9, 0.9, 0.1, 0.1, 0.1), log_every=7)
    paths = [tmp_path / name for name in broken]
    tables, left_out = report([*joint, *singles, *paths], tmp_path / "out")
    assert measured(tables)["talora"].seeds == 2
    assert len(left_out) == len(broken)
    printed = capsys.readouterr().out
    for (name, told), line in zip(broken.items(), left_out, strict=True):
        assert name in line and told in line and len(line.splitlines()) == 1, line
        assert f"left out: {line}" in printed
        assert line in (tmp_path / "out" / "table.md").read_text()

    with pytest.raises(UserError, match="none of the 2 workdirs holds a finished run"):
        report([tmp_path / "half", tmp_path / "bare"], tmp_path / "none")
    assert "half: unfinished" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_rows_are_told_apart_by_what_differs_and_is_read(tmp_path):
    values = metrics(0.5, 0.5, 0.5, 0.5, 0.5)
    runs = [
        write(tmp_path / "a", BOTH, values, orthogonal_weight=0.1),
        write(tmp_path / "b", BOTH, values, orthogonal_weight=0.0),
        write(tmp_path / "c", BOTH, values, adapter__kind="none", orthogonal_weight=0.1),
        write(tmp_path / "d", BOTH, values, adapter__kind="none", orthogonal_weight=3.0, seed=1),
        write(tmp_path / "e", BOTH, values, adapter__kind="lora_shared", adapter__ranks=(32, 8, 2)),
    ]
    tables, _ = report(runs, tmp_path / "out")
    told = {name: row.seeds for name, row in measured(tables).items()}
    # What a kind does not read makes no other row: λ of "none", LoRA's other ranks.
    assert told == {
        "talora orthogonal_weight=0.1": 1,
        "talora orthogonal_weight=0.0": 1,
        "none": 2,
        "lora_shared": 1,
    }


def test_a_baseline_is_chosen_where_there_are_several(singles, joint, tmp_path):
    other = write(tmp_path / "other", ("depth",), metrics(None, None, 0.8, 0.4, 2.0))
    tables, _ = report([*singles, other, *joint], tmp_path / "out")
    assert "2 different single-task runs of depth" in tables[0].notes[0]
    assert "choose with --baseline" in tables[0].notes[0]
    assert "Δp (%)" not in measured(tables)["talora"].values

    main([*map(str, joint), "--out", str(tmp_path / "out"), "--baseline", *map(str, singles)])
    line = (tmp_path / "out" / "table.md").read_text()
    assert "+1.25 ± 1.77" in line
    with pytest.raises(UserError, match="--baseline names 2 different single-task runs of depth"):
        report(joint, tmp_path / "out", [*singles, other])
    with pytest.raises(UserError, match="j0 has 2 tasks, expected a single-task run"):
        report(singles, tmp_path / "out", joint)


def test_a_baseline_of_zero_or_a_missing_metric_gives_no_improvement():
    base = metrics(0.5, 0.8, 0.5, 0.2, 1.0)
    assert delta_p(BOTH, base, base) == 0
    assert delta_p(BOTH, base, base | {"depth/pooled/rel_err": 0.0}) is None
    assert delta_m(BOTH, metrics(0.5, 0.8, 0.5, 0.2), base) is None


def test_data_sets_have_a_table_each(joint, tmp_path):
    values = metrics(0.5, 0.5, 0.5, 0.5, 0.5)
    other = write(tmp_path / "r", BOTH, values, data__name="rooms", parameters=None, times=())
    tables = make_tables([read_run(path) for path in (*joint, other)])
    assert [table.title for table in tables] == ["nyuv2_mtan", "rooms"]
    assert len(tables[1].rows) == 1
    # An old workdir may not tell its parameters, and one step has no time.
    assert "| talora | 1 | – | – | – | – |" in markdown(tables)


def test_where_a_download_lies_does_not_make_another_experiment():
    config = config_lib.default()
    config.data.name, before = "nyuv2_mtan", None
    for path in ("/one", "/two"):
        config.data.path = path
        assert before in (None, settings(config))
        before = settings(config)
    config.data.name = "folder"
    assert settings(config)["config.data.path"] == "/two"


def test_a_task_that_is_in_no_improvement_is_reported_without(tmp_path):
    values = {"semantic/miou": 0.5, "semantic/pixel_acc": 0.5, "heat/rmse": 1.0}
    runs = [
        write(tmp_path / "joint", ("semantic", "heat"), values),
        write(tmp_path / "s", ("semantic",), values),
        write(tmp_path / "h", ("heat",), values),
    ]
    tables, left_out = report(runs, tmp_path / "out")
    assert not left_out
    row = measured(tables)["talora"]
    assert row.values["heat/rmse"] == [1.0] and "Δp (%)" not in row.values


def test_a_report_of_older_files_needs_no_jax(joint, tmp_path):
    """What those files hold where a field is unset makes no other experiment."""
    path = joint[1] / "config.json"
    fields = json.loads(path.read_text())
    fields["data"] |= {"path": "", "class_names": [""], "intrinsics": [0.0] * 4}
    fields["data"] |= {"depth_scale": 0.0, "ignore_label": -1}
    fields["model"]["weights"] = fields["adapter"]["extend"] = ""
    path.write_text(json.dumps(fields))
    program = (
        "import sys\n"
        "from talora_jax.commands import main\n"
        "main(['report', *sys.argv[1:]])\n"
        "assert not {'jax', 'flax', 'orbax', 'grain', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program, *map(str, joint), "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| talora | 2 |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "plot.png").exists()


def test_runs_from_prompts_have_a_table_of_their_own(tmp_path, capsys):
    """Two seeds are one row, of IoUs and no Δ, beside a multi-task run on the same data."""
    for seed, iou in enumerate((0.6, 0.8)):
        values = {"part/masks": 9.0, "part/box/picked": iou, "part/1_click/picked": 0.5}
        fields = {"trains": "prompts", "prompts__domains": ("part",), "adapter__kind": "full"}
        write(tmp_path / f"p{seed}", BOTH, values, seed=seed, **fields)
    write(tmp_path / "t", BOTH, metrics(0.4, 0.8, 0.4, 0.2, 0.9))
    found = [tmp_path / name for name in ("p0", "p1", "t")]
    prompts, tasks = report(found, tmp_path / "out")[0]
    assert prompts.title == "nyuv2_mtan trains=prompts" and prompts.tasks == ("part",)
    (row,) = prompts.rows
    assert (row.method, row.seeds) == ("full", 2)
    assert row.values["part/box/picked"] == [0.6, 0.8] and "Δp (%)" not in row.values
    assert prompts.plotted == {"part/box/picked": 1, "part/1_click/picked": 1}
    assert tasks.tasks == BOTH and tasks.rows[0].method == "talora"
    assert "0.7000" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "plot.png").size[0] > 500


def test_a_run_is_told_apart_by_what_it_reads(tmp_path):
    prompts = {"trains": "prompts", "prompts__domains": ("part",)}
    changed = read_run(write(tmp_path / "a", BOTH, {"part/masks": 1.0}, **prompts)).config
    before = settings(changed)
    changed.tasks = ("depth",)
    assert settings(changed) == before
    changed.prompts.clicks = 7
    assert settings(changed) != before
    changed.trains = "tasks"
    before = settings(changed)
    changed.prompts.clicks = 8
    assert settings(changed) == before
    changed.adapter.kind = "none"
    before = settings(changed)
    changed.adapter.blocks = (-1,)  # whose LayerNorms train
    assert settings(changed) != before
