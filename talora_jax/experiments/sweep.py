"""python -m talora_jax.sweep --config configs/rooms_tiny.py --workdir /tmp/sweep \\
    --methods talora lora_shared lora_per_task none full stl --seeds 0 1

Trains and evaluates every combination, one after another, each in a process of its own, and ends
in the report on all of them. The same command again goes on where it was stopped or killed:
finished runs are skipped, an interrupted one resumes. A run that fails does not stop the others.

All else is one config's, changed by --config.FIELD=VALUE as in talora_jax.main. `stl` is
single-task training: for each task a run of its own, in which everything trains (--stl-adapter).
Ranks, starts, λ and the regulariser's parts are for the methods that have them; others do not run
twice.
"""

import argparse
import dataclasses
import itertools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import rich.console
from absl import logging

from talora_jax import config as config_lib
from talora_jax import config_checks, storage
from talora_jax.command_line import parse
from talora_jax.compiled import keep_programs
from talora_jax.errors import ArgumentParser, UserError, check_choice, run_command
from talora_jax.experiments.finished_run import key, settings
from talora_jax.experiments.report import report
from talora_jax.task_names import in_paths

STL = "stl"


@dataclasses.dataclass(frozen=True)
class Grid:
    """What a sweep varies; () leaves the config's value."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...] = ()
    ranks: tuple[tuple[int, int, int], ...] = ()
    orthogonal_weights: tuple[float, ...] = ()
    orthogonal_parts: tuple[tuple[str, ...], ...] = ()
    inits: tuple[str, ...] = ()
    stl_adapter: str = "full"


def plan(config: ml_collections.ConfigDict, grid: Grid) -> dict[str, ml_collections.ConfigDict]:
    """The runs in their order, by name: all methods of the first seed, then of the next.

    What a method does not read makes no second run of it.

    Raises:
      UserError: a run's config cannot work.
    """
    runs: dict[str, ml_collections.ConfigDict] = {}
    known = set()
    for seed, method, ranks, weight, parts, init in itertools.product(
        grid.seeds or (config.seed,),
        grid.methods,
        grid.ranks or (None,),
        grid.orthogonal_weights or (None,),
        grid.orthogonal_parts or (None,),
        grid.inits or (None,),
    ):
        for task in config.tasks if method == STL else (None,):
            run = config.copy_and_resolve_references()
            run.seed = seed
            run.adapter.kind = grid.stl_adapter if method == STL else method
            if task is not None:
                run.tasks = (task,)
                run.weighting.kind, run.weighting.task_weights = "fixed", (1.0,)
                run.class_weights.update(_class_weights(config, task))
            if ranks is not None:
                run.adapter.ranks = ranks
            if weight is not None:
                run.orthogonal_weight = weight
            if parts is not None:
                run.orthogonal_parts = parts
            if init is not None:
                run.adapter.init = init
            read = settings(run)
            experiment = key(read | {"seed": seed})
            if experiment in known:
                continue
            known.add(experiment)
            config_checks.check(run)

            name = [method] if task is None else [method, in_paths(task)]
            if ranks is not None and "config.adapter.ranks" in read:
                name.append("ranks" + ",".join(map(str, ranks)))
            if ranks is not None and "config.adapter.rank" in read:
                name.append(f"rank{ranks[0]}")
            if weight is not None and "config.orthogonal_weight" in read:
                name.append(f"lambda{weight}")
            if parts is not None and "config.orthogonal_parts" in read:
                name.append("+".join(parts))
            if init is not None and "config.adapter.init" in read:
                name.append(init)
            runs["-".join((*name, f"seed{seed}"))] = run
    return runs


def _class_weights(config: ml_collections.ConfigDict, task: str) -> dict[str, Any]:
    """`config.class_weights` for one of the tasks alone."""
    weights = config.class_weights
    if not any(isinstance(numbers, list | tuple) for numbers in weights.given):
        return {}
    # Imported here: --help need not wait for JAX.
    from talora_jax.tasks import with_classes
    from talora_jax.weighting.classes import given_weights

    own = given_weights(weights.given, with_classes(config.tasks)).get(task, ())
    return {"given": own, "kind": weights.kind if own else "none"}


def sweep(runs: dict[str, ml_collections.ConfigDict], directory: Path) -> dict[str, str]:
    """Trains what is not finished, each in a process of its own, and reports on all there is.

    Leaves runs/NAME (workdirs), logs/NAME.txt (what each run printed) and report/ in `directory`.
    The data is prepared once, before the first run, and the runs share what they compile, see
    `talora_jax.compiled`.

    Returns:
      The runs that failed, each with the last line it printed, or the signal that killed it.

    Raises:
      UserError: a workdir belongs to another config, the data or the base cannot be opened, or not
        one run ended well.
    """
    from talora_jax.training.workdir import as_begun, claim_workdir

    for name, config in runs.items():
        claim_workdir(config, directory / "runs" / name, write=False)
    runs = {name: as_begun(config, directory / "runs" / name) for name, config in runs.items()}
    _open_once(
        [config for name, config in runs.items() if not _ended(directory / "runs" / name, config)]
    )
    console = rich.console.Console(highlight=False)
    failed = {}
    for number, (name, config) in enumerate(runs.items(), 1):
        head = f"[{number}/{len(runs)}] {name}: "
        workdir = directory / "runs" / name
        if _ended(workdir, config):
            console.print(f"{head}finished before", markup=False, soft_wrap=True)
            continue
        begun = time.monotonic()
        log = directory / "logs" / f"{name}.txt"
        console.print(f"{head}running, {log}", markup=False, soft_wrap=True)
        status = _run(config, workdir, log)
        taken = f"after {time.monotonic() - begun:.0f} s"
        if status:
            killed = f"killed by signal {-status}"
            failed[name] = killed if status < 0 else _last_line(log)
            console.print(f"{head}failed {taken}: {failed[name]}", markup=False, soft_wrap=True)
        else:
            console.print(f"{head}done {taken}", markup=False, soft_wrap=True)
    # Earlier sweeps' runs in the same place are of the table, too.
    planned = [directory / "runs" / name for name in runs]
    there = [*planned, *sorted((directory / "runs").glob("*"))]
    report(list(dict.fromkeys(there)), directory / "report")
    return failed


def _ended(workdir: Path, config: ml_collections.ConfigDict) -> bool:
    from talora_jax.training.jobs import JOBS

    # What a run leaves comes last.
    return all((workdir / file).exists() for file in JOBS[config.trains].results(config))


def _open_once(configs: Sequence[ml_collections.ConfigDict]) -> None:
    """Opens what runs have in common: a mistake in a path is told once, before anything starts.

    Raises:
      UserError: the data, a base or an adapter to go on from cannot be opened, or does not fit a
        run's tasks or seed; the mesh does not divide a run's; a target means nothing; the weighting
        does not fit the steps; or the tracker is not installed.
    """
    from talora_jax.data import open_dataset
    from talora_jax.data.survey import survey
    from talora_jax.sharding import abstract_mesh
    from talora_jax.training import trackers
    from talora_jax.training.jobs import JOBS
    from talora_jax.training.setup import parent_of, sizes
    from talora_jax.training.start_from import source_of
    from talora_jax.weighting import losses

    models, images = set(), {}
    for config in configs:
        trackers.check(config.tracker)
        job = JOBS[config.trains]
        targets = job.targets(config)
        opened = key({"data": config.data.to_dict(), "targets": targets})
        # All that is asked of the model below.
        model = {name: config[name] for name in ("tasks", "seed", "init")}
        model |= {name: config[name].to_dict() for name in ("model", "adapter", "mesh")}
        model = key(model)
        if model not in models:
            models.add(model)
            sizes(config)
            parent_of(config)
            if config.init:
                source_of(config)
            config_checks.check_mesh(config, abstract_mesh(**config.mesh).shape)
        if opened not in images:
            config_checks.check_read(config)
            dataset = open_dataset(config.data, targets)
            survey(dataset, targets, job.asked(config, dataset))
            images[opened] = len(dataset.splits["train"])
        if config.trains == "tasks" and config.weighting.kind in losses.KINDS:
            steps_per_epoch = images[opened] // config.batch_size
            losses.make_weighting(
                config.weighting, len(config.tasks), steps_per_epoch, config.steps
            )


def _run(config: ml_collections.ConfigDict, workdir: Path, log: Path) -> int:
    """Trains in a new process, which begins from nothing: no devices held, no state. Its status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("spawn").Process(
        target=_train, args=(config.to_dict(), workdir, log)
    )
    process.start()
    process.join()
    return process.exitcode


