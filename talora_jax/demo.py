"""A page in the browser that shows what trained models see: drop an image on it, or use the camera.

  python -m talora_jax.demo --workdir /tmp/rooms_tiny
  python -m talora_jax.demo --workdir runs/rooms runs/mine.safetensors --base sam_vit_b.safetensors

Every task's map lies over the image, with its legend and the value under the pointer; a click or a
box asks the base for a mask, *Everything* finds all of them and names them. Of several runs or
adapter files the page shows one or the other. Nothing leaves this machine, and nothing is fetched:
it is served to this machine alone, unless --host says otherwise.
"""

from collections.abc import Sequence

from talora_jax import storage
from talora_jax.compiled import keep_programs
from talora_jax.errors import ArgumentParser, UserError, run_command


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port is {args.port}, expected 0 (any that is free) to 65535")
    keep_programs()
    # Imported here: --help and a wrong argument need not wait for JAX.
    from talora_jax.page.server import run

    run(args)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__, "python -m talora_jax.demo")
    add = parser.add_argument
    add("--workdir", nargs="+", type=storage.place, required=True, metavar="PATH",
        help="finished runs, or adapter files")  # fmt: skip
    add("--base", metavar="FILE", help="where the base of adapter files lies if it has moved")
    add("--host", default="127.0.0.1", metavar="ADDRESS",
        help="to listen at; 0.0.0.0 serves everybody who can reach this machine "
        "(default: %(default)s)")  # fmt: skip
    add("--port", type=int, default=8000, metavar="N", help="0 takes any (default: %(default)s)")
    return parser


if __name__ == "__main__":
    run_command(main)
