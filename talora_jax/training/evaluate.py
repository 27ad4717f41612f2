"""Metrics over a whole split, what a constant would score, and pictures."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, UInt8

from talora_jax.data import memory
from talora_jax.data.masks import AskedMasks
from talora_jax.data.pipeline import eval_batches
from talora_jax.errors import UserError
from talora_jax.sharding import batch_rows, batch_sharding, local_rows, replicated, shard_batch
from talora_jax.tasks.base import Sums
from talora_jax.training import panels as panels_lib
from talora_jax.training.best import Best
from talora_jax.training.checkpoint import Checkpoints
from talora_jax.training.findings import write_findings
from talora_jax.training.per_class import class_rows
from talora_jax.training.per_class import lines as class_lines
from talora_jax.training.setup import Run
from talora_jax.training.step import init_state
from talora_jax.training.workdir import PICTURES

Batches = Iterable[dict[str, np.ndarray]]


class Measured(NamedTuple):
    """What an evaluation finds.

    Attributes:
      metrics: as `<task>/<metric>`.
      confusions: of tasks with classes, pixels by [truth, prediction].
    """

    metrics: dict[str, float]
    confusions: Mapping[str, Int[np.ndarray, "C C"]]


class Evaluator:
    """Evaluates parameters on the validation split. Compiles once for all calls."""

    def __init__(self, run: Run):
        self._run = run

        def forward(trainable, frozen, images):
            model = nnx.merge(run.graphdef, trainable, frozen)
            return model(images)

        @functools.partial(jax.jit, out_shardings=_measured_shardings(run))
        def sums(trainable, frozen, batch):
            return _measure(run, forward(trainable, frozen, batch["image"]), batch)

        @functools.partial(jax.jit, out_shardings=replicated(run.mesh))
        def predict(trainable, frozen, batch):
            maps = forward(trainable, frozen, batch["image"])
            # Truths too: on many hosts, a picture's rows may lie on another one.
            return batch, {t.name: t.activate(maps[t.name]) for t in run.tasks}

        self._sums, self._predict = sums, predict

    def measured(self, trainable: nnx.State) -> Measured:
        """What is found over the whole validation split."""
        batches = split_batches(self._run, "val")
        totals = _totals(
            self._run, lambda batch: self._sums(trainable, self._run.frozen, batch), batches
        )
        confusions = {name: x["confusion"] for name, x in totals.items() if "confusion" in x}
        return Measured(_summarise(self._run, totals), confusions)

    def metrics(self, trainable: nnx.State) -> dict[str, float]:
        """Metrics of every task as `<task>/<metric>`, over the whole validation split."""
        return self.measured(trainable).metrics

    def pictures(self, trainable: nnx.State, count: int) -> list[np.ndarray]:
        """Panels [Y, X, 3] of the first images of the validation split."""
        panels: list[np.ndarray] = []
        for batch in split_batches(self._run, "val"):
            if len(panels) >= count:
                break
            truth, prediction = jax.device_get(
                self._predict(trainable, self._run.frozen, shard_batch(batch, self._run.mesh))
            )
            panels += [
                panels_lib.panel(
                    truth["image"][i],
                    {name: x[i] for name, x in truth.items()},
                    {name: x[i] for name, x in prediction.items()},
                    self._run.tasks,
                )
                for i in np.flatnonzero(truth["valid"])
            ]
        return panels[:count]


def constant_baselines(run: Run) -> dict[str, float]:
    """What the best constant, learnt from the training split, scores on the validation split.

    The most frequent class, the mean depth, the mean normal, the frequency of edges: the least
    that a model must beat.
    """
    statistics = jax.jit(
        lambda batch: {t.name: t.statistics(batch[t.name]) for t in run.tasks},
        out_shardings=replicated(run.mesh),
    )
    totals: Totals = {}
    for batch in split_batches(run, "train", image=False):
        _add(totals, jax.device_get(statistics(shard_batch(batch, run.mesh))))
    constants = {t.name: jnp.asarray(t.constant(totals[t.name])) for t in run.tasks}

    # Constants are an argument, or XLA would spend a minute on folding them.
    @functools.partial(jax.jit, out_shardings=_measured_shardings(run))
    def sums(constants, batch):
        shapes = {t.name: (*batch[t.name].shape[:3], t.channels) for t in run.tasks}
        maps = {name: jnp.broadcast_to(constants[name], shape) for name, shape in shapes.items()}
        return _measure(run, maps, batch)

    batches = split_batches(run, "val", image=False)
    return _summarise(run, _totals(run, functools.partial(sums, constants), batches))


def evaluate(
    run: Run,
    evaluator: Any,
    baselines: Mapping[str, float],
    workdir: Path | None,
    print_line: Callable[[str], None],
    *,
    what: str = "validation",
    pictures: bool = True,
    best: bool = False,
    out: Path | None = None,
) -> dict[str, float]:
    """Evaluates the newest checkpoint of a workdir on the validation split, and writes pictures.

    Args:
      evaluator: of the run, see `jobs.Evaluator`.
      baselines: what metrics stand beside.
      workdir: None to evaluate what a run starts from.
      what: the name of what stands for the validation split.
      pictures: False leaves those of the workdir as they are.
      best: the best parameters by `config.best` that the checkpoint holds, not the newest.
      out: a folder for all that is found, see `findings`.

    Raises:
      UserError: the workdir has no checkpoint, or that no best parameters yet.
    """
    learnt, step = run.trainable, 0
    if workdir is not None:
        memory.tell(run.dataset, workdir, print_line)
        # The run may be training.
        checkpoints = Checkpoints(workdir, read_only=True)
        if checkpoints.latest_step() is None:
            raise UserError(f"{workdir} holds no checkpoint to evaluate: train first")
        keeper = Best(run)
        kept, position = checkpoints.restore(keeper.kept(init_state(run)), print_line)
        state = keeper.restored(kept, position)
        learnt, step = state.trainable["model"], int(state.step)
        if best:
            if not keeper.step:
                raise UserError(f"--best: no evaluation yet among the {step} steps of {workdir}")
            learnt, step = keeper.parameters, keeper.step
            what = f"the best by {run.config.best}: {what}"
    print_line("evaluating")
    metrics, confusions = evaluator.measured(learnt)
    print_line(f"{what} at step {step}")
    print_metrics(metrics, print_line, baselines)
    by_class = {
        task: class_rows(task, confusions[task.name], metrics, baselines)
        for task in run.tasks
        if task.name in confusions
    }
    for task, rows in by_class.items():
        for line in class_lines(task, rows):
            print_line(line)
    if out is None and (workdir is None or not pictures):
        return metrics
    panels = evaluator.pictures(learnt, run.config.num_pictures)
    if workdir is not None and pictures:
        save_pictures(panels, workdir)
    if out is not None and jax.process_index() == 0:
        images = len(run.dataset.splits["val"])
        about = {"evaluated": what, "step": step, "images": images}
        about |= {"metrics": metrics, "constant": dict(baselines)}
        rows = {task.name: rows for task, rows in by_class.items()}
        matrices = [(task, confusions[task.name]) for task in by_class]
        write_findings(out, about, rows, matrices, panels)
    return metrics


def save_pictures(
    panels: Sequence[UInt8[np.ndarray, "H W 3"]],
    workdir: Path,
    log: Callable[[str, np.ndarray], None] | None = None,
) -> None:
    """Writes a workdir's pictures, over those that are there; process 0 does.

    Args:
      log: called with the name and the pixels of each.
    """
    for i, panel in enumerate(panels if jax.process_index() == 0 else ()):
        name = f"val_{i:03d}"
        panels_lib.save_png(panel, workdir / PICTURES / f"{name}.png")
        if log:
            log(name, panel)


def print_metrics(
    metrics: Mapping[str, float],
    print_line: Callable[[str], None],
    baselines: Mapping[str, float] | None = None,
) -> None:
    """A line for each metric, beside the constant baseline's where it is known.

    Without the single classes, which have a table of their own.
    """
    for name, value in metrics.items():
        if "/iou/" in name:
            continue
        beside = f"  (constant: {baselines[name]:.4f})" if baselines and name in baselines else ""
        print_line(f"  {name:<34} {value:10.4f}{beside}")


def split_batches(
    run: Run, split: str, asked: AskedMasks | None = None, *, image: bool = True
) -> Batches:
    """This process's batches of a whole split: the tasks' targets, or the masks of `asked`; the
    targets also without their `image`."""
    return eval_batches(
        run.dataset.splits[split],
        tasks=run.config.tasks if asked is None else asked.domains,
        image_size=run.dataset.image_size,
        batch_size=run.config.eval_batch_size,
        rows=batch_rows(run.mesh, run.config.eval_batch_size).loaded,
        asked=asked,
        image=image,
    )


Tree = TypeVar("Tree", bound=Mapping)
Totals = dict[str, dict[str, np.ndarray]]  # by task, in 64 bits
# What `_measure` gives.
Step = Callable[[dict[str, Array]], tuple[dict[str, Sums], dict[str, dict[str, Array]]]]


def _measure(
    run: Run, maps: Mapping[str, Array], batch: Mapping[str, Array]
) -> tuple[dict[str, Sums], dict[str, dict[str, Array]]]:
    """The tasks' sums over a batch, and what their host metrics are made from. Under jit."""
    sums = {t.name: t.metrics(maps[t.name], batch[t.name]) for t in run.tasks}
    if not run.config.host_metrics:
        return sums, {}
    return sums, {t.name: t.host_inputs(maps[t.name], batch[t.name]) for t in run.tasks}


