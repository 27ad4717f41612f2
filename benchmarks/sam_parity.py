"""python -m benchmarks.sam_parity sam_vit_b_01ec64.pth photo.jpg --point 320 200

Checks the port on one's own checkpoint and image: converts the checkpoint, asks `segment_anything`
and this project the same, prints how far the answers are apart, and draws them side by side: the
image and its prompt, the original's mask logits, ours, and 1000 times the difference.

Needs PyTorch and segment-anything. Without a checkpoint, `random` draws ViT-B's weights: the masks
then mean nothing, but both must give the same.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.arguments import INSTALL_PEERS
from benchmarks.torchvision_stub import torchvision_or_stub
from talora_jax.errors import ArgumentParser, UserError, run_command
from talora_jax.inference.prompts import SamPredictor
from talora_jax.rgb import read_rgb
from talora_jax.weights.build import load_sam
from weights_convert.__main__ import main as convert

# The released models, by the width of their image encoder.
NAMES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


def main() -> None:
    args = _parse()
    torch, segment_anything = import_official()
    if args.checkpoint != "random" and not Path(args.checkpoint).is_file():
        what = "is a folder; expected a file" if Path(args.checkpoint).is_dir() else "is no file"
        raise UserError(f"{args.checkpoint} {what}, an official .pth")
    image = read_rgb(Path(args.image))
    points = args.point or [[image.shape[1] / 2, image.shape[0] / 2]]
    prompt = {"points": np.array(points), "labels": np.ones(len(points), int)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(args.checkpoint)
        if args.checkpoint == "random":
            path = Path(folder, "random.pth")
            torch.manual_seed(0)
            torch.save(segment_anything.sam_model_registry["vit_b"]().state_dict(), path)
        theirs = ask_official(path, image, prompt)
        convert([str(path), f"{folder}/base.safetensors"])
        ours = ask_ours(Path(folder, "base.safetensors"), image, prompt)
    print(f"\n{'':24}{'segment_anything':>18}{'talora_jax':>14}{'difference':>14}")
    for name in theirs:
        a, b = np.abs(theirs[name]).max(), np.abs(ours[name]).max()
        apart = b - a if name.startswith("seconds") else np.abs(theirs[name] - ours[name]).max()
        print(f"{name:24}{a:18.4f}{b:14.4f}{apart:14.2e}")
    draw(image, points, theirs["largest mask logit"], ours["largest mask logit"]).save(args.picture)
    print(f"wrote {args.picture}")


def import_official():
    """PyTorch and `segment_anything`, which --help does without.

    Raises:
      UserError: one of them is not installed.
    """
    try:
        import torch

        with torchvision_or_stub():
            import segment_anything
    except ImportError as error:
        raise UserError(f"this needs {error.name}: {INSTALL_PEERS}") from None
    return torch, segment_anything


def ask_official(path: Path, image: np.ndarray, prompt: dict) -> dict[str, np.ndarray]:
    """What the original answers; three masks for the points."""
    torch, segment_anything = import_official()
    state = torch.load(path, weights_only=True)
    sam = segment_anything.sam_model_registry[
        NAMES[len(state["image_encoder.blocks.0.norm1.bias"])]
    ]().eval()
    sam.load_state_dict(state)
    predictor = segment_anything.SamPredictor(sam)
    start = time.perf_counter()
    predictor.set_image(image)
    seconds = time.perf_counter() - start
    logits, iou, _ = predictor.predict(prompt["points"], prompt["labels"], return_logits=True)
    embedding = predictor.features[0].permute(1, 2, 0).numpy()
    return _answers(embedding, logits, iou, seconds)


def ask_ours(path: Path, image: np.ndarray, prompt: dict) -> dict[str, np.ndarray]:
    """What this project answers to the same."""
    predictor = SamPredictor(load_sam(path))
    predictor.set_image(image)  # Compiles.
    start = time.perf_counter()
    predictor.set_image(image)
    embedding = np.asarray(predictor.embedding()[0])
    seconds = time.perf_counter() - start
    prediction = predictor.predict(prompt["points"][None], prompt["labels"][None])
    return _answers(embedding, prediction.logits()[0], prediction.iou[0], seconds)


def _answers(embedding, logits, iou, seconds) -> dict[str, np.ndarray]:
    return {
        "largest embedding": embedding,
        "largest mask logit": logits,
        "largest predicted IoU": iou,
        "seconds to encode": np.array(seconds),
    }


def draw(image, points, theirs, ours) -> Image.Image:
    """Image and prompt, the first mask's logits of both, and their difference."""
    photo = Image.fromarray(image)
    pen, radius = ImageDraw.Draw(photo), max(image.shape) / 100
    for x, y in points:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), "red", "white")
    low, high = theirs[0].min(), theirs[0].max()

    def gray(x):
        return np.repeat(np.clip(x * 255, 0, 255).astype(np.uint8)[..., None], 3, axis=2)

    panels = [np.asarray(photo), *(gray((x[0] - low) / (high - low)) for x in (theirs, ours))]
    return Image.fromarray(np.hstack([*panels, gray(1000 * np.abs(theirs[0] - ours[0]))]))


def _parse() -> argparse.Namespace:
    parser = ArgumentParser(__doc__, "python -m benchmarks.sam_parity")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="an official .pth, or: random")
    parser.add_argument("image", metavar="IMAGE", help="a picture to ask about")
    parser.add_argument(
        "--point",
        type=float,
        nargs=2,
        action="append",
        metavar=("X", "Y"),
        help="in pixels, on the object; can be given several times (default: the centre)",
    )
    parser.add_argument(
        "--picture",
        default="sam_parity.png",
        metavar="PATH",
        help="where to write the picture (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