def _train(fields: dict, workdir: Path, log: Path) -> None:
    """What the new process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The descriptors, not sys.stdout: what XLA and other libraries print is kept, too.
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.set_verbosity(logging.WARNING)
    # What one run has compiled, other seeds and a resumed run need not.
    keep_programs()
    from talora_jax.training.loop import train

    config = config_lib.from_fields(fields)

    def run() -> None:
        train(config, workdir)

    run_command(run)


def _end_with_parent() -> None:
    # A killed sweep must not leave a run behind that the next sweep would meet in its workdir.
    multiprocessing.parent_process().join()
    os._exit(1)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def read_command(arguments: Sequence[str]) -> tuple[ml_collections.ConfigDict, Path, Grid]:
    """The config with its overrides, the directory and the grid that a command line tells.

    Raises:
      UserError: an argument, a field or a value that is not allowed.
    """
    args, config = parse(_parser(), arguments)
    # Imported here: --help and most mistakes need not wait for JAX.
    from talora_jax.models.adapters import INITS, KINDS

    for method in args.methods:
        check_choice("--methods", method, (*KINDS, STL))
    if STL in args.methods and config.trains == "prompts":
        raise UserError("--methods: stl is for tasks, and config.trains is prompts")
    for init in args.inits:
        check_choice("--inits", init, INITS)
    check_choice("--stl-adapter", args.stl_adapter, KINDS)
    grid = Grid(
        tuple(dict.fromkeys(args.methods)),
        tuple(dict.fromkeys(args.seeds)),
        tuple(args.ranks),
        tuple(args.orthogonal_weights),
        tuple(args.orthogonal_parts),
        tuple(args.inits),
        args.stl_adapter,
    )
    return config, args.workdir, grid


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--config", required=True,
        help="the experiment that all runs share, a file in configs/ or its name")  # fmt: skip
    add("--workdir", required=True, type=storage.local, help="where runs/, logs/ and report/ go")
    add("--methods", required=True, nargs="+", metavar="METHOD",
        help="what config.adapter.kind can be, and stl")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=(), metavar="SEED", help="default: the config's")
    add("--ranks", nargs="+", type=_ranks, default=(), metavar="p,q,v", help="Tucker ranks")
    add("--inits", nargs="+", default=(), metavar="INIT",
        help="how Tucker factors start: what config.adapter.init can be")  # fmt: skip
    add("--orthogonal-weights", nargs="+", type=float, default=(), metavar="λ",
        help="weights of the regulariser")  # fmt: skip
    add("--orthogonal-parts", nargs="+", type=_parts, default=(), metavar="PARTS",
        help="what the regulariser looks at, as U1,U2,G")  # fmt: skip
    add("--stl-adapter", default="full", metavar="KIND",
        help="what trains in a single-task run (default: %(default)s, everything)")  # fmt: skip
    return parser


def _ranks(text: str) -> tuple[int, int, int]:
    try:
        p, q, v = (int(number) for number in text.split(","))
    except ValueError:
        message = f"{text!r}: expected three whole numbers, as 8,8,2"
        raise argparse.ArgumentTypeError(message) from None
    return p, q, v


def _parts(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sweep, which can be stopped and started again; 1 if a run failed."""
    config, directory, grid = read_command(sys.argv[1:] if arguments is None else arguments)
    try:
        failed = sweep(plan(config, grid), directory)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    for name, line in failed.items():
        print(f"failed: {name}: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
