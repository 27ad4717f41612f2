"""What a config may say: every field's range and choices, and what of it must fit together.

Nothing here is prepared or compiled. A mistake is told with the field's name and what is expected.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from talora_jax import metrics, storage
from talora_jax.config import (
    DEFAULT_SIZE,
    DTYPES,
    GROUPS,
    LEARNS,
    OPTIMIZERS,
    OPTIONAL,
    TRACKERS,
    TRAINS,
    default,
    flat_fields,
    model_name,
    plain,
)
from talora_jax.errors import (
    Refusals,
    UserError,
    check_choice,
    did_you_mean,
    printable,
    short,
    tell_together,
)
from talora_jax.task_names import check_name


class _Range(NamedTuple):
    """The numbers that a field can be; `open` where the lower or the upper end is not one."""

    low: float
    high: float = math.inf
    open: str = ""
    note: str = ""

    def holds(self, x: float) -> bool:
        above = self.low < x if "low" in self.open else self.low <= x
        return above and (x < self.high if "high" in self.open else x <= self.high)

    def told(self, x: float) -> str:
        """What is expected in place of x."""
        if self.low == 1:
            return "at least 1" if x < 1 else f"at most {self.high}"
        if self.high < math.inf:
            below = "below " if "high" in self.open else ""
            return f"{self.low} to {below}{self.high}{self.note}"
        return "above 0" if "low" in self.open else f"{self.low} or more"


_RANGES = {
    "seed": _Range(0, 2**32 - 1),
    "data.seed": _Range(0, 2**32 - 1),
    "data.train_frames": _Range(1),
    "data.val_frames": _Range(1),
    "data.depth_scale": _Range(0, open="low"),
    "data.max_depth": _Range(0, open="low"),
    "data.part_weights": _Range(0, open="low"),
    "adapter.scale": _Range(0),
    "adapter.dropout": _Range(0, 1, "high"),
    "prompts.masks": _Range(1, 255),  # as many as `talora_jax.data.masks` can tell apart
    "prompts.clicks": _Range(0),
    "prompts.min_pixels": _Range(1),
    "prompts.auxiliary_weight": _Range(0),
    "prompts.eval_masks": _Range(1, 255),
    "optimizer.learning_rate": _Range(0),
    "optimizer.warmup": _Range(0, 1, "high", ": a fraction of the steps"),
    "optimizer.weight_decay": _Range(0),
    "optimizer.clip_norm": _Range(0),
    **{f"optimizer.lr_scale.{group}": _Range(0) for group in GROUPS},
    "weighting.task_weights": _Range(0),
    "weighting.famo_learning_rate": _Range(0, open="low"),
    "weighting.famo_decay": _Range(0),
    "weighting.stch_mu": _Range(0, open="low"),
    "weighting.stch_warmup_epochs": _Range(0),
    "weighting.cagrad_c": _Range(0),
    "weighting.nash_update_every": _Range(1),
    "weighting.fairgrad_alpha": _Range(0, open="low"),
    "weighting.db_mtl_beta": _Range(0, 1, "high"),
    "orthogonal_weight": _Range(0),
    "batch_size": _Range(1),
    "accumulate": _Range(1),
    "eval_batch_size": _Range(1),
    "steps": _Range(1),
    "log_every": _Range(1),
    "eval_every": _Range(0),
    "patience": _Range(0),
    "checkpoint_every": _Range(0),
    "num_pictures": _Range(0),
    "read_threads": _Range(0),
    "read_workers": _Range(0),
    "mesh.fsdp": _Range(1),
    "mesh.task": _Range(1),
}
# Of float32 and int32, in which a run computes and counts.
_LARGEST = 3.4e38
_MOST = 2**31 - 1
# Of fields that are tuples of numbers: what is expected, how many, and of which type.
_ENTRIES = {
    "adapter.ranks": ("three whole numbers p, q, v, as (32, 32, 4)", 3, int),
    "adapter.qkv": ("True or False for each of q, k and v", 3, bool),
    "adapter.blocks": ("a whole number or two, as -6 for the last 6 or (6, 12)", None, int),
    "augment.scale_range": ("a lowest and a highest scale", 2, float),
    "data.image_size": ("two whole numbers, height and width", 2, int),
    "data.intrinsics": ("four numbers, fx, fy, cx, cy", 4, float),
    "data.part_weights": ("a number for each part", None, float),
    "prompts.aspects": ("a lowest and a highest height / width", 2, float),
    "augment.scales": ("numbers", None, float),
    "weighting.task_weights": ("a number for each task", None, float),
}


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses values that cannot work, before anything is prepared or compiled.

    Raises:
      UserError: tells of each field that is wrong its value and what is allowed, a line each.
    """
    tell_together(refusals(config).by_field.values())


