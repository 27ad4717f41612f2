"""Training: one loop that reads from top to bottom."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
from jaxtyping import Array

from talora_jax import config as config_lib
from talora_jax import hosts, storage
from talora_jax.data import memory
from talora_jax.data.pipeline import train_iterator
from talora_jax.data.survey import Survey, survey
from talora_jax.errors import Stopped, check_choice
from talora_jax.sharding import batch_rows, shard_batch
from talora_jax.training import agreement, class_weights, finished, setup, trackers
from talora_jax.training import scalars as scalars_lib
from talora_jax.training.baselines import measured
from talora_jax.training.best import Best, check_metric
from talora_jax.training.checkpoint import Checkpoints
from talora_jax.training.evaluate import print_metrics, save_pictures
from talora_jax.training.jobs import JOBS, Job
from talora_jax.training.lines import Lines
from talora_jax.training.log import RunLog
from talora_jax.training.setup import Run, told
from talora_jax.training.start_from import source_of, started
from talora_jax.training.step import init_state, make_relative_updates, make_train_step
from talora_jax.training.trunks import Trunks
from talora_jax.training.workdir import (
    PICTURES,
    Stop,
    as_begun,
    check_free,
    check_same,
    claim_workdir,
    has_checkpoints,
    held,
    interrupted,
)


def train(
    config: ml_collections.ConfigDict, workdir: Path, *, more_steps: bool = False
) -> dict[str, float]:
    """Trains as the config says, resuming what the workdir holds; returns the final metrics.

    Args:
      more_steps: whether `config.steps` may be more than the run in the workdir had, see
        `claim_workdir`.

    Raises:
      UserError: the config, the data, the base or the workdir cannot work, or a loss is not finite.
      Stopped: Ctrl-C or SIGTERM ended the run; the step it was at is finished and saved. On many
        hosts it is SIGTERM to one or all of them, and all end after the same step. Before the first
        step and after the last one a run ends at once.
    """
    check_choice("config.trains", config.trains, JOBS)
    job = JOBS[config.trains]
    with (
        interrupted(workdir, alone=not config.hosts.coordinator) as check_interrupt,
        hosts.joined(config.hosts),
        storage.reached(workdir),
    ):
        main_process = jax.process_index() == 0
        # Before data is prepared, which may take long.
        claim_workdir(config, workdir, write=False, more_steps=more_steps)
        config = as_begun(config, workdir)
        if main_process:
            check_free(workdir)
            trackers.check(config.tracker)
        hosts.agree(agreement.of_run(config, "train"))
        hosts.check_shared("--workdir", workdir)
        if finished.surely(config, workdir, job):
            return finished.told(config.steps, workdir, job.results(config))
        if config.init and not has_checkpoints(workdir):
            setup.check(config)
            source_of(config)
        lines = Lines(active=main_process)
        run = job.prepare(config, lines)
        lines("looking at what the targets hold")
        found = survey(run.dataset, job.targets(config), job.asked(config, run.dataset))
        run = class_weights.weighted(run, found)
        with (
            held(workdir, active=main_process),
            Checkpoints(workdir) as checkpoints,
        ):
            return _train(run, found, job, workdir, checkpoints, lines, more_steps, check_interrupt)


def _train(
    run: Run,
    found: Survey,
    job: Job,
    workdir: Path,
    checkpoints: Checkpoints,
    lines: Lines,
    more_steps: bool,
    check_interrupt: Callable[[], None],
) -> dict[str, float]:
    """Trains in a workdir that is this process's alone."""
    config = run.config
    main_process = jax.process_index() == 0
    files = job.results(config)
    # Resume
    resumes = checkpoints.latest_step() is not None
    memory.remember(run.dataset, workdir, resumes=resumes, write=main_process)
    begun: list[str] = []
    if config.init and not resumes:
        run, begun = started(run)
    state = init_state(run)
    best = Best(run)
    iterator = train_iterator(
        run.dataset.splits["train"],
        tasks=job.targets(config),
        image_size=run.dataset.image_size,
        batch_size=config.batch_size,
        rows=batch_rows(run.mesh, config.batch_size).loaded,
        seed=config.seed,
        augment=config.augment,
        num_threads=config.read_threads,
        num_workers=config.read_workers,
        asked=job.asked(config, run.dataset),
    )
    if resumes:
        tell = print if main_process else lambda line: None
        kept, position = checkpoints.restore(best.kept(state), tell)
        state = best.restored(kept, position)
        check_same(config, workdir, position, told(run))
        iterator.set_state(position)
    first_step = int(state.step)
    last_step = first_step if best.is_given_up else config.steps
    hosts.agree({"the step of the checkpoint": first_step})
    baselines: dict[str, float] = {}
    if config.best and not resumes:
        baselines = measured(run, job.baselines, lines)
        check_metric(config.best, baselines)
    claim_workdir(config, workdir, write=main_process, more_steps=more_steps, results=files)
    results = [workdir / name for name in files]
    # As process 0 says: it is that one which writes them.
    if hosts.gathered(first_step == last_step and all(path.exists() for path in results))[0]:
        return finished.told(last_step, workdir, files)
    tracked = config.tracker and main_process
    log = RunLog(
        workdir,
        resume_step=first_step,
        last_step=last_step,
        active=main_process,
        lines=lines,
        tracker=trackers.Tracker(config.tracker, config, workdir, first_step) if tracked else None,
    )

    # What is at stake
    count = sum(x.size for x in jax.tree.leaves(run.trainable))
    total = count + sum(x.size for x in jax.tree.leaves(run.frozen))
    log.print(
        f"{config_lib.model_name(config.model)}, {config.adapter.kind}: "
        f"{count:,} of {total:,} parameters train; "
        f"{config.trains} {', '.join(job.targets(config))}; "
        f"{len(run.dataset.splits['train'])} training and "
        f"{len(run.dataset.splits['val'])} validation images; "
        f"{jax.device_count()} {jax.default_backend()} device(s)"
    )
    for line in (*found.lines(), *class_weights.lines(run), *begun):
        log.print(line)
    if first_step:
        log.print(f"Resuming after step {first_step}.")
    # A run that goes on has them in its log.
    baselines = baselines or log.logged(0, "val_constant")
    if not hosts.gathered(bool(baselines))[0]:
        baselines = measured(run, job.baselines, log.print)
    if not first_step:
        log.write(0, "model", {"trainable_parameters": count, "parameters": total})
        log.write(0, "data", found.numbers())
        log.write(0, "val_constant", baselines)

    # Loop
    train_step = make_train_step(run)
    relative_updates = make_relative_updates(run)
    evaluator = job.evaluator(run)
    batches = map(Trunks(run, log.print).completed, iterator) if config.trunk_dir else iterator
    previous: dict[str, Array] = {}
    outgrown = ""
    step, metrics = first_step, {}
    with jax.set_mesh(run.mesh), log.progress(config.steps, first_step) as progress:
        check_interrupt()
        with hosts.at_steps(), Stop() as stop:
            log.print("compiling the training step, unless it was before")
            for step in range(first_step + 1, last_step + 1):
                batch = shard_batch(next(batches), run.mesh)
                state, scalars = train_step(state, run.frozen, batch)
                # One step behind: the host reads the last step's numbers while this one computes.
                scalars_lib.finite(step - 1, previous)
                progress.advance(step)
                previous = scalars
                is_last, metrics = step == last_step, {}
                if step % config.log_every == 0 or is_last:
                    scalars |= relative_updates(state, run.frozen)
                    values = scalars_lib.logged(step, scalars, config)
                    log.write(step, "train", values | {"step_time": progress.step_time()})
                    progress.line(step, scalars_lib.shown(values))
                    if not outgrown and (outgrown := scalars_lib.outgrown(values)):
                        log.print(outgrown)
                learnt = state.trainable["model"]
                # Before the checkpoint, if that is to hold the best parameters.
                if config.best if is_last else _due(step, config.eval_every):
                    log.print("evaluating")
                    metrics = evaluator.metrics(learnt)
                    if config.best:
                        best.look_at(step, metrics, learnt)
                        is_last |= best.is_given_up
                if metrics and not is_last:
                    log.write(step, "val", metrics)
                    print_metrics(metrics, log.print, baselines)
                    panels = evaluator.pictures(learnt, config.num_pictures)
                    save_pictures(panels, workdir, functools.partial(log.picture, step))
                asked = stop.after(step)
                if _due(step, config.checkpoint_every) or is_last or asked:
                    scalars_lib.finite(step, scalars)
                    log.publish()
                    position = iterator.get_state() | told(run) | best.told()
                    checkpoints.save(step, best.kept(state), position)
                if asked or is_last:
                    break
            # Also asked while the last step was saved, which is what ends the loop then.
            if stop.signal:
                iterator.close()
                checkpoints.close()
                raise Stopped(
                    f"stopped after step {step} of {config.steps}, which {workdir} holds; the "
                    "same command goes on from there",
                    128 + stop.signal,
                )
        iterator.close()

        # Final evaluation; what the run leaves comes last and marks a finished one.
        learnt = state.trainable["model"]
        if not metrics:
            log.print("evaluating")
            metrics = evaluator.metrics(learnt)
        leaves = best.parameters if best.step else learnt
        log.print("drawing pictures")
        panels = evaluator.pictures(leaves, config.num_pictures)
    checkpoints.close()
    log.write(step, "val", metrics | best.row())
    log.print(f"validation at step {step}")
    print_metrics(metrics, log.print, baselines)
    if best.step:
        log.print(best.in_words(step))
    save_pictures(panels, workdir, functools.partial(log.picture, step))
    job.leave(run, leaves, workdir)
    written = ", ".join(map(str, results))
    log.print(f"Wrote {written} and {len(panels)} pictures in {workdir / PICTURES}")
    log.close()
    return best.metrics or metrics


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
