"""python -m benchmarks.evidence --workdir /tmp/evidence [--tabletop DATA] [--seeds 0 1 2 3 4]

The runs behind docs/evidence.md, in sweeps with a report each: what adapters add to decoders alone
on the shipped SAM, what their ranks, starts and regulariser matter, how few images suffice. The
same command again goes on where it was stopped; see `talora_jax.sweep --help`.
--config.FIELD=VALUE changes all runs.

On 2 CPU cores a run takes three to six minutes. Two commands at once in one workdir, with other
seeds and each on a core of its own, take little more than half the time:

    taskset -c 0 python -m benchmarks.evidence --workdir /tmp/evidence --parts rooms --seeds 0 1
    taskset -c 1 python -m benchmarks.evidence --workdir /tmp/evidence --parts rooms --seeds 2 3
"""

from collections.abc import Sequence
from pathlib import Path

from talora_jax.errors import ArgumentParser, UserError, run_command
from talora_jax.experiments import sweep

# Single tasks have a LoRA each: the whole encoder trained harms here, which would flatter the rest.
_METHODS = "--methods none talora lora_per_task lora_shared full stl --stl-adapter lora_shared"
# What runs, and in which folder. What is varied stands beside the recipe's own runs, in `rooms`.
PARTS = {
    "rooms": ("rooms", "rooms_tiny", _METHODS),
    "tabletop": ("tabletop", "tabletop_tiny", _METHODS),
    "inits": ("rooms", "rooms_tiny", "--methods talora --inits orthonormal published"),
    # The authors' start, λ, scale, dropout and learning rate.
    "published": (
        "published",
        "rooms_tiny",
        "--methods talora --inits published --orthogonal-weights 1.0 "
        "--config.adapter.scale=0.5 --config.adapter.dropout=0.1 "
        "--config.optimizer.learning_rate=1e-3",
    ),
    "ranks": ("rooms", "rooms_tiny", "--methods talora --ranks 8,8,3 16,16,3 32,32,3"),
    "weights": ("rooms", "rooms_tiny", "--methods talora --orthogonal-weights 0.0 1e-2"),
    "parts": ("rooms", "rooms_tiny", "--methods talora --orthogonal-parts U1,U2 G"),
    "images_10": (
        "images_10",
        "rooms_tiny",
        "--methods none talora --config.data.train_frames=100",
    ),
    "images_30": (
        "images_30",
        "rooms_tiny",
        "--methods none talora --config.data.train_frames=300",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sweeps one after another; 1 if a run failed."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, help="where each part's folder goes")
    add("--tabletop", type=Path, metavar="DATA",
        help="the folder for configs/tabletop_tiny.py; without it that part is out")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=range(5), metavar="SEED", help="default: 0 to 4")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=f"default: all of {', '.join(PARTS)}")  # fmt: skip
    args, overrides = parser.parse_known_args(arguments)
    for argument in overrides:
        if not argument.startswith("--config."):
            raise UserError(f"unknown argument {argument}; see --help")
    if args.tabletop is not None and not args.tabletop.is_dir():
        raise UserError(f"--tabletop: there is no folder {args.tabletop}")

    failed = 0
    for part in args.parts:
        folder, config, grid = PARTS[part]
        command = ["--config", config, *grid.split(), *overrides]
        if config == "tabletop_tiny":
            if args.tabletop is None:
                continue
            command.append(f"--config.data.path={args.tabletop}")
        command += ["--seeds", *map(str, args.seeds), "--workdir", str(args.workdir / folder)]
        status = sweep.main(command)
        if status == 130:  # stopped from the keyboard
            return status
        failed |= status
    return failed


if __name__ == "__main__":
    run_command(main)
