"""talora_jax push SOURCE USER/NAME

Puts an adapter or a base on the Hugging Face Hub, with a card made from what it tells of itself.
There it is known by its name: talora_jax.load("user/name"), talora_jax.load_sam("user/name").
"""

from collections.abc import Sequence
from pathlib import Path

from talora_jax.errors import ArgumentParser


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    # Imported here: --help and a wrong argument need not wait for JAX.
    from talora_jax.experiments.push import push

    print(push(**vars(args)))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "source", metavar="SOURCE", help="adapter.safetensors, a base, or the workdir of a run"
    )
    parser.add_argument("name", metavar="USER/NAME", help="the repository; made if need be")
    parser.add_argument(
        "--base",
        metavar="USER/NAME",
        help="of an adapter: the repository of its base, which it then tells",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="PNG or JPEG for the card (default: the run's first)",
    )
    parser.add_argument("--license", metavar="WORD", help="the Hub's word, such as apache-2.0")
    parser.add_argument(
        "--private", action="store_true", help="make a new repository for its owner alone"
    )
    return parser
