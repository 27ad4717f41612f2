"""The model of a config as tables: parts, shapes, parameters, what trains, and memory per device.

Nothing is allocated and no device of the mesh need be here: shapes are traced, layouts computed.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import jax
import ml_collections
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import PyTree
from rich.console import Console
from rich.table import Table

from talora_jax import config as config_lib
from talora_jax import config_checks, sharding
from talora_jax.data import classes_of
from talora_jax.errors import UserError, tell_together
from talora_jax.experiments import fit as fit_lib
from talora_jax.models.adapters import AdapterConfig
from talora_jax.tasks import make_task
from talora_jax.training import setup
from talora_jax.training.optim import group_of
from talora_jax.training.prompted import setup as prompted
from talora_jax.training.setup import Run
from talora_jax.training.start_from import source_of
from talora_jax.training.step import abstract_state

FROZEN = "frozen"
# As data flows. Inside a part, tensors are in alphabetical order.
_ORDER = (
    "image_encoder.patch_embed",
    "image_encoder.pos_embed",
    "image_encoder.window_blocks",
    "image_encoder.global_blocks",
    "image_encoder.adapted",
    "image_encoder.neck",
    "positions",
    "no_mask_embed",
    "prompt_encoder",
    "mask_decoder",
    "auxiliary",
)


@dataclasses.dataclass(frozen=True)
class Part:
    """One row of the table.

    Attributes:
      shapes: of its tensors by name, stack axes (stages, blocks, tasks) first.
      group: what it trains as, see `talora_jax.training.optim`; `FROZEN` if it does not.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    dtype: str
    group: str

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def check(config: ml_collections.ConfigDict, *, compiles: bool = False) -> None:
    """Refuses a config that cannot work, and tells beside it what is wrong with its mesh.

    A mesh that alone is wrong is not refused: a model can be described all the same.

    Args:
      compiles: whether a step is to be compiled, too.

    Raises:
      UserError: tells all that is wrong, a line each.
    """
    found = setup.refusals(config)
    found.ask(lambda: setup.sizes(config), "model.weights", "model.size", "adapter.ranks", "tasks")
    found.ask(lambda: setup.parent_of(config), "adapter.extend", "model.weights", "model.size")
    if config.init:
        found.ask(lambda: source_of(config), "init", "model.weights", "model.size")
    if compiles:
        found.ask(lambda: _check_image_size(config), "data.image_size")
    axes = [f"mesh.{axis}" for axis in sharding.AXES]
    found.ask(lambda: sharding.abstract_mesh(**config.mesh), "mesh", *axes)
    if found.by_field:
        batches = ("batch_size", "accumulate", "eval_batch_size", "tasks")
        found.ask(
            lambda: config_checks.check_mesh(config, sharding.abstract_mesh(**config.mesh).shape),
            *("mesh", *axes, *batches),
        )
    tell_together(found.by_field.values())


def _check_image_size(config: ml_collections.ConfigDict) -> None:
    if not config.data.image_size:
        raise UserError(
            "config.data.image_size is None, and what a step takes depends on it: give the images' "
            "--config.data.image_size='(480, 640)'"
        )


def abstract_run(config: ml_collections.ConfigDict, mesh: sharding.AnyMesh | None = None) -> Run:
    """The run of a config as shapes.

    Args:
      mesh: in place of the one that the config names.

    Raises:
      UserError: the config cannot work, or its classes are not known without its data.
    """
    check(config)
    mesh = sharding.abstract_mesh(**config.mesh) if mesh is None else mesh
    if config.trains == "prompts":
        return prompted.abstract(config, mesh, classes_of(config.data, config.prompts.auxiliary))
    classes = classes_of(config.data, config.tasks)
    tasks = tuple(make_task(name, class_names=classes[name]) for name in config.tasks)
    return setup.abstract(config, mesh, tasks, setup.sizes(config))


