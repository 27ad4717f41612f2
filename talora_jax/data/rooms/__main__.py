"""python -m talora_jax.data.rooms OUT

Writes rendered rooms the way your own data would lie in a folder: to see what training expects of
one (`talora_jax.data.folder`), or to try a command before your data is at hand.

  OUT/image/0000.jpg      RGB
  OUT/semantic/0000.png   class indices, with a palette to look at
  OUT/depth/0000.png      16 bits, millimetres
  OUT/instance/0000.png   object numbers, from 1; training makes edges of them
  OUT/dataset.json        class names, depth scale, and the camera's intrinsics for normals

  python -m talora_jax.data.rooms rooms --frames 60 --size 240 320
  python -m talora_jax.main --config configs/folder_vit_b.py --config.data.path=rooms \\
      --workdir /tmp/mine
"""

import json
from collections.abc import Sequence
from pathlib import Path

from talora_jax import storage
from talora_jax.errors import ArgumentParser, UserError, run_command
from talora_jax.files import replacing

DEPTH_SCALE = 1000


def write_folder(out: Path, frames: int, size: tuple[int, int], seed: int) -> None:
    """Writes the first frames of a seed's training rooms.

    Args:
      size: H, W.

    Raises:
      UserError: the folder exists, or a value is out of range.
    """
    # Imported here: --help and a wrong argument need not wait for JAX.
    import numpy as np
    from PIL import Image

    from talora_jax.data.nyuv2_classes import CLASS_NAMES
    from talora_jax.data.progress import progress
    from talora_jax.data.rooms.render import render
    from talora_jax.data.rooms.scene import FOCAL, random_scene
    from talora_jax.tasks import palette
    from talora_jax.tasks.png import Png, scaled

    if out.exists():
        raise UserError(f"{out} exists: name another folder, or remove it first")
    for name, value, least in (("frames", frames, 1), ("size", min(size), 32), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"--{name} is {value}, expected at least {least}")
    height, width = size
    focal = float(FOCAL * width)
    described = {
        "class_names": CLASS_NAMES,
        "depth_scale": DEPTH_SCALE,
        # Counted from the centre of the top left pixel.
        "intrinsics": {"fx": focal, "fy": focal, "cx": (width - 1) / 2, "cy": (height - 1) / 2},
    }
    with replacing(out) as folder, progress("Rendering rooms", frames, "frames") as advance:
        for kind in ("image", "semantic", "depth", "instance"):
            (folder / kind).mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps(described, indent=2) + "\n")
        for index in range(frames):
            frame = render(random_scene(seed, "train", index), size)
            semantic = frame["semantic"].astype(np.uint8)
            instance = (frame["instance"] + 1).astype(np.uint16)
            pngs = {
                "semantic": Png(semantic, palette=palette(len(CLASS_NAMES))),
                "depth": scaled(frame["depth"][..., 0], DEPTH_SCALE, {}),
                "instance": Png(instance),
            }
            for kind, png in pngs.items():
                (folder / kind / f"{index:04d}.png").write_bytes(png.encode())
            Image.fromarray(frame["image"]).save(folder / "image" / f"{index:04d}.jpg", quality=92)
            advance()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("out", type=storage.local, metavar="OUT", help="the folder to write; it must not exist")
    add("--frames", type=int, default=60, metavar="N", help="default: %(default)s")
    add("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"),
        help="of the images, in pixels (default: 240 320)")  # fmt: skip
    add("--seed", type=int, default=0, help="another seed is another set of rooms")
    args = parser.parse_args(arguments)
    write_folder(args.out, args.frames, tuple(args.size), args.seed)
    print(f"wrote {args.frames} frames to {args.out}")


if __name__ == "__main__":
    run_command(main)