def refusals(config: ml_collections.ConfigDict) -> Refusals:
    """What `check` refuses, by the dotted name of the field that each sentence is about."""
    # Imported here: a command that reads configs need not have JAX.
    from talora_jax import hosts, tasks
    from talora_jax.models import adapters, attention_kernels, remat, sam
    from talora_jax.weighting import classes, gradients, losses

    found = Refusals()
    defaults = flat_fields(default().to_dict())
    for field, value in flat_fields(config.to_dict()).items():
        name = field.removeprefix("config.")
        found.ask(functools.partial(_check_number, name, value, type(defaults.get(field))), name)
    for name, allowed in _PLACES.items():
        value = operator.attrgetter(name)(config)
        if value:
            found.ask(functools.partial(_check_place, name, value, allowed), name)
    choices = {
        "trains": TRAINS,
        "optimizer.kind": OPTIMIZERS,
        "model.size": sam.SIZES,
        "model.attention": attention_kernels.ATTENTION,
        "model.remat": ("auto", *remat.REMAT),
        "model.dtype": DTYPES,
        "model.param_dtype": DTYPES,
        "adapter.kind": adapters.KINDS,
        "adapter.init": adapters.INITS,
        "weighting.kind": losses.KINDS + gradients.KINDS,
        "class_weights.kind": classes.KINDS,
    }
    if config.tracker:
        choices["tracker"] = TRACKERS
    for name, allowed in choices.items():
        value = operator.attrgetter(name)(config)
        if value is not None:
            found.ask(functools.partial(check_choice, f"config.{name}", value, allowed), name)
    if config.trains == "prompts":
        prompts = config.prompts
        found.ask(
            lambda: _check_names("prompts.domains", prompts.domains, tasks.MASKS), "prompts.domains"
        )
        if prompts.auxiliary:
            found.ask(
                lambda: _check_names("prompts.auxiliary", prompts.auxiliary, tasks.TASKS),
                "prompts.auxiliary",
            )
        found.ask(lambda: _check_learns(config), "prompts.learns", "adapter.kind")
        found.ask(lambda: _check_aspects(prompts.aspects), "prompts.aspects")
    else:
        found.ask(lambda: _check_names("tasks", config.tasks, tasks.TASKS), "tasks")
    # What an `AdapterConfig` reads, the one that it is about first.
    adapter = ("adapter.blocks", *(f"adapter.{name}" for name in config.adapter))
    if not config.model.weights:
        found.ask(
            lambda: check_ranks(
                config, sam.SIZES[config.model.size or DEFAULT_SIZE]().encoder.width
            ),
            "adapter.ranks",
            "model.size",
        )
        found.ask(
            lambda: adapters.AdapterConfig.of(config.adapter).adapted(
                sam.SIZES[config.model.size or DEFAULT_SIZE]().encoder.depth
            ),
            *adapter,
            "model.size",
        )
    found.ask(
        lambda: adapters.AdapterConfig.of(config.adapter),
        *adapter,
    )
    found.ask(lambda: _check_adapted(config), "adapter.qkv")
    found.ask(
        lambda: _check_orthogonal(config.orthogonal_parts, adapters.ORTHOGONAL_PARTS),
        "orthogonal_parts",
    )
    found.ask(
        lambda: _check_task_weights(config),
        *("weighting.task_weights", "weighting.kind", "tasks", "trains"),
    )
    found.ask(
        lambda: _check_class_weights(config),
        *("class_weights.given", "class_weights.kind", "tasks", "trains"),
    )
    found.ask(lambda: _check_parts(config), "batch_size", "accumulate")
    found.ask(lambda: _check_init(config), "init", "adapter.extend", "trains")
    found.ask(
        lambda: _check_shared(config, gradients.KINDS), "weighting.kind", "adapter.extend", "trains"
    )
    trunk = ("trunk_dir", "trains", "hosts.coordinator")
    found.ask(lambda: _check_trunk(config), *trunk, *(f"augment.{name}" for name in config.augment))
    found.ask(lambda: _check_best(config), "best", "patience", "eval_every", "tasks", "trains")
    found.ask(lambda: hosts.check(config.hosts), *(f"hosts.{name}" for name in config.hosts))
    return found


