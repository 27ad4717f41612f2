"""Images predicted in batches, as of an iterator, beside one image after the other.

The model is the shipped base with adapters like those of `rooms_tiny`, three tasks; that they have
learnt nothing makes them no faster. No contender keeps what it finds. With --before PATH, a
checkout of an earlier version, that version's one after the other takes turns, too.

    python -m benchmarks.predict                         64 images of 480×640, with probabilities
    python -m benchmarks.predict --no-probabilities
    python -m benchmarks.predict --images 8 --repeats 1  a quick check that everything runs
"""

import argparse
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks import arguments, report
from benchmarks.harness import Contender, Result, ask
from talora_jax.errors import UserError, run_command


def main(argv: list[str] | None = None) -> int:
    parser = arguments.parser(__doc__)
    add = parser.add_argument
    add("--images", type=int, default=64, metavar="N",
        help="how many (default: %(default)s)")  # fmt: skip
    add("--original", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"),
        help="size of the images in pixels (default: 480 640)")  # fmt: skip
    add("--probabilities", action=argparse.BooleanOptionalAction, default=True,
        help="whether classes have probabilities, too (default: they have)")  # fmt: skip
    add("--before", type=Path, metavar="PATH",
        help="a checkout of an earlier version, to be measured beside this one")  # fmt: skip
    add("--repeats", type=int, default=3, metavar="N",
        help="turns, in which all contenders see all images (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.before and not (args.before / "talora_jax").is_dir():
        raise UserError(f"--before: {args.before} is no checkout of talora_jax")
    with tempfile.TemporaryDirectory() as folder:
        adapter = f"{folder}/adapter.safetensors"
        ask("benchmarks.serving:make_adapter", {"path": adapter})
        work = {"images": args.images, "size": args.original, "probabilities": args.probabilities}
        options = {"adapter": adapter, "in_batches": False, **work}
        batched = options | {"in_batches": True}
        contenders = [
            Contender("in batches", "benchmarks.serving:predict", batched, True),
            Contender("one by one", "benchmarks.serving:predict", options),
        ]
        if args.before:
            checkout = str(args.before.absolute())
            earlier = options | {"checkout": checkout}
            contenders.append(Contender("before", "benchmarks.serving:predict", earlier))

        def speeds(results: list[Result]) -> dict:
            found = {r.name: args.images / r.median for r in results if r.seconds}
            told = ", ".join(f"{name} {speed:.1f}" for name, speed in found.items())
            Console().print(f"images per second: {told}")
            return {"images_per_second": found}

        return report.compare("prediction", args, contenders, work, speeds)


if __name__ == "__main__":
    run_command(main)
