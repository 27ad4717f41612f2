"""Runs what `python -m talora_jax.export` left in this folder. It needs jax, flatbuffers, numpy and
safetensors (Pillow for pictures), and nothing of talora_jax:

    python run.py photo.jpg predictions.npz

or from Python, with this folder in `sys.path`:

    import run
    predict = run.load()
    arrays = predict(images)      # uint8 RGB [batch, height, width, 3], as NumPy or JAX array
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.export
import numpy as np
from safetensors.flax import load_file

FOLDER = Path(__file__).parent


def load(
    folder: str | Path = FOLDER, platform: str | None = None
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Loads the program and its weights.

    Args:
      folder: what the export wrote.
      platform: which program, such as cpu, cuda or tpu; by default this machine's.

    Returns:
      A function from images, uint8 [batch, height, width, 3], to arrays by name: those listed in
      `model.json`, with the batch in front. The first call compiles. It raises ValueError for
      images of another dtype or shape.
    """
    platform = platform or jax.export.default_export_platform()
    path = Path(folder, f"model_{platform}.jaxexport")
    if not path.is_file():
        there = sorted(p.stem.removeprefix("model_") for p in path.parent.glob("model_*.jaxexport"))
        raise FileNotFoundError(
            f"{folder} has no program for {platform}, but for {', '.join(there) or 'none'}: "
            "export again with --platforms"
        )
    program = jax.export.deserialize(path.read_bytes())
    call = jax.jit(program.call)
    weights = load_file(Path(folder, "weights.safetensors"))
    expected = program.in_avals[-1].shape

    def predict(images):
        dtype, shape = getattr(images, "dtype", None), getattr(images, "shape", ())
        batch = expected[0] if isinstance(expected[0], int) else None
        if dtype != np.uint8 or shape[1:] != expected[1:] or shape[0] != (batch or shape[0]):
            given = type(images).__name__ if dtype is None else f"{dtype} {list(shape)}"
            raise ValueError(
                f"images: {given}; this program was exported for uint8 "
                f"[{batch or 'batch'}, {', '.join(map(str, expected[1:]))}], RGB"
            )
        return jax.device_get(call(weights, images))

    return predict


def read_image(path: str, size: tuple[int, int]) -> np.ndarray:
    """A picture or an .npy file as uint8 [height, width, 3]. Ends the program if it is another."""
    try:
        image = np.asarray(np.load(path)) if path.endswith(".npy") else _read_picture(path)
    except Exception as error:  # Of a damaged file, any kind.
        sys.exit(f"error: {path} cannot be read ({' '.join(str(error).split())})")
    if image.dtype != np.uint8 or image.shape != (*size, 3):
        sys.exit(
            f"error: {path} is {image.dtype} {image.shape}, and this program was exported for "
            f"uint8 {(*size, 3)}: resize the image, or export again with --size"
        )
    return image


def _read_picture(path: str) -> np.ndarray:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        if image.mode[0] in "IF":  # Pillow would clip them.
            raise ValueError(
                f"Pillow's mode {image.mode}, more than 8 bits; expected 8: scale white to 255"
            )
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    source, output = sys.argv[1:]
    model = json.loads(Path(FOLDER, "model.json").read_text())
    image = read_image(source, tuple(model["image_size"]))
    if not Path(output).absolute().parent.is_dir():
        sys.exit(f"error: {output}: there is no folder {Path(output).parent}")
    # A program with a batch of a fixed size gets the image that often.
    images = np.repeat(image[None], model["batch_size"] or 1, axis=0)
    arrays = {name: x[0] for name, x in load()(images).items()}
    np.savez(output, **arrays)
    for name, x in arrays.items():
        print(f"{name:28} {x.dtype} {list(x.shape)}, {x.min():.4g} to {x.max():.4g}")


if __name__ == "__main__":
    main()