def _check_adapted(config: ml_collections.ConfigDict) -> None:
    if not any(config.adapter.qkv):
        raise UserError(
            "config.adapter.qkv switches q, k and v all off; for no adapter set "
            "config.adapter.kind=none"
        )


def _check_orthogonal(parts: Sequence[str], known: Sequence[str]) -> None:
    for part in parts:
        check_choice("config.orthogonal_parts", part, known)
    if not parts:
        raise UserError(
            "config.orthogonal_parts is empty; for no regulariser set config.orthogonal_weight=0"
        )
    if len(set(parts)) < len(parts):
        raise UserError(f"config.orthogonal_parts names a part twice: {', '.join(parts)}")


def _check_task_weights(config: ml_collections.ConfigDict) -> None:
    weights = config.weighting.task_weights
    if config.weighting.kind == "fixed" and config.trains == "tasks":
        if len(weights) != len(config.tasks) or not any(weights):
            raise UserError(
                f"config.weighting.task_weights is {_short(weights)}, expected a weight for each "
                f"of the {len(config.tasks)} tasks, not all of them 0; or set "
                "config.weighting.kind=equal"
            )


def _check_class_weights(config: ml_collections.ConfigDict) -> None:
    from talora_jax import tasks
    from talora_jax.weighting import classes

    weights = config.class_weights
    if weights.kind != "none" and config.trains == "prompts":
        raise UserError("config.class_weights are of tasks, and config.trains=prompts has none")
    classes.given_weights(weights.given, tasks.with_classes(config.tasks))
    if (weights.kind == "given") != bool(weights.given):
        raise UserError(
            f"config.class_weights.given is {_short(weights.given)} and "
            f"config.class_weights.kind={weights.kind}: expected numbers of kind=given and of no "
            "other"
        )


def _check_parts(config: ml_collections.ConfigDict) -> None:
    if config.batch_size % config.accumulate:
        raise UserError(
            f"config.batch_size={config.batch_size} is not divisible by "
            f"config.accumulate={config.accumulate}"
        )


def _check_init(config: ml_collections.ConfigDict) -> None:
    if config.init and config.trains == "prompts":
        raise UserError(
            "config.init names an adapter, and a promptable SAM starts from a base: set "
            "config.model.weights"
        )
    if config.adapter.extend and config.trains == "prompts":
        raise UserError(
            "config.adapter.extend adds tasks to an adapter, and config.trains=prompts has none: "
            "leave it out"
        )
    if config.init and config.adapter.extend:
        raise UserError(
            "config.init starts from an adapter of which all trains, config.adapter.extend adds "
            "tasks to one that stays as it is: set one of them"
        )


def _check_shared(config: ml_collections.ConfigDict, balances: Sequence[str]) -> None:
    """Refuses to weigh, or to balance, where nothing is weighed or shared.

    Args:
      balances: the kinds that make one gradient of the tasks' gradients of what they share.
    """
    kind, usual = config.weighting.kind, default().weighting.kind
    if config.trains == "prompts" and kind != usual:
        raise UserError(
            f"config.weighting.kind={kind} is of tasks, and config.trains=prompts has none: leave "
            f"it out, or set it to {usual!r}"
        )
    if config.adapter.extend and kind in balances:
        raise UserError(
            f"config.weighting.kind={kind} balances what tasks share, and with "
            "config.adapter.extend that stays as it is: set a kind that weighs losses, as equal"
        )


def _check_trunk(config: ml_collections.ConfigDict) -> None:
    """Refuses to keep what does not come back, see `training.trunks`."""
    if not config.trunk_dir:
        return
    from talora_jax.data.transforms import Augment

    told = "config.trunk_dir keeps what the blocks before the first adapted one give"
    if config.trains == "prompts":
        raise UserError(f"{told} to tasks, and config.trains=prompts has none: leave it out")
    fields = [x for x in dataclasses.fields(Augment) if x.name not in ("size", "flip")]
    for field in fields:  # whose defaults leave images as they are
        found = config.augment[field.name]
        if (tuple(found) if isinstance(found, list) else found) != field.default:
            raise UserError(
                f"{told} of images that come back the same, and config.augment.{field.name} is "
                f"{_short(found)}: set it to {field.default}"
            )
    if config.hosts.coordinator:
        raise UserError(f"{told} in one process: leave it out, or config.hosts.coordinator")


