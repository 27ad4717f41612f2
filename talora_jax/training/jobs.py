"""What a run can train, and what the loop needs to know of it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import ml_collections
import numpy as np
from flax import nnx

from talora_jax.data.dataset import Dataset
from talora_jax.data.masks import AskedMasks
from talora_jax.training import evaluate, setup
from talora_jax.training.prompted import evaluate as prompted_evaluate
from talora_jax.training.prompted import setup as prompted
from talora_jax.training.setup import Run
from talora_jax.weights import adapter_file


class Evaluator(Protocol):
    """Of one run, on its validation split."""

    def measured(self, trainable: nnx.State) -> evaluate.Measured: ...

    def metrics(self, trainable: nnx.State) -> dict[str, float]: ...

    def pictures(self, trainable: nnx.State, count: int) -> list[np.ndarray]: ...


class Job(NamedTuple):
    """One kind of training.

    Attributes:
      prepare: makes the run of a config; tells a line on each thing that takes time; `trains=False`
        makes one that makes no updates.
      targets: of a config, the targets of a sample that are trained on.
      asked: of a config and its data, what makes masks of some of them, where prompts are trained.
      evaluator: of a run.
      baselines: what a model that never looks at the image scores; beside them stand the metrics.
      results: of a config, the names of the files that a finished run leaves.
      leave: writes these, of a run and what it learnt, into its workdir; all processes call it, and
        process 0 writes.
    """

    prepare: Callable[..., Run]
    targets: Callable[[ml_collections.ConfigDict], tuple[str, ...]]
    asked: Callable[[ml_collections.ConfigDict, Dataset], AskedMasks | None]
    evaluator: Callable[[Run], Evaluator]
    baselines: Callable[[Run], dict[str, float]]
    results: Callable[[ml_collections.ConfigDict], list[str]]
    leave: Callable[[Run, nnx.State, Path], None]


def _leave_adapter(run: Run, learnt: nnx.State, workdir: Path) -> None:
    if jax.process_index() == 0:
        setup.learnt_file(run, learnt).write(workdir / adapter_file.FILE_NAME)


JOBS = {
    "tasks": Job(
        prepare=setup.prepare,
        targets=lambda config: tuple(config.tasks),
        asked=lambda config, dataset: None,
        evaluator=evaluate.Evaluator,
        baselines=evaluate.constant_baselines,
        results=lambda config: [adapter_file.FILE_NAME],
        leave=_leave_adapter,
    ),
    "prompts": Job(
        prepare=prompted.prepare,
        targets=lambda config: (*config.prompts.domains, *config.prompts.auxiliary),
        asked=lambda config, dataset: prompted.asked_masks(config, dataset, "train"),
        evaluator=prompted_evaluate.Evaluator,
        baselines=prompted_evaluate.trivial_answers,
        results=prompted.results,
        leave=prompted.write_learnt,
    ),
}
