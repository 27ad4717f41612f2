"""python -m benchmarks.going_on --adapter FILE --tabletop DATA --workdir /tmp/going_on

What an adapter of other data, classes and tasks is worth as a start: `configs/tabletop_tiny.py`
from it (config.init) and afresh, at equal steps and seeds, both with the adapter's kind, ranks and
scale. Prints each task's metrics side by side. FILE is what `configs/rooms_tiny.py` leaves, its
workdir, or a name on the Hub. The same command again goes on where it was stopped;
--config.FIELD=VALUE changes all runs.

On one CPU core six runs of 150 steps take eight minutes; one seed of fifty is a first look:

    python -m benchmarks.going_on --adapter /tmp/rooms_tiny --tabletop DATA --workdir /tmp/look \\
        --steps 50 --seeds 0
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from talora_jax.errors import ArgumentParser, UserError, run_command
from talora_jax.experiments import sweep
from talora_jax.experiments.finished_run import read_run
from talora_jax.experiments.improvement import signed
from talora_jax.weights.adapter_file import AdapterFile, find

AFRESH, BEGUN = "afresh", "from_adapter"


def same_adapter(file: AdapterFile) -> list[str]:
    """The fields that both runs have as the adapter was trained with."""
    fields = {name: file.adapter[name] for name in ("scale", "qkv", "blocks")}
    fields = {f"adapter.{name}": x for name, x in fields.items()}
    fields |= {"adapter.ranks": file.adapter["ranks"], "model.weights": file.weights}
    fields |= {"model.native_aspect": file.native_aspect}
    fields |= {"model.pixel_normalisation": file.pixel_normalisation}
    as_text = {k: tuple(x) if isinstance(x, list) else x for k, x in fields.items()}
    return [f"--config.{name}={value}" for name, value in as_text.items()]


def table(
    afresh: Sequence[Mapping[str, float]],
    begun: Sequence[Mapping[str, float]],
    signs: Mapping[str, int],
) -> str:
    """Both kinds of runs, in Markdown.

    Args:
      afresh, begun: metrics of one run for each seed, in the same order.
      signs: the metrics that are told, and 1 where higher is better, else -1.
    """
    lines = [
        "| metric | afresh | from the adapter | gain, seed by seed | seeds that gain |",
        "|---|---|---|---|---|",
    ]
    for name, sign in signs.items():
        columns = [[metrics[name] for metrics in runs] for runs in (afresh, begun)]
        gains = [sign * (b - a) for a, b in zip(*columns, strict=True)]
        cells = [_spread(values) for values in (*columns, gains)]
        lines.append(f"| {' | '.join((name, *cells))} | {sum(g > 0 for g in gains)}/{len(gains)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{deviation}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains what is not finished and prints the table; 1 if a run failed."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--adapter", required=True, metavar="FILE", help="what to start from")
    add("--tabletop", required=True, type=Path, metavar="DATA",
        help="the folder for configs/tabletop_tiny.py")  # fmt: skip
    add("--workdir", required=True, type=Path, help="where the runs go")
    add("--steps", type=int, default=150, help="default: %(default)s")
    add("--seeds", nargs="+", type=int, default=(0, 1, 2), metavar="SEED", help="default: 0 to 2")
    args, overrides = parser.parse_known_args(arguments)
    for argument in overrides:
        if not argument.startswith("--config."):
            raise UserError(f"unknown argument {argument}; see --help")
    if not args.tabletop.is_dir():
        raise UserError(f"--tabletop: there is no folder {args.tabletop}")
    file = AdapterFile.read(find(args.adapter))
    kind = file.adapter["kind"]
    command = ["--config", "tabletop_tiny", "--methods", kind, *same_adapter(file), *overrides]
    command += [f"--config.data.path={args.tabletop}", f"--config.steps={args.steps}"]
    command += ["--seeds", *map(str, args.seeds)]
    found = {}
    for name, start in ((AFRESH, []), (BEGUN, [f"--config.init={args.adapter}"])):
        status = sweep.main([*command, *start, "--workdir", str(args.workdir / name)])
        if status:
            return status
        runs = args.workdir / name / "runs"
        found[name] = [read_run(runs / f"{kind}-seed{seed}") for seed in args.seeds]
    tasks = found[AFRESH][0].tasks
    afresh, begun = ([run.metrics for run in found[name]] for name in (AFRESH, BEGUN))
    signs = {name: sign for task in tasks for name, sign in signed(task, "delta_p").items()}
    # Without config.host_metrics there are fewer.
    signs = {name: sign for name, sign in signs.items() if name in afresh[0]}
    print(table(afresh, begun, signs))
    return 0


if __name__ == "__main__":
    run_command(main)