def _check_best(config: ml_collections.ConfigDict) -> None:
    """Refuses what cannot be a metric; which there are is known when the data is, see
    `training.best.check_metric`."""
    if not config.best:
        if config.patience:
            raise UserError(
                f"config.patience={config.patience} waits for gains in no metric: set config.best, "
                "as semantic/miou"
            )
        return
    task, _, metric = config.best.partition("/")
    said = f"config.best={printable(config.best, 80)}"
    check_choice(said, task, config.prompts.domains if config.trains == "prompts" else config.tasks)
    if metrics.sign(config.best) is None:
        hint = did_you_mean(metric.rpartition("/")[2], metrics.SIGNS)
        raise UserError(
            f"{said}: expected a metric that has a better way, as "
            f"semantic/miou or depth/pooled/abs_err{hint}"
        )
    if not config.eval_every:
        raise UserError(
            f"{said} is looked for among evaluations on the way: set "
            f"config.eval_every, as {max(1, config.steps // 10)}"
        )


def _check_number(name: str, value: Any, kind: type) -> None:
    """Refuses what is not finite, of another type or length than the field's, or out of range."""
    field = f"config.{name}"
    expected, length, kind = _ENTRIES.get(name, ("a number", None, kind))
    entries = value if isinstance(value, tuple | list) else (value,)
    if value is None and name not in OPTIONAL:
        raise UserError(f"{field} is None, expected a value")
    if value is None:
        return
    if kind in (bool, int, float):
        expected = "True or False" if name not in _ENTRIES and kind is bool else expected
        if (length and len(entries) != length) or not all(_is(kind, x) for x in entries):
            raise UserError(f"{field} is {_short(value)}, expected {expected}")
    if any(isinstance(x, float) and not abs(x) <= _LARGEST for x in entries):
        raise UserError(f"{field} is {_short(value)}, expected a finite number")
    for x in entries if name in _RANGES else ():
        if not _RANGES[name].holds(x):
            raise UserError(f"{field} is {_short(value)}, expected {_RANGES[name].told(x)}")
    if "seed" not in name and any(isinstance(x, int) and x > _MOST for x in entries):
        raise UserError(f"{field} is {_short(value)}, expected at most {_MOST}")


# What of a path can be: some places serve all, others hold workdirs, bases and adapters alone.
_PLACES = {
    "init": storage.place,
    "data.dir": storage.local,
    "data.path": storage.local,
    "data.description": storage.local,
    "model.weights": storage.place,
    "adapter.extend": storage.place,
    "trunk_dir": storage.local,
}


def _check_place(name: str, path: str, allowed: Callable[[str], Any]) -> None:
    try:
        allowed(path)
    except UserError as error:
        raise UserError(f"config.{name}: {error}") from None


def _is(kind: type, x: Any) -> bool:
    """Whether x is of a field's kind: True is no number, and a whole number is a float, too."""
    if kind is bool or isinstance(x, bool):
        return kind is bool and isinstance(x, bool)
    return isinstance(x, int | float if kind is float else int)


def _short(value: Any) -> str:
    return short(tuple(value) if isinstance(value, list) else value, 80)


