"""Automatic masks: ours beside segment_anything's generator, on the same weights and image.

Both use all cores of this machine, in float32. The image is a rendered room, unless one is given.
Below the tables: how many of the masks are the same, pixel by pixel, and in the same order.

    python -m benchmarks.automatic_masks                          sam_small, 32 × 32 points
    python -m benchmarks.automatic_masks --checkpoint sam_vit_b_01ec64.pth --image photo.jpg
    python -m benchmarks.automatic_masks --checkpoint random --points-per-side 8 --float64

The last draws ViT-B's weights as segment_anything does, but for an upscaling without a checkerboard
of its own (see `our_masks.smooth_upscaling`), and leaves no mask out. `--float64` also finds the
masks by segment_anything in float64 and compares both with them: how many its own rounding changes
is the measure of how many ours may.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import arguments, report
from benchmarks.harness import Contender, Result, ask
from talora_jax.errors import UserError, run_command

# What fits a small model, and what keeps all masks of a random one, whose boxes are the image.
_SMALL = {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.5}
_RANDOM = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "stability_score_offset": 0.01}
_RANDOM |= {"box_nms_thresh": 1.0}


def main(argv: list[str] | None = None) -> int:
    parser = arguments.parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", default="sam_small", metavar="FILE",
        help="an official .pth, or: random, sam_small (default: %(default)s)")  # fmt: skip
    add("--image", metavar="IMAGE", help="a picture (default: a room of 480×640 pixels)")
    add("--points-per-side", type=int, default=32, metavar="N",
        help="the grid has N × N points (default: %(default)s)")  # fmt: skip
    add("--crop-n-layers", type=int, default=0, metavar="N",
        help="looks at 4^N parts of the image, too (default: %(default)s)")  # fmt: skip
    add("--repeats", type=int, default=3, metavar="N",
        help="turns, in each of which both make one timed call (default: %(default)s)")  # fmt: skip
    add("--float64", action="store_true",
        help="also compare both with segment_anything in float64: twice its time")  # fmt: skip
    args = parser.parse_args(argv)
    arguments.check_peers(["segment_anything"])
    known = args.checkpoint in ("random", "sam_small")
    for name, path in (("--checkpoint", args.checkpoint), ("--image", args.image)):
        if path and not (known and name == "--checkpoint") and not Path(path).is_file():
            raise UserError(f"{name}: {path} is no file")
    options = {"points_per_side": args.points_per_side, "crop_n_layers": args.crop_n_layers}
    options |= {"sam_small": _SMALL, "random": _RANDOM}.get(args.checkpoint, {})
    with tempfile.TemporaryDirectory() as folder:
        made = {"checkpoint": args.checkpoint, "image": args.image, "folder": folder}
        files = ask("benchmarks.our_masks:sam_and_image", made)
        contenders = [
            Contender(
                name,
                f"benchmarks.{module}:automatic_masks",
                files | {"options": options, "found": f"{folder}/{module}.json"},
                ours=module == "our_masks",
            )
            for name, module in (("ours", "our_masks"), ("segment_anything", "pytorch_peers"))
        ]
        work = {"checkpoint": args.checkpoint, "image": files["size"], **options}

        def same(results: list[Result]) -> dict:
            if any(result.error for result in results):
                return {}
            found, theirs = (_read(contender.options["found"]) for contender in contenders)
            told = {"same": compared(found, theirs)}
            Console().print(
                "masks: {ours} and {theirs}; equal in every pixel: {equal}; IoU of the others: "
                "{worst:.6f} or more; boxes that differ: {boxes}".format(**told["same"])
            )
            if args.float64:
                exact = contenders[1].options | {"found": f"{folder}/float64.json"}
                ask("benchmarks.pytorch_peers:float64_masks", exact)
                exact = _read(exact["found"])
                told["float64"] = {"ours": compared(found, exact)}
                told["float64"]["segment_anything"] = compared(theirs, exact)
                report.make_console().print(_equal_table(told["same"], told["float64"]))
            return told

        return report.compare("automatic masks", args, contenders, work, same)


def compared(found: list[dict], theirs: list[dict]) -> dict:
    """How many of the masks of two lists, one by one, are the same."""
    ious = [_iou(a["segmentation"], b["segmentation"]) for a, b in zip(found, theirs, strict=False)]
    return {
        "ours": len(found),
        "theirs": len(theirs),
        "equal": sum(iou == 1 for iou in ious),
        "worst": min(ious, default=1.0),
        "boxes": sum(a["bbox"] != b["bbox"] for a, b in zip(found, theirs, strict=False)),
    }


def _equal_table(same: dict, float64: dict[str, dict]) -> Table:
    """Of whose masks how many are the same."""
    table = Table("", "equal in every pixel", "", "IoU of the others")
    rows = {"ours, segment_anything": same}
    rows |= {f"{name}, segment_anything in float64": told for name, told in float64.items()}
    for name, told in rows.items():
        equal = f"{told['equal']} of {told['theirs']}"
        share = f"{told['equal'] / max(told['theirs'], 1):.1%}"
        table.add_row(name, equal, share, f"{told['worst']:.6f} or more")
    return table


def _read(path: str) -> list[dict]:
    return json.loads(Path(path).read_text())


def _iou(a: dict, b: dict) -> float:
    if a["counts"] == b["counts"]:
        return 1.0
    x, y = (np.repeat(np.arange(len(m["counts"])) % 2 == 1, m["counts"]) for m in (a, b))
    return float((x & y).sum() / (x | y).sum())


if __name__ == "__main__":
    run_command(main)
