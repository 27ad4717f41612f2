"""How many of the things in an image automatic masks find, and how often their names are right.

    python -m benchmarks.mask_recall                                  rooms, with sam_small
    python -m benchmarks.mask_recall --folder DATA                    DATA/image, DATA/instance
    python -m benchmarks.mask_recall --workdir /tmp/rooms_tiny        and its names

Recall: the part of all instances of at least 64 pixels of which one mask has an IoU of 0.5, or
0.75. Beside it that of an answer that does not look at the image: discs of three sizes at 8×8
points, which are more than the masks. Rooms are validation frames of `rooms_tiny`.

Names are of masks with an IoU of 0.5 or more with an instance, whose class is the one that most of
its pixels have; beside them the part of the most frequent class.
"""

import collections
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from talora_jax.errors import ArgumentParser, UserError, run_command

# In both data sets, at 192×256; a folder's frames keep their size, and this part of their area.
MIN_PIXELS, AT = 64, 192 * 256
LEVELS = (0.5, 0.75)
# Of the discs, in parts of the shorter side, and how many of each in a row and a column.
_RADII, _SIDE = (0.06, 0.12, 0.24), 8


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__, "python -m benchmarks.mask_recall")
    add = parser.add_argument
    add("--folder", type=Path, metavar="DATA",
        help="image/ and instance/, PNGs of the same stems; 0 is no instance")  # fmt: skip
    add("--frames", type=int, default=30, metavar="N", help="the first N (default: %(default)s)")
    add("--base", default="sam_small", metavar="FILE", help="a SAM (default: %(default)s)")
    add("--workdir", metavar="DIR", help="a finished run, of whose base masks are; names them")
    add("--background", type=int, nargs="*", default=[], metavar="NUMBER",
        help="instances that do not count, such as a table (default: none)")  # fmt: skip
    add("--points-per-side", type=int, default=32, metavar="N", help="default: %(default)s")
    add("--pred-iou-thresh", type=float, default=0.4, metavar="X", help="default: %(default)s")
    add("--stability-score-thresh", type=float, default=0.5, metavar="X",
        help="default: %(default)s")  # fmt: skip
    add("--box-nms-thresh", type=float, default=0.7, metavar="X", help="default: %(default)s")
    add("--crop-n-layers", type=int, default=0, metavar="N", help="default: %(default)s")
    add("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    args = parser.parse_args(argv)
    if args.folder and args.workdir:
        raise UserError("--workdir names the things of rooms; leave out --folder")
    if args.folder and not (args.folder / "instance").is_dir():
        raise UserError(f"--folder: there is no folder {args.folder / 'instance'}")

    import talora_jax

    model = talora_jax.load(args.workdir) if args.workdir else None
    masks = talora_jax.AutomaticMasks(
        model.promptable() if model else talora_jax.load_sam(args.base),
        points_per_side=args.points_per_side,
        pred_iou_thresh=args.pred_iou_thresh,
        stability_score_thresh=args.stability_score_thresh,
        box_nms_thresh=args.box_nms_thresh,
        crop_n_layers=args.crop_n_layers,
    )
    frames = _folder(args.folder) if args.folder else _rooms()
    best, trivial, counts, rows = [], [], [], []
    for image, instances, classes in itertools.islice(frames, args.frames):
        least = MIN_PIXELS * instances.size / AT
        numbers, areas = np.unique(instances, return_counts=True)
        wanted = [
            n for n, area in zip(numbers, areas, strict=True)
            if n >= 0 and area >= least and n not in args.background
        ]  # fmt: skip
        found = masks.generate(image)
        counts.append(len(found))
        ious = _ious(np.array([one.mask() for one in found]), instances, wanted)
        best += ious.max(axis=0, initial=0).tolist()
        trivial += _ious(discs(instances.shape), instances, wanted).max(0).tolist()
        if model is None:
            continue
        named = talora_jax.name_masks(found, model.predict(image), model.tasks)
        for mask, to_each in zip(named, ious, strict=True):
            if len(to_each) and to_each.max() >= LEVELS[0]:
                inside = classes[instances == wanted[to_each.argmax()]]
                rows.append((mask.label, int(np.bincount(inside).argmax())))

    told = {"instances": len(best), "masks per image": float(np.mean(counts))}
    for level in LEVELS:
        told[f"recall at IoU {level}"] = float(np.mean(np.array(best) >= level))
        told[f"recall at IoU {level}, discs"] = float(np.mean(np.array(trivial) >= level))
    told["mean best IoU"] = float(np.mean(best))
    if rows:
        told["named masks"] = len(rows)
        told["names that are right"] = float(np.mean([a == b for a, b in rows]))
        (_, most), *_ = collections.Counter(b for _, b in rows).most_common(1)
        told["the most frequent class"] = most / len(rows)
    for name, value in told.items():
        print(f"{name:32} {value:8d}" if isinstance(value, int) else f"{name:32} {value:8.3f}")
    if args.json:
        args.json.write_text(json.dumps(told, indent=2) + "\n")


def discs(size: tuple[int, int]) -> np.ndarray:
    """Masks [n, H, W] that know nothing of an image: discs of each radius at points of a grid."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    places = [(i + 0.5) / _SIDE for i in range(_SIDE)]
    return np.array(
        [
            np.hypot(x - column * width, y - row * height) < radius * min(size)
            for radius in _RADII
            for row in places
            for column in places
        ]
    )


def _ious(masks: np.ndarray, instances: np.ndarray, wanted: list[int]) -> np.ndarray:
    """IoUs [masks, wanted instances]."""
    flat = masks.reshape(len(masks), instances.size).astype(np.float32)
    truth = np.array([(instances == n).ravel() for n in wanted], np.float32)
    truth = truth.reshape(len(wanted), instances.size)
    both = flat @ truth.T
    return both / np.maximum(flat.sum(1)[:, None] + truth.sum(1) - both, 1)


def _rooms() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Validation frames: images, instances and classes."""
    from talora_jax.data.rooms.render import render
    from talora_jax.data.rooms.scene import random_scene

    for index in itertools.count():
        frame = render(random_scene(0, "val", index), (192, 256))
        yield frame["image"], frame["instance"], frame["semantic"]


def _folder(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray, None]]:
    from talora_jax.rgb import read_rgb

    for instance in sorted((path / "instance").glob("*.png")):
        image = next((path / "image").glob(f"{instance.stem}.*"), None)
        if image is None:
            raise UserError(f"there is no image for {instance}")
        numbers = np.asarray(Image.open(instance)).astype(int)
        yield read_rgb(image), np.where(numbers > 0, numbers, -1), None


if __name__ == "__main__":
    run_command(main)