def _measured_shardings(run: Run) -> tuple[NamedSharding, NamedSharding]:
    """Of what `_measure` gives: each process does the host's work on its own rows of the batch."""
    return replicated(run.mesh), batch_sharding(run.mesh)


def _totals(run: Run, step: Step, batches: Batches) -> Totals:
    """The sums of what `step` measures, over all batches of all processes."""
    totals: Totals = {}
    host_totals: Totals = {}
    counted = batch_rows(run.mesh, run.config.eval_batch_size).counted
    for batch in batches:
        sums, host_inputs = step(shard_batch(batch, run.mesh))
        _add(totals, jax.device_get(sums))
        rows = jax.tree.map(lambda x: local_rows(x)[counted], host_inputs)
        tasks = [task for task in run.tasks if rows.get(task.name)]
        _add(host_totals, {t.name: t.host_metrics(rows[t.name]) for t in tasks})
    _add(totals, over_processes(host_totals))
    return totals


def _summarise(run: Run, totals: Totals) -> dict[str, float]:
    return {
        f"{task.name}/{name}": value
        for task in run.tasks
        for name, value in task.summarise(totals[task.name]).items()
    }


def _add(totals: Totals, sums: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Adds a batch's sums in 64 bits, which those of a batch need not have."""
    for task, values in sums.items():
        into = totals.setdefault(task, {})
        for name, value in values.items():
            wide = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64
            into[name] = into.get(name, 0) + value.astype(wide)


def over_processes(totals: Tree) -> Tree:
    """The sums over all processes of the arrays that each has."""

    def add(value: np.ndarray) -> np.ndarray:
        # As bytes, since JAX would make 32 bits of 64.
        octets = multihost_utils.process_allgather(np.frombuffer(value.tobytes(), np.uint8))
        parts = [np.frombuffer(part.tobytes(), value.dtype) for part in octets]
        return np.sum(parts, axis=0).reshape(value.shape)

    return jax.tree.map(add, totals) if jax.process_count() > 1 else totals
