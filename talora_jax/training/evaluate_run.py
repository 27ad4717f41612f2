"""What `--mode evaluate` does: a run, or what a run starts from, on its own data or on other."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np

from talora_jax import config as config_lib
from talora_jax import config_checks, hosts, storage
from talora_jax.data.dataset import Dataset, Source
from talora_jax.data.folder import stated_class_names
from talora_jax.errors import UserError, check_choice
from talora_jax.training import agreement
from talora_jax.training.checkpoint import Checkpoints
from talora_jax.training.evaluate import evaluate
from talora_jax.training.findings import check_out
from talora_jax.training.jobs import JOBS, Job
from talora_jax.training.setup import Run, told
from talora_jax.training.start_from import started
from talora_jax.training.workdir import check_same, has_checkpoints, on_disk
from talora_jax.weights.adapter_file import FILE_NAME, AdapterFile

# Beside the run's own split.
ALL = "all"
# What an evaluation is on, and what it measures there.
_MEASURED = ("config.data.", "config.prompts.eval_masks", "config.prompts.min_pixels")
# Where and how it is computed. The rest is what the run was trained as.
_COMPUTED = (
    "config.eval_batch_size",
    "config.host_metrics",
    "config.hosts.",
    "config.mesh.",
    "config.model.attention",
    "config.model.dtype",
    "config.model.param_dtype",
    "config.model.weights",
    "config.num_pictures",
)


@dataclasses.dataclass(frozen=True)
class Whole:
    """The samples of several splits, one after the other."""

    parts: Sequence[Source]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def evaluate_start(
    config: ml_collections.ConfigDict,
    split: str,
    print_line: Callable[[str], None],
    out: str | Path | None = None,
) -> dict[str, float]:
    """Evaluates what a run of a config starts from.

    Args:
      out: a folder for what is found, see `findings`.

    Raises:
      UserError: the config, the data, the base or the adapter to start from cannot work.
    """
    out = check_out(out) if out else None
    with hosts.joined(config.hosts):
        hosts.agree(agreement.of_run(config, f"evaluate --split={split}"))
        print_line = _by_first(print_line)
        job, run, what = _prepared(config, split, print_line)
        if config.init:
            run, begun = started(run)
            for line in begun:
                print_line(line)
        evaluator, baselines = job.evaluator(run), job.baselines(run)
        metrics = evaluate(run, evaluator, baselines, None, print_line, what=what, out=out)
    if out:
        print_line(f"Wrote what was found in {out}")
    return metrics


def evaluate_run(
    workdir: Path,
    own: ml_collections.ConfigDict,
    config: ml_collections.ConfigDict,
    split: str,
    print_line: Callable[[str], None],
    *,
    best: bool = False,
    out: str | Path | None = None,
) -> dict[str, float]:
    """Evaluates the newest checkpoint of a run.

    Its pictures are written, unless other data or another split than the run's own is asked for.

    Args:
      own: the config of the run.
      config: that, with what is asked for.
      best: the parameters that are best by `config.best`, in place of the newest.
      out: a folder for what is found, see `findings`.

    Raises:
      UserError: the best of a run without `config.best`, a field that an evaluation cannot change,
        other classes than the run's, or the data, the base or the checkpoints cannot work.
    """
    out = check_out(out) if out else None
    if best and not own.best:
        raise UserError(
            f"--best: the run in {workdir} was trained without config.best, and holds its newest "
            "parameters alone"
        )
    with hosts.joined(config.hosts), storage.reached(workdir):
        hosts.agree(agreement.of_run(config, f"evaluate --split={split} --best={best}"))
        return _evaluate_joined(workdir, own, config, split, _by_first(print_line), best, out)


def _evaluate_joined(
    workdir: Path,
    own: ml_collections.ConfigDict,
    config: ml_collections.ConfigDict,
    split: str,
    print_line: Callable[[str], None],
    best: bool,
    out: Path | None,
) -> dict[str, float]:
    """`evaluate_run` for one of the processes that have come together."""
    before, asked = (config_lib.flat_fields(config_lib.plain(c)) for c in (own, config))
    changed = [name for name in asked if before[name] != asked[name]]
    fixed = [name for name in changed if not name.startswith(_MEASURED + _COMPUTED)]
    if fixed:
        listed = ", ".join(f"{name} (the run has {before[name]!r})"[:150] for name in fixed[:3])
        more = f" and {len(fixed) - 3} more fields" if len(fixed) > 3 else ""
        raise UserError(
            f"evaluate cannot change {listed}{more}: it takes the run as it was trained, on other "
            "data by --config.data.FIELD and --split. Leave them out"
        )
    config = config_checks.forget_unread(config, own)
    _fit_mesh(config, own)
    trained = _trained(workdir)
    elsewhere = any(name.startswith(_MEASURED) and name != "config.data.dir" for name in changed)
    if elsewhere and config.data.name == "folder" and not stated_class_names(config.data):
        # A folder that names no classes has the numbers of the run's.
        names = trained.get("class_names", {}).get("semantic")
        config.data.class_names = tuple(names) if names else None
    job, run, what = _prepared(config, split, print_line)
    check_same(config, workdir, trained, told(run))
    own_results = not elsewhere and split == "val"
    if elsewhere:
        what += f" of {config.data.path or config.data.name}"
        if split == "val":
            sizes = {name: len(samples) for name, samples in run.dataset.splits.items()}
            what += f" ({sizes['val']} of {sum(sizes.values())} images; --split all takes them all)"
    with on_disk(workdir):
        metrics = evaluate(
            run,
            job.evaluator(run),
            job.baselines(run),
            workdir,
            print_line,
            what=what,
            pictures=own_results,
            best=best,
            out=out,
        )
    if out:
        print_line(f"Wrote what was found in {out}")
    elif not own_results:
        print_line(f"Nothing is written: {workdir} keeps the results of its own validation split.")
    return metrics


def _by_first(print_line: Callable[[str], None]) -> Callable[[str], None]:
    """Of many processes one has the word."""
    return print_line if jax.process_index() == 0 else lambda line: None


def _fit_mesh(config: ml_collections.ConfigDict, own: ml_collections.ConfigDict) -> None:
    """Lays over the devices that are here what a run was trained on others with, unless asked."""
    mesh = config.mesh
    if mesh.to_dict() != own.mesh.to_dict():
        return
    rest = jax.device_count() / (mesh.fsdp * mesh.task)
    fits = rest.is_integer() if mesh.data == -1 else rest == mesh.data
    if not fits:
        mesh.update(config_lib.default().mesh.to_dict())


def _prepared(
    config: ml_collections.ConfigDict, split: str, print_line: Callable[[str], None]
) -> tuple[Job, Run, str]:
    """The run whose validation split is the one asked for, and what to call that."""
    check_choice("config.trains", config.trains, JOBS)
    job = JOBS[config.trains]
    run = job.prepare(config, print_line, trains=False)
    if split == "val":
        return job, run, "validation"
    check_choice("--split", split, (*run.dataset.splits, ALL))
    run = dataclasses.replace(run, dataset=_on(run.dataset, split))
    return job, run, f"{split} ({len(run.dataset.splits['val'])} images)"


def _on(dataset: Dataset, split: str) -> Dataset:
    splits = dataset.splits
    chosen = Whole(tuple(splits.values())) if split == ALL else splits[split]
    return dataclasses.replace(dataset, splits={**splits, "val": chosen})


def _trained(workdir: Path) -> dict:
    """What checkpoints, or those of before they said it the adapter, tell of their run."""
    if not has_checkpoints(workdir):
        raise UserError(f"{workdir} holds no checkpoint to evaluate: train first")
    trained = Checkpoints(workdir, read_only=True).told()
    if "base_fingerprint" in trained or not (workdir / FILE_NAME).is_file():
        return trained
    file = AdapterFile.read(workdir / FILE_NAME)
    names = {task: list(classes) for task, classes in file.class_names.items()}
    return {"base_fingerprint": file.base_fingerprint, "class_names": names}
