"""Writes small data sets in exactly the layout, types and value ranges they are published in.

    python tests/data/published.py nyuv2_mtan /tmp/nyuv2 --train 795 --val 654 --size 288 384

writes one of full size, to measure with. Scenes are blocks of colour; a block has a class, a depth
and a direction, so that there is something to learn.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

# H×W of one block.
BLOCK = 8


def write_nyuv2_mtan(
    root: Path,
    train: int = 6,
    val: int = 4,
    size: tuple[int, int] = (24, 32),
    floats: type = np.float32,
) -> Path:
    """NYUv2 as MTAN packs it; see `talora_jax.data.nyuv2_mtan`.

    Sample 0 of a split is odd: nothing is labelled, measured or valid.
    """

    def sample(rng: np.random.Generator, odd: bool) -> dict[str, np.ndarray]:
        blocks, label, image = _scene(rng, size, 13)
        directions = rng.normal(size=(blocks.max() + 1, 3))
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        normal = directions[blocks]
        # Resizing has shortened vectors where two surfaces meet.
        normal[:, 1::2] = (normal[:, 1::2] + normal[:, ::2]) / 2
        depth = rng.uniform(0.7, 10, blocks.max() + 1)[blocks][..., None]
        depth += rng.uniform(0, 0.01, depth.shape)
        # What the Kinect did not see, and what is too near the border to be labelled.
        depth[:2], normal[:2], label[:, :2] = 0, 0, -1
        if odd:
            depth[:], normal[:], label[:] = 0, 0, -1
        return {
            "image": image.astype(floats),
            "label": label.astype(np.int64),
            "depth": depth.astype(floats),
            "normal": normal.astype(floats),
        }

    return _write(root, {"train": train, "val": val}, sample)


def write_cityscapes_mtan(
    root: Path,
    train: int = 6,
    val: int = 4,
    size: tuple[int, int] = (16, 32),
    floats: type = np.float32,
    labels: str = "label_7",
) -> Path:
    """Cityscapes as MTAN packs it; see `talora_jax.data.cityscapes_mtan`.

    Args:
        labels: 'label_7', beside which are written the folders of 2 and 19 classes that the
            download has, or 'label', the only one that some copies have.

    Sample 0 of a split is odd: nothing is labelled, and no disparity was measured.
    """

    def sample(rng: np.random.Generator, odd: bool) -> dict[str, np.ndarray]:
        blocks, label, image = _scene(rng, size, 7)
        # 16-bit PNGs over 65535; the largest of the published files is 32257.
        disparity = rng.integers(200, 32258, blocks.max() + 1)[blocks][..., None] / 65535
        disparity[:2], label[-2:] = 0, -1
        if odd:
            disparity[:], label[:] = 0, -1
        arrays = {
            "image": image.astype(floats),
            labels: label.astype(np.int64),
            "depth": disparity.astype(floats),
        }
        if labels == "label_7":
            arrays |= {"label_2": np.minimum(label, 1), "label_19": label * 2}
        return arrays

    return _write(root, {"train": train, "val": val}, sample)


def _scene(
    rng: np.random.Generator, size: tuple[int, int], num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Block numbers [H, W], their classes [H, W], and 8-bit colours over 255 [H, W, 3]."""
    height, width = size
    across = -(-width // BLOCK)
    blocks = (np.arange(height) // BLOCK)[:, None] * across + np.arange(width) // BLOCK
    label = rng.integers(0, num_classes, blocks.max() + 1)[blocks]
    # The last class is in every scene.
    label[blocks == blocks.max()] = num_classes - 1
    colours = np.random.default_rng(0).integers(30, 226, (num_classes, 3))[label]
    return blocks, label, (colours + rng.integers(-25, 26, colours.shape)) / 255


def _write(
    root: Path,
    samples: dict[str, int],
    make: Callable[[np.random.Generator, bool], dict[str, np.ndarray]],
) -> Path:
    for number, (split, count) in enumerate(samples.items()):
        for index in range(count):
            rng = np.random.default_rng([number, index])
            for kind, values in make(rng, index == 0).items():
                folder = root / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                np.save(folder / f"{index}.npy", values)
    # What a Mac leaves behind.
    (root / "train" / ".DS_Store").write_bytes(b"\0")
    return root


WRITE = {"nyuv2_mtan": write_nyuv2_mtan, "cityscapes_mtan": write_cityscapes_mtan}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=WRITE)
    parser.add_argument("root", type=Path)
    parser.add_argument("--train", type=int, default=6)
    parser.add_argument("--val", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(24, 32), metavar=("HEIGHT", "WIDTH"))
    arguments = parser.parse_args()
    WRITE[arguments.dataset](arguments.root, arguments.train, arguments.val, tuple(arguments.size))
