"""The benchmarks' command lines: their arguments, and what contenders are given for them."""

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.harness import Contender, ask
from talora_jax.errors import ArgumentParser

SIZES = ("tiny", "vit_b", "vit_l", "vit_h")
NUM_TASKS = 3  # NYUv2's
INSTALL_PEERS = "pip install 'talora_jax[torch]' segment-anything transformers"


def parser(doc: str) -> ArgumentParser:
    """A parser with what all benchmarks share; `doc` is the module's docstring."""
    parser = ArgumentParser(doc, f"python -m benchmarks.{Path(sys.argv[0]).stem}")
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="also write all that is measured to this file"
    )
    return parser


def add_model_arguments(
    parser: ArgumentParser,
    *,
    peers: Sequence[str] | None,
    default: Sequence[str] | None = None,
    size: str = "vit_b",
) -> None:
    """`--size`, `--image-size`, `--repeats` and `--peers`, of the benchmarks that run a model.

    Args:
      peers: who can be measured; None leaves `--peers` out.
      default: who is, unless the command line says otherwise; None means all.
      size: the default size.
    """
    parser.add_argument(
        "--size",
        choices=SIZES,
        default=size,
        help="which SAM; tiny checks in a minute that everything runs (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of the padded square, a multiple of 16 (default: the size's own, 1024 or 256)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="N",
        help="turns, in each of which every contender makes one timed call (default: %(default)s)",
    )
    if peers:
        default = peers if default is None else default
        parser.add_argument(
            "--peers",
            nargs="*",
            choices=peers,
            default=list(default),
            help="whom to measure beside ours; --peers without a name: nobody (default: "
            f"{' '.join(default)})",
        )


def add_geometry_arguments(
    parser: ArgumentParser, further: Mapping[str, str] = MappingProxyType({})
) -> None:
    """`--original` and `--variants`, of the benchmarks from an image to its maps.

    Args:
      further: variants of one benchmark, and what each is.
    """
    variants = {
        "native_aspect": "encodes the image without its padding",
        "last_quarter": "has adapters in the last quarter of the blocks alone",
        **further,
    }
    told = ", ".join(f"{name} {what}" for name, what in variants.items())
    parser.add_argument(
        "--original",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the image and its maps (default: 288 384 at 1024, in proportion at other sizes)",
    )
    parser.add_argument(
        "--variants",
        nargs="*",
        choices=variants,
        default=["native_aspect"],
        help=f"further rows of ours: {told}; --variants without a name: none (default: "
        "native_aspect)",
    )


def check_peers(peers: Sequence[str]) -> None:
    """Ends the program with one line if a peer's package is not installed."""
    # The decoder of segment_anything serves both encoders.
    needed = {"torch", "segment_anything", *peers} if peers else ()
    missing = sorted(name for name in needed if importlib.util.find_spec(name) is None)
    if missing:
        sys.exit(
            f"The peers need {', '.join(missing)}: {INSTALL_PEERS} (or measure without peers: "
            "--peers)"
        )


def describe(size: str, image_size: int | None) -> dict[str, Any]:
    """The architecture of a size, as the contenders take it.

    Ends the program with one line if the image size cannot be.
    """
    if image_size is not None and (image_size < 64 or image_size % 16):
        sys.exit(f"--image-size is {image_size}, expected a multiple of 16, at least 64")
    return ask("benchmarks.ours:describe", {"size": size, "image_size": image_size})


def joint_options(
    architecture: dict[str, Any], original: Sequence[int] | None = None
) -> dict[str, Any]:
    """The options of all contenders from an image to its maps; by default it has NYUv2's shape."""
    side = architecture["encoder"]["image_size"]
    nyuv2 = [288 * side // 1024, 384 * side // 1024]
    return {"architecture": architecture, "original": original or nyuv2}


def our_contenders(
    args: argparse.Namespace, target: str, options: dict[str, Any]
) -> list[Contender]:
    """Ours as it is by default, and the variants asked for."""
    return [Contender("ours", target, options, ours=True)] + [
        Contender(f"ours, {name}", target, options | {name: True}, ours=True)
        for name in args.variants
    ]


def joint_work(
    args: argparse.Namespace, options: dict[str, Any], tasks: int = NUM_TASKS
) -> dict[str, Any]:
    """What `report.compare` is to say about them."""
    side = options["architecture"]["encoder"]["image_size"]
    return {
        "size": args.size,
        "image": [1, *options["original"], 3],
        "padded": [side, side],
        "tasks": tasks,
        **({"channels": 17} if tasks == NUM_TASKS else {}),
        "dtype": "float32",
    }