def _check_names(field: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    if not names:
        raise UserError(f"config.{field} is empty: name at least one of {', '.join(known)}")
    for name in names:
        check_name(f"config.{field}", name, known)
    if len(set(names)) < len(names):
        what = "task" if field == "tasks" else "target"
        raise UserError(f"config.{field} names a {what} twice: {', '.join(names)}")


def _check_learns(config: ml_collections.ConfigDict) -> None:
    prompts = config.prompts
    check_choice("config.prompts.learns", prompts.learns, LEARNS)
    if prompts.learns == "iou_head":
        if config.adapter.kind not in ("none", "full") or config.adapter.blocks:
            raise UserError(
                "config.prompts.learns=iou_head trains no adapter; set config.adapter.kind=none "
                "and leave config.adapter.blocks out"
            )
        if prompts.auxiliary:
            raise UserError(
                "config.prompts.learns=iou_head changes no embedding; leave "
                "config.prompts.auxiliary empty"
            )


def _check_aspects(aspects: tuple[float, ...] | None) -> None:
    if aspects is not None and not (len(aspects) == 2 and 0 < aspects[0] <= aspects[1]):
        raise UserError(
            f"config.prompts.aspects is {tuple(aspects)}, expected a lowest height / width above 0 "
            "and a highest one"
        )


def check_read(config: ml_collections.ConfigDict) -> None:
    """Refuses fields of `data` that its data set does not read, where they would do nothing.

    Raises:
      UserError: no data set has that name, or it names the field and the data sets that read it.
    """
    from talora_jax.data import DATASETS, fields_read

    if unread := _unread(config.data):
        field, unset = next(iter(unread.items()))
        who = ", ".join(name for name in DATASETS if field in fields_read(name))
        raise UserError(
            f"config.data.{field} is {_short(config.data[field])}, which {config.data.name} does "
            f"not read, only {who}: leave it out, or set it to {unset!r}"
        )


def forget_unread(
    config: ml_collections.ConfigDict, began: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """A config of which fields of `data` are at their defaults that its data set does not read, as
    far as a run began with the same: there was a version that took them, and nothing depends on
    them.

    Args:
      began: the config of that run.
    """
    from talora_jax.data import DATASETS

    before, now = plain(began)["data"], plain(config)["data"]
    config = config.copy_and_resolve_references()
    if config.data.name in DATASETS:
        for field, unset in _unread(config.data).items():
            if before[field] == now[field]:
                config.data[field] = unset
    return config


def _unread(data: ml_collections.ConfigDict) -> dict[str, Any]:
    """The defaults of the fields that are set otherwise, and that the data set does not read."""
    from talora_jax.data import fields_read

    read = fields_read(data.name)
    return {
        field: unset
        for field, unset in default().data.items()
        if field not in read and data[field] not in (unset, OPTIONAL.get(f"data.{field}"))
    }


def check_ranks(config: ml_collections.ConfigDict, width: int) -> None:
    """Refuses ranks that an encoder of this width does not have.

    Raises:
      UserError: names the rank and what is allowed.
    """
    for rank, most, name in zip(
        config.adapter.ranks, (width, 3 * width, None), ("p", "q", "v"), strict=True
    ):
        if rank < 1 or (most and rank > most):
            raise UserError(
                f"config.adapter.ranks: {name} is {rank}, expected at least 1"
                + (f" and at most {most} for {model_name(config.model)}" if most else "")
            )


def check_trunk(config: ml_collections.ConfigDict, depth: int) -> None:
    """Refuses to keep what no block gives, of an encoder of so many.

    Raises:
      UserError: there is no block before the first adapted one.
    """
    from talora_jax.models.adapters import AdapterConfig

    if config.trunk_dir and not AdapterConfig.of(config.adapter).adapted(depth).start:
        raise UserError(
            "config.trunk_dir keeps what the blocks before the first adapted one give, and with "
            f"config.adapter.blocks={config.adapter.blocks} there are none: set it, as -3 for the "
            "last three"
        )


def check_mesh(
    config: ml_collections.ConfigDict, mesh_shape: Mapping[str, int], *, trains: bool = True
) -> None:
    """Refuses batches and tasks that the mesh does not divide; prompts have no tasks.

    Args:
      trains: else there are no updates, and their batches may be any.

    Raises:
      UserError: tells of each field what it must be divisible by, a line each.
    """
    shares = mesh_shape["data"] * mesh_shape["fsdp"]
    sizes = {"eval_batch_size": config.eval_batch_size}
    if trains:
        at_once = {"batch_size / config.accumulate": config.batch_size // config.accumulate}
        sizes = at_once | sizes
    told = [
        f"config.{field} = {size} is not divisible by the mesh's data × fsdp = "
        f"{mesh_shape['data']} × {mesh_shape['fsdp']} = {shares}"
        for field, size in sizes.items()
        if size % shares
    ]
    if config.trains == "prompts":
        if mesh_shape["task"] > 1:
            told.append(
                f"config.mesh.task is {mesh_shape['task']}, expected 1: it shares out tasks, and "
                "config.trains=prompts has none"
            )
    elif len(config.tasks) % mesh_shape["task"]:
        told.append(
            f"config.tasks names {len(config.tasks)} tasks, not divisible by "
            f"config.mesh.task={mesh_shape['task']}"
        )
    tell_together(told)