def parts_of(run: Run) -> list[Part]:
    """Every parameter of the model, grouped into the parts that a person would name."""
    tensors = [(path, x, group_of(path)) for path, x in nnx.to_flat_state(run.trainable)]
    tensors += [(path, x, FROZEN) for path, x in nnx.to_flat_state(run.frozen)]
    parts: dict[tuple, Part] = {}
    for path, x, group in tensors:
        name, tensor = _split(path)
        part = parts.setdefault((_place(name), name, group), Part(name, {}, str(x.dtype), group))
        part.shapes[tensor] = tuple(x.shape)
    return [parts[key] for key in sorted(parts)]


def memory(run: Run) -> dict[str, int]:
    """Bytes on each device of the mesh between two steps, and of the gradients within one."""
    state = abstract_state(run)
    everywhere = sharding.replicated(run.mesh)
    learnt = _bytes(state.trainable, lambda shape: everywhere)
    best = _bytes(state.trainable["model"], lambda shape: everywhere)
    return {
        "frozen parameters": _bytes(
            run.frozen, lambda shape: sharding.fsdp_sharding(run.mesh, shape)
        ),
        "trained parameters": learnt,
        "gradients": learnt,
        "optimizer state": _bytes((state.opt_state, state.weighting), lambda shape: everywhere),
        **({"best parameters": best} if run.config.best else {}),
    }


def describe(
    config: ml_collections.ConfigDict, console: Console, device: str | None = None
) -> None:
    """Prints the model of a config.

    Args:
      device: one of `accelerators.ACCELERATORS`: also compiles a step, and tells whether it fits.

    Raises:
      UserError: as `abstract_run`; or a step cannot be compiled for the device.
    """
    if device is not None:
        check(config, compiles=True)
        config = fit_lib.settled(config, device)
    run = abstract_run(config)
    parts = parts_of(run)
    for line in _headlines(run):
        console.print(line)
    console.print(_parts_table(parts))
    for_tasks = config.trains == "tasks"
    more = "; of decoders, tasks" if for_tasks else ""
    console.print(f"Leading axes of blocks are stages and blocks of a stage{more}.\n")
    console.print(_totals_table(parts))
    if for_tasks:
        console.print("Unused parts of the decoders reach no output and keep their values.")
    console.print()
    axes = " × ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    console.print(f"Memory on each of {run.mesh.size} device(s), mesh {axes}:")
    console.print(_memory_table(run))
    told = "MB are 10⁶ bytes."
    if device is None:
        told += " Activations come on top: --device v5e compiles a step and tells them."
    console.print(told)
    if config.model.param_dtype == "auto" and jax.default_backend() == "cpu":
        console.print("Frozen parameters are float32 as here on a CPU, bfloat16 on accelerators.")
    try:
        config_checks.check_mesh(config, run.mesh.shape)
    except UserError as error:
        console.print(f"Training on this mesh would be refused: {error}")
        return
    if device is not None:
        _tell_fit(config, console, device)


def _tell_fit(config: ml_collections.ConfigDict, console: Console, device: str) -> None:
    run = abstract_run(config, fit_lib.mesh_of(config, device))
    console.print(f"\nA step of {config.batch_size} images, {fit_lib.source(run, device)}:")
    fit = fit_lib.measure(run, device)
    console.print(_fit_table(fit))
    if fit.fits:
        console.print(f"It fits {device}.")
        return
    console.print(f"It does not fit {device}. What takes less:")
    encoder = setup.sizes(config).encoder
    for line in fit_lib.advice(config, encoder, run.mesh.shape, device, fit):
        console.print(f"  {line}")


def _split(path: tuple) -> tuple[str, str]:
    """A parameter's part and its name there: ("image_encoder.window_blocks.attn.qkv", "kernel")."""
    if path[0] == "sam":
        path = path[1:]
    if path[0] in ("mask_decoders", "mask_decoder", "prompt_encoder"):
        depth = 2
    else:
        depth = len(path) - (path[-1] in ("kernel", "bias", "scale"))
    return ".".join(map(str, path[:depth])), ".".join(map(str, path[depth:]))


def _place(name: str) -> int:
    return next(i for i, part in enumerate(_ORDER) if name.startswith(part))


