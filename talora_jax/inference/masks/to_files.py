"""The command `talora_jax.masks`: images in, pictures, numbers and COCO's JSON of masks out."""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from talora_jax.errors import UserError
from talora_jax.files import write_atomically
from talora_jax.inference.masks.automatic import AutomaticMasks, FoundMask
from talora_jax.inference.masks.named import NamedMask, name_masks, naming_task, numbered
from talora_jax.inference.masks.pictures import picture_of_masks
from talora_jax.inference.model import TrainedModel, load
from talora_jax.inference.to_files import (
    PANELS,
    Input,
    check_out,
    each_image,
    find_images,
    write_all,
)
from talora_jax.rgb import read_rgb
from talora_jax.tasks.png import Png
from talora_jax.weights.build import load_sam

SUMMARY = "masks.json"
NUMBERS = "masks"


def run(args: argparse.Namespace) -> dict:
    """Does what the command line says, and returns what `OUT/masks.json` holds.

    Args:
      args: as `talora_jax.masks` reads them.

    Raises:
      UserError: it cannot be done.
    """
    if args.workdir and args.adapter:
        raise UserError("--workdir and --adapter: give one of them")
    out = args.out.expanduser()
    inputs = find_images(args.images, out)
    check_out(out, SUMMARY, inputs, [NUMBERS, PANELS], [".png"], overwrite=args.overwrite)
    trained = args.workdir or args.adapter
    model = load(trained, args.base) if trained else None
    if model is not None:
        naming_task(model.tasks)
    sam = load_sam(args.base or "sam_small") if model is None else model.promptable()
    options = {field.name for field in dataclasses.fields(AutomaticMasks)} & vars(args).keys()
    masks = AutomaticMasks(sam, **{name: getattr(args, name) for name in options})
    return write_masks(masks, model, inputs, out, compressed=args.compressed)


def write_masks(
    masks: AutomaticMasks,
    model: TrainedModel | None,
    inputs: Sequence[Input],
    out: Path,
    *,
    compressed: bool = False,
    print_line: Callable[[str], None] = print,
) -> dict:
    """Finds masks in images, names them where there is a model, and writes all.

    Args:
      compressed: whether run lengths are strings, as pycocotools makes them.

    Raises:
      UserError: not one image could be read and looked at, or a file could not be written.
    """
    started = time.monotonic()

    def one(given: Input) -> tuple | UserError:
        named = shown = None
        try:
            image = read_rgb(given.path)
            found = masks.generate(image)
            if model is not None:
                named = name_masks(found, model.predict(image), model.tasks)
                shown = named, naming_task(model.tasks)
        except UserError as error:
            return error
        numbers = numbered(found, image.shape[:2])
        text = {"meaning": f"number of the mask in {SUMMARY}, 0 for none"}
        files = {
            out / NUMBERS / f"{given.name}.png": Png(numbers.astype(np.uint16), text),
            out / PANELS / f"{given.name}.png": picture_of_masks(image, found, shown),
        }
        write_all(files)
        annotations = [_annotation(mask, compressed) for mask in named or found]
        return given, image.shape[:2], annotations

    rows, unreadable = each_image(inputs, "finding masks", map(one, inputs), print_line)
    told = {
        "images": [
            {
                "id": i,
                "file_name": str(given.path),
                "height": height,
                "width": width,
                "numbers": f"{NUMBERS}/{given.name}.png",
            }
            for i, (given, (height, width), _) in enumerate(rows, 1)
        ],
        "categories": _categories(model),
        "annotations": [
            {"image_id": i, "number": number, **annotation}
            for i, (_, _, annotations) in enumerate(rows, 1)
            for number, annotation in enumerate(annotations, 1)
        ],
        "unreadable": unreadable,
    }
    for i, annotation in enumerate(told["annotations"], 1):
        annotation["id"] = i
    write_atomically(out / SUMMARY, json.dumps(told).encode())
    print_line(
        f"{len(told['annotations'])} masks in {len(rows)} of {len(inputs)} images in "
        f"{time.monotonic() - started:.1f} s; {NUMBERS}, {PANELS} and {SUMMARY} are in {out}"
    )
    return told


def _annotation(mask: FoundMask | NamedMask, compressed: bool) -> dict:
    """As COCO has it, in whose boxes a mask of one pixel has a width of one."""
    record = mask.record(compressed=compressed)
    x, y, width, height = record["bbox"]
    label = mask.label if isinstance(mask, NamedMask) else 0
    return record | {
        "bbox": [x, y, width + 1, height + 1] if record["area"] else [0, 0, 0, 0],
        "category_id": 1 + label,
        "iscrowd": 0,
    }


def _categories(model: TrainedModel | None) -> list[dict]:
    if model is None:
        return [{"id": 1, "name": "object"}]
    semantic = naming_task(model.tasks)
    names = semantic.class_names or tuple(map(str, range(semantic.num_classes)))
    return [{"id": i, "name": name} for i, name in enumerate(names, 1)]
