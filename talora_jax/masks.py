"""Finds masks of everything in images, without prompts, and writes

  OUT/panels/photo.png     the image and its masks, with outlines; named ones with a legend
  OUT/masks/photo.png      16 bits: the number of each pixel's mask, 0 for none
  OUT/masks.json           all of them as COCO keeps them, with what the model expects of each;
                           an annotation's `number` is its number in OUT/masks/photo.png

  python -m talora_jax.masks --images photo.jpg album/ --out seen --base sam_vit_b.safetensors

With a run that was trained on a base (or its adapter file), masks come from that base and get the
names of the run's classes, and depths and normals if it has them:

  python -m talora_jax.masks --images photo.jpg --out seen --workdir /tmp/rooms_tiny

Names and defaults of options are those of segment-anything's generator, and were chosen for ViT-H.
With `sam_small` much more is found by --pred-iou-thresh 0.4 --stability-score-thresh 0.5; fewer
points make it faster, and crops find small things.
"""

from collections.abc import Sequence

from talora_jax import storage
from talora_jax.compiled import keep_programs
from talora_jax.errors import ArgumentParser, run_command


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    keep_programs()
    # Imported here: --help and a wrong argument need not wait for JAX.
    from talora_jax.inference.masks.to_files import run

    run(args)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__, "python -m talora_jax.masks")
    add = parser.add_argument
    add("--images", nargs="+", action="extend", default=[], metavar="PATH",
        help="files, folders (with all below them), quoted globs")  # fmt: skip
    add("--out", type=storage.local, required=True, metavar="OUT", help="the folder to write to")
    add("--base", metavar="FILE",
        help="a SAM as weights_convert writes it, or sam_small (default: sam_small); with "
        "--workdir or --adapter, where its base lies if it has moved")  # fmt: skip
    add("--workdir", metavar="DIR", help="a finished run: names masks by its classes")
    add("--adapter", metavar="FILE", help="an adapter.safetensors, in place of --workdir")
    add("--points-per-side", type=int, default=32, metavar="N",
        help="the grid has N × N points (default: %(default)s)")  # fmt: skip
    add("--points-per-batch", type=int, default=16, metavar="N",
        help="decoded at once; memory grows with it (default: %(default)s)")  # fmt: skip
    add("--pred-iou-thresh", type=float, default=0.88, metavar="X",
        help="leaves out masks that are not expected to fit better; 0 keeps all "
        "(default: %(default)s)")  # fmt: skip
    add("--stability-score-thresh", type=float, default=0.95, metavar="X",
        help="leaves out masks that change more with the threshold of their logits; 0 keeps all "
        "(default: %(default)s)")  # fmt: skip
    add("--stability-score-offset", type=float, default=1.0, metavar="X",
        help="by how much that threshold changes (default: %(default)s)")  # fmt: skip
    add("--box-nms-thresh", type=float, default=0.7, metavar="X",
        help="of masks whose boxes have a higher IoU one stays (default: %(default)s)")  # fmt: skip
    add("--crop-n-layers", type=int, default=0, metavar="N",
        help="1 looks at 4 parts of the image, too, 2 at 16 more (default: 0)")  # fmt: skip
    add("--crop-nms-thresh", type=float, default=0.7, metavar="X",
        help="the same for masks of different crops (default: %(default)s)")  # fmt: skip
    add("--crop-overlap-ratio", type=float, default=512 / 1500, metavar="X",
        help="of the first layer's crops, of the short side (default: 512/1500)")  # fmt: skip
    add("--crop-n-points-downscale-factor", type=int, default=1, metavar="N",
        help="each layer has N times fewer points per side (default: %(default)s)")  # fmt: skip
    add("--min-mask-region-area", type=float, default=0, metavar="PIXELS",
        help="removes smaller holes and islands from masks (default: %(default)s)")  # fmt: skip
    add("--compressed", action="store_true",
        help="writes run lengths as strings, as COCO's own files have them; needs "
        "pip install 'talora_jax[coco]'")  # fmt: skip
    add("--overwrite", action="store_true", help="replaces files that exist in OUT")
    return parser


if __name__ == "__main__":
    run_command(main)
