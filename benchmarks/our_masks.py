"""Our automatic masks, and what they are found with."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.harness import cores
from benchmarks.ours import Contender
from benchmarks.torchvision_stub import torchvision_or_stub
from talora_jax.data.rooms.render import render
from talora_jax.data.rooms.scene import random_scene
from talora_jax.inference.masks.automatic import AutomaticMasks
from talora_jax.rgb import read_rgb
from talora_jax.weights.base_file import SHIPPED, read_description
from talora_jax.weights.build import load_sam
from weights_convert.__main__ import main as convert


def sam_and_image(checkpoint: str, image: str | None, folder: str) -> tuple[None, dict[str, Any]]:
    """A SAM as a .pth and as a base, and an image: what automatic masks are found with.

    Args:
      checkpoint: an official .pth, or: random (ViT-B's sizes, see `smooth_upscaling`), sam_small.
      image: a picture; None for a rendered room.
    """
    import torch

    with torchvision_or_stub():
        from segment_anything import sam_model_registry

    place = Path(folder)
    base = path = checkpoint
    if checkpoint == "sam_small":
        path = place / "sam.pth"
        convert([str(SHIPPED["sam_small"]), str(path)])
    else:
        base = place / "base.safetensors"
        if checkpoint == "random":
            path = place / "random.pth"
            torch.manual_seed(0)
            official = sam_model_registry["vit_b"]()
            smooth_upscaling(official)
            torch.save(official.state_dict(), path)
        convert([str(path), str(base)])
    if image is None:
        image = place / "room.png"
        Image.fromarray(render(random_scene(0, "val", 0), (480, 640))["image"]).save(image)
    config = read_description(base).config
    encoder = dataclasses.asdict(config.encoder) | {"depth": config.encoder.depth}
    return None, {
        "architecture": {"encoder": encoder, "decoder": dataclasses.asdict(config.decoder)},
        "checkpoint": str(path),
        "base": str(base),
        "image": str(image),
        "size": list(read_rgb(Path(image)).shape[:2]),
    }


def smooth_upscaling(official: Any) -> None:
    """Gives each 2×2 block that the decoder of a random SAM upscales to one value.

    Else blocks differ at random, a mask's outline runs by every second pixel, and on many a mask
    some logit is zero within what `segment_anything` rounds: its weights of an interpolation are
    float32. In float64 it finds other masks itself.
    """
    for layer in (0, 3):
        kernel = official.mask_decoder.output_upscaling[layer].weight.data  # [in, out, 2, 2]
        kernel[:] = kernel[:, :, :1, :1]


def automatic_masks(
    base: str, image: str, options: dict[str, Any], found: str, **others: Any
) -> Contender:
    """Masks of everything in an image; written to `found`, the first time."""
    del others
    masks = AutomaticMasks(load_sam(base), **options)
    rgb = read_rgb(Path(image))

    def step():
        records = [mask.record() for mask in masks.generate(rgb)]
        if not Path(found).exists():
            Path(found).write_text(json.dumps(records))

    return step, {"threads": cores()}
