"""Training: one loop that reads from top to bottom."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
from jaxtyping import Array

from talora_jax import config as config_lib
from talora_jax import hosts
from talora_jax.data import memory
from talora_jax.data.pipeline import train_iterator
from talora_jax.data.survey import Survey, survey
from talora_jax.errors import Stopped, check_choice
from talora_jax.sharding import batch_rows, shard_batch
from talora_jax.training import agreement, finished
from talora_jax.training.checkpoint import Checkpoints
from talora_jax.training.evaluate import print_metrics, save_pictures
from talora_jax.training.finite import OUTGROWN, check_finite
from talora_jax.training.jobs import JOBS, Job
from talora_jax.training.lines import Lines
from talora_jax.training.log import RunLog
from talora_jax.training.setup import Run, told
from talora_jax.training.step import init_state, make_relative_updates, make_train_step
from talora_jax.training.workdir import (
    PICTURES,
    Stop,
    as_begun,
    check_free,
    check_same,
    claim_workdir,
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
        hosts it is SIGTERM to one or all of them, and all end after the same step.
    """
    check_choice("config.trains", config.trains, JOBS)
    job = JOBS[config.trains]
    with interrupted(workdir) as check_interrupt, hosts.joined(config.hosts, preemptible=True):
        main_process = jax.process_index() == 0
        # Before data is prepared, which may take long.
        claim_workdir(config, workdir, write=False, more_steps=more_steps)
        config = as_begun(config, workdir)
        if main_process:
            check_free(workdir)
        hosts.agree(agreement.of_run(config, "train"))
        hosts.check_shared("--workdir", workdir)
        if finished.surely(config, workdir, job):
            return finished.told(config, workdir, job)
        lines = Lines(active=main_process)
        run = job.prepare(config, lines)
        lines("looking at what the targets hold")
        found = survey(run.dataset, job.targets(config), job.masks(config))
        with (
            held(workdir, active=main_process),
            contextlib.closing(Checkpoints(workdir)) as checkpoints,
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
    state = init_state(run)
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
        asked=job.asked(run),
    )
    if resumes:
        state, position = checkpoints.restore(state, print if main_process else lambda line: None)
        check_same(config, workdir, position, told(run))
        iterator.set_state(position)
    first_step = int(state.step)
    hosts.agree({"the step of the checkpoint": first_step})
    claim_workdir(config, workdir, write=main_process, more_steps=more_steps, results=files)
    results = [workdir / name for name in files]
    # As process 0 says: it is that one which writes them.
    if hosts.gathered(first_step == config.steps and all(path.exists() for path in results))[0]:
        return finished.told(config, workdir, job)
    steps = {"resume_step": first_step, "last_step": config.steps}
    log = RunLog(workdir, **steps, active=main_process, lines=lines)

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
    for line in found.lines():
        log.print(line)
    if first_step:
        log.print(f"Resuming after step {first_step}.")
    # A run that goes on has them in its log.
    baselines = log.logged(0, "val_constant")
    if not hosts.gathered(bool(baselines))[0]:
        log.print("measuring what answers score that never look at an image")
        baselines = job.baselines(run)
    if not first_step:
        log.write(0, "model", {"trainable_parameters": count, "parameters": total})
        log.write(0, "data", found.numbers())
        log.write(0, "val_constant", baselines)

    # Loop
    train_step = make_train_step(run)
    relative_updates = make_relative_updates(run)
    evaluator = job.evaluator(run)
    previous: dict[str, Array] = {}
    outgrown = False
    step = first_step
    with jax.set_mesh(run.mesh), log.progress(config.steps, first_step) as progress:
        check_interrupt()
        log.print("compiling the training step, unless it was before")
        with Stop() as stop:
            for step in range(first_step + 1, config.steps + 1):
                batch = shard_batch(next(iterator), run.mesh)
                state, scalars = train_step(state, run.frozen, batch)
                # One step behind: the host reads the last step's numbers while this one computes.
                check_finite(step - 1, previous)
                progress.advance(step)
                previous = scalars
                is_last = step == config.steps
                if step % config.log_every == 0 or is_last:
                    scalars |= relative_updates(state, run.frozen)
                    values = check_finite(step, scalars)
                    log.write(step, "train", values | {"step_time": progress.step_time()})
                    progress.line(step, {k: v for k, v in values.items() if k.endswith("/loss")})
                    if values.get("adapter/relative_update", 0.0) > 1 and not outgrown:
                        outgrown = True
                        log.print(OUTGROWN.format(values["adapter/relative_update"]))
                if _due(step, config.eval_every) and not is_last:
                    log.print("evaluating")
                    metrics = evaluator.metrics(state.trainable["model"])
                    log.write(step, "val", metrics)
                    print_metrics(metrics, log.print, baselines)
                asked = stop.after(step)
                if _due(step, config.checkpoint_every) or is_last or asked:
                    check_finite(step, scalars)
                    log.publish()
                    checkpoints.save(step, state, iterator.get_state() | told(run))
                if asked:
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
        log.print("evaluating")
        metrics = evaluator.metrics(learnt)
        log.print("drawing pictures")
        panels = evaluator.pictures(learnt, config.num_pictures)
    checkpoints.close()
    log.write(config.steps, "val", metrics)
    log.print(f"validation at step {config.steps}")
    print_metrics(metrics, log.print, baselines)
    if main_process:
        save_pictures(panels, workdir)
        for i, panel in enumerate(panels):
            log.picture(config.steps, f"val_{i:03d}", panel)
    job.leave(run, learnt, workdir)
    written = ", ".join(map(str, results))
    log.print(f"Wrote {written} and {len(panels)} pictures in {workdir / PICTURES}")
    log.close()
    return metrics


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
