"""Writes a trained model in forms that need no talora_jax:

  OUT/model_cpu.jaxexport      a program (StableHLO, by jax.export), one for each of --platforms
  OUT/weights.safetensors      what all of them compute with: base and adapter, kept once
  OUT/model.json               image size, tasks, class names, what the program gives
  OUT/run.py, OUT/README.md    how to run it; jax, flatbuffers, numpy and safetensors are enough
  OUT/merged/TASK.safetensors  for each task a SAM of its own, the adapter merged into its weights

A program takes uint8 RGB images of one size, any number of them, and gives for each task what its
user wants: class indices and probabilities, metres, unit normals, probabilities of an edge. It
resizes and normalises by itself.

A merged file is a base with the one task's decoder. Train on from it with
--config.model.weights=FILE --config.tasks="('TASK',)", or, of a run that began with a SAM, write it
under the official code's names: python -m weights_convert OUT/merged/TASK.safetensors TASK.pth

With --format onnx it writes ONNX files, checked in onnxruntime (pip install 'talora_jax[onnx]'):

  OUT/model.onnx                      of a run; it takes as many images at once as --batch-size says
  OUT/encoder.onnx, OUT/decoder.onnx  of a base, such as sam_small: a promptable SAM for images of
                                      one size, and any number of prompts
  OUT/NAME.onnx.data                  weights of more than an ONNX file may hold (2 GB), as ViT-H's
  OUT/model.json, OUT/README.md, OUT/run_onnx.py

  python -m talora_jax.export /tmp/rooms_tiny exported
  python -m talora_jax.export /tmp/rooms_tiny exported --platforms tpu --tasks depth --size 480 640
  python -m talora_jax.export /tmp/rooms_tiny exported --parts merged --base sam_vit_b.safetensors
  python -m talora_jax.export /tmp/rooms_tiny exported --format onnx
  python -m talora_jax.export sam_small exported --format onnx --size 480 640
"""

from collections.abc import Sequence
from pathlib import Path

from talora_jax import storage
from talora_jax.errors import ArgumentParser, run_command

# As jax.export calls them.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PARTS = ("program", "merged")
FORMATS = ("jaxexport", "onnx")


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    # Imported here: --help and a wrong argument need not wait for JAX.
    from talora_jax.inference.export import export

    export(args)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__, "python -m talora_jax.export")
    parser.add_argument(
        "workdir",
        type=storage.place,
        metavar="WORKDIR",
        help="of a finished run, or its adapter file; with --format onnx it may be a base",
    )
    parser.add_argument(
        "out",
        type=storage.local,
        metavar="OUT",
        help="folder to write, one that does not exist or is empty",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help=f"of the programs, of {', '.join(FORMATS)} (default: {FORMATS[0]})",
    )
    parser.add_argument(
        "--platforms",
        nargs="+",
        choices=PLATFORMS,
        metavar="PLATFORM",
        help=f"what to write programs for, of {', '.join(PLATFORMS)}; none need be here. With "
        "config.model.dtype=auto they compute in float32 on cpu, else in bfloat16 "
        "(default: cpu cuda tpu)",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="which tasks, in the order wanted (default: all of the run)",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="of the images that the program takes, and of its arrays (default: the run's; of a "
        "base, its square)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="compute exactly N images at once, which may be faster on an accelerator (default: "
        "any number of images, one after the other; of ONNX, one image)",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        metavar="PART",
        help="what to write: program, merged (default: both)",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FILE",
        help="where the base is that the run was trained on, if it has moved",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="use the adapter on another base than it was trained on, of the same sizes",
    )
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not run the program for this machine and compare it with the model",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