def _headlines(run: Run) -> list[str]:
    config, encoder = run.config, setup.sizes(run.config).encoder
    adapter = config.adapter
    kind = adapter.kind + (
        "" if adapter.kind in ("none", "full") else f", ranks {'×'.join(map(str, adapter.ranks))}"
    )
    blocks = AdapterConfig.of(adapter).adapted(encoder.depth)
    if adapter.blocks is not None:
        kind += f" in blocks {blocks.start} to {blocks.stop - 1} of 0 to {encoder.depth - 1}"
    tasks = ", ".join(f"{task.name} ({task.channels})" for task in run.tasks)
    learnt = f"tasks (channels): {tasks}"
    if config.trains == "prompts":
        learnt = f"prompts of {', '.join(config.prompts.domains)}"
        learnt += f"; auxiliary tasks (channels): {tasks}" if tasks else ""
    lines = [
        f"{config_lib.model_name(config.model)}: {encoder.depth} blocks of width {encoder.width}; "
        f"adapter {kind}",
        learnt,
    ]
    if config.data.image_size:
        size = tuple(config.data.image_size)
        geometry = encoder.geometry(size, native_aspect=config.model.native_aspect)
        rows, columns = (side // encoder.patch_size for side in geometry.padded)
        lines.append(
            f"images of {_times(geometry.original)} are resized to {_times(geometry.resized)} and "
            f"padded to {_times(geometry.padded)}: {rows}×{columns} tokens"
        )
    return lines


def _parts_table(parts: Sequence[Part]) -> Table:
    table = Table()
    for column in ("part", "shapes", "parameters", "trains as"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for place, group in itertools.groupby(parts, key=lambda part: _place(part.name)):
        del place
        table.add_section()
        for part in group:
            # Kernels and scales before their biases.
            named = sorted(part.shapes.items(), reverse=True)
            shapes = [f"{name} {_times(shape)}".strip() for name, shape in named]
            summary = ", ".join(shapes) if len(shapes) <= 2 else f"{len(shapes)} tensors"
            table.add_row(part.name, summary, f"{part.parameters:,}", part.group)
    return table


def _totals_table(parts: Sequence[Part]) -> Table:
    table = Table()
    table.add_column("trains as")
    table.add_column("parameters", justify="right")
    table.add_column("dtype")
    totals: dict[tuple[str, str], int] = {}
    for part in parts:
        key = part.group, part.dtype
        totals[key] = totals.get(key, 0) + part.parameters
    for (group, dtype), count in totals.items():
        if group != FROZEN:
            table.add_row(group, f"{count:,}", dtype)
    table.add_section()
    trained = sum(count for (group, _), count in totals.items() if group != FROZEN)
    frozen = [(dtype, count) for (group, dtype), count in totals.items() if group == FROZEN]
    table.add_row("all that trains", f"{trained:,}", "")
    for dtype, count in frozen:
        table.add_row(FROZEN, f"{count:,}", dtype)
    table.add_row("all", f"{sum(totals.values()):,}", "")
    return table


def _memory_table(run: Run) -> Table:
    table = Table()
    table.add_column("")
    table.add_column("MB", justify="right")
    rows = memory(run)
    for name, size in rows.items():
        table.add_row(name, f"{size / 1e6:,.1f}")
    table.add_section()
    table.add_row("together", f"{sum(rows.values()) / 1e6:,.1f}")
    return table


def _fit_table(fit: fit_lib.Fit) -> Table:
    table = Table()
    table.add_column("on each device")
    table.add_column("MB", justify="right")
    rows: dict[str, int | None] = {}
    if fit.memory is not None:
        rows["state, frozen parameters, batch"] = fit.memory.peak - fit.memory.temporaries
        rows["activations, gradients and all else in between"] = fit.memory.temporaries
        rows["program"] = fit.memory.program
    rows["together"] = fit.needed
    rows["a program may take"] = fit.capacity
    for name, size in rows.items():
        if name == "together":
            table.add_section()
        table.add_row(name, "more" if size is None else f"{size / 1e6:,.1f}")
    return table


def _bytes(tree: PyTree, layout: Callable[[tuple[int, ...]], NamedSharding]) -> int:
    """Of one device's share."""
    return sum(
        math.prod(layout(x.shape).shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def _times(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))
