"""Models with the weights of a base: which tensor goes where.

In mSAM the encoder of a base goes in as it is, the decoder into every task's decoder, the no-mask
row into every output channel's row. Tensors under mSAM's own names go in as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from talora_jax.compiled import drop_programs, settle_memory
from talora_jax.errors import UserError, listed
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.keys import Keys
from talora_jax.models.msam import MSam
from talora_jax.models.sam import Sam, SamConfig
from talora_jax.weights.base_file import read_base
from talora_jax.weights.state import name_of, tensors_of

Model = TypeVar("Model", bound=nnx.Module)
Tree = TypeVar("Tree")

# Parts of a promptable SAM that mSAM does not have.
_UNUSED = ("prompt_encoder.", "mask_decoder.")
# What training adds: the only parts that a base may lack.
_ADDED = ("adapter", "auxiliary")
# Bytes of random numbers, from which on looking for what drew them takes less than drawing.
_LARGE = 2**28


def load_sam(path: str | Path, *, dtype: DTypeLike = jnp.float32) -> Sam:
    """The promptable SAM of a base.

    >>> import talora_jax
    >>> sam = talora_jax.load_sam("sam_nano.safetensors")
    >>> sam.config.encoder.image_size, sam.config.encoder.depth
    (64, 2)

    Args:
      path: of the base, the name of one that comes along, or user/name on the Hugging Face Hub.
      dtype: to compute in; parameters stay float32.

    Raises:
      UserError: no base, or a base of MTSAM training, which has no decoder for prompts.
    """
    tensors, description = read_base(path)
    if description.tasks is not None:
        raise UserError(
            f"{path} has mask decoders for {', '.join(description.tasks)} and none for prompts: "
            "it serves multi-task models, not a promptable SAM"
        )
    return build(
        lambda: Sam(
            description.config,
            native_aspect=description.native_aspect,
            dtype=dtype,
            rngs=Keys(0),
        ),
        tensors,
    )


def load_msam(
    base: str | Path | None,
    adapter: AdapterConfig,
    channels: Mapping[str, int],
    *,
    sam: SamConfig | None = None,
    seed: int = 0,
    **how: Any,
) -> MSam:
    """A multi-task model to train: a base's weights, and adapters that change nothing yet.

    >>> import talora_jax
    >>> adapter = talora_jax.AdapterConfig(ranks=(4, 4, 2))
    >>> model = talora_jax.load_msam("sam_nano.safetensors", adapter, {"depth": 1})
    >>> model(jnp.zeros((1, 60, 80, 3)))["depth"].shape
    (1, 60, 80, 1)

    Args:
      base: of a SAM or of MTSAM training; None to start from random numbers.
      channels: output channels of every task.
      sam: the sizes, where there is no base.
      seed: of what the base does not have.
      how: as `MSam` takes it: pixel_normalisation, native_aspect, attention, remat, dtype.

    Raises:
      UserError: there is no such base, it has other tasks, or there are neither base nor sizes.
    """
    tensors = None
    if base is not None:
        tensors, description = read_base(base)
        sam = description.config
        check_base_tasks(description.tasks, tuple(channels), base)
    if sam is None:
        raise UserError("load_msam needs a base, or sizes (sam=…) to start from random numbers")
    return build(lambda: make_msam(sam, adapter, channels, seed=seed, **how), tensors)


def make_msam(
    sam: SamConfig, adapter: AdapterConfig, channels: Mapping[str, int], *, seed: int, **how: Any
) -> MSam:
    """The model with the random numbers of a seed; cheap under `nnx.eval_shape`."""
    # A base that is random numbers is drawn again from its seed alone.
    return MSam(sam, adapter, channels, rngs=Keys(jax.random.key(seed, impl="rbg")), **how)


def check_base_tasks(theirs: tuple[str, ...] | None, ours: tuple[str, ...], base: Any) -> None:
    """Rows of U3 and no-mask rows of MTSAM training are in the order of its tasks.

    Raises:
      UserError: they are other tasks, or in another order.
    """
    if theirs is not None and theirs != ours:
        raise UserError(
            f"the tasks are {', '.join(ours)}, but {base} was trained for {', '.join(theirs)}, in "
            "this order"
        )


def build(
    make: Callable[[], Model],
    base: Mapping[str, np.ndarray] | None = None,
    learnt: Mapping[str, np.ndarray] | None = None,
) -> Model:
    """The model that `make` makes; only what neither base nor adapter has is drawn at random.

    From here on memory is kept and given back as `compiled.settle_memory` says.

    Args:
      make: makes a model with random parameters.
      base: tensors of a base; None for a model that starts from random numbers.
      learnt: tensors of an adapter file, which take the place of the base's.

    Raises:
      UserError: tensors are missing, unexpected or misshapen; as many as fit are listed.
    """
    settle_memory()
    graphdef, abstract = nnx.split(nnx.eval_shape(make))
    flat = nnx.to_flat_state(abstract)
    names = {path: name_of(path) for path, _ in flat}
    tensors: dict[str, np.ndarray] = {}
    if base is not None:
        model = nnx.merge(graphdef, abstract)
        tensors |= for_msam(base, model) if isinstance(model, MSam) else base
        tensors |= _adapted_norms(tensors, list(names.values()), model)
    tensors |= learnt or {}

    fresh_paths = [
        p
        for p, n in names.items()
        if n not in tensors and (base is None or not set(_ADDED).isdisjoint(p))
    ]
    problems = [
        f"missing {n}" for p, n in names.items() if n not in tensors and p not in fresh_paths
    ]
    problems += [f"unexpected {n}" for n in tensors if n not in names.values()]
    for path, variable in flat:
        value = tensors.get(names[path])
        if value is not None and value.shape != variable.shape:
            problems.append(f"{names[path]} has shape {value.shape}, expected {variable.shape}")
    if problems:
        what = "the base" if not learnt else "the adapter with its base" if base else "the adapter"
        raise UserError(f"{what} does not fit this model: {listed(problems, between='; ')}")

    fresh: dict[tuple, jax.Array] = {}
    if base is None:
        # All of it, whatever an adapter replaces: in another program, rounding might differ, and
        # the base with it.
        fresh = _run_once(lambda: _select(make(), [path for path, _ in flat]))
        if sum(x.nbytes for x in fresh.values()) > _LARGE:
            jax.block_until_ready(fresh)  # a program is held as long as it runs
            drop_programs()
    elif fresh_paths:
        # Compiled as a whole, the random numbers that the base replaces are never drawn.
        fresh = _run_once(lambda: _select(make(), fresh_paths))
    leaves = [
        (
            path,
            variable.replace(
                jnp.asarray(tensors[names[path]], variable.dtype)
                if names[path] in tensors
                else fresh[path]
            ),
        )
        for path, variable in flat
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def _adapted_norms(
    tensors: Mapping[str, np.ndarray], names: Sequence[str], model: nnx.Module
) -> dict[str, np.ndarray]:
    """LayerNorms that train apart from a base's blocks: they begin as the base's."""
    norms = {}
    for name in names:
        place, apart, inside = name.partition("image_encoder.adapted.")
        of_base = f"{place}image_encoder.{inside}"
        if apart and of_base in tensors:
            encoder, stack = model.image_encoder, inside.partition(".")[0]
            flat = tensors[of_base].reshape(-1, encoder.config.width)
            norms[name] = flat[encoder.config.rows(stack, encoder.blocks)]
    return norms


def for_msam(base: Mapping[str, np.ndarray], model: MSam) -> dict[str, np.ndarray]:
    """A base under mSAM's names: decoders stacked by task, the no-mask row copied per channel."""
    tensors = {
        name: x for name, x in base.items() if not name.startswith((*_UNUSED, "mask_decoders."))
    }
    first = f"mask_decoders.{model.tasks[0]}."
    for inside in [name.removeprefix(first) for name in base if name.startswith(first)]:
        tensors[f"mask_decoders.{inside}"] = np.stack(
            [base[f"mask_decoders.{task}.{inside}"] for task in model.tasks]
        )
    for name, x in base.items():
        if name.startswith("mask_decoder."):
            inside = name.removeprefix("mask_decoder.")
            tensors[f"mask_decoders.{inside}"] = np.stack([x] * len(model.tasks))
    positions, rows = "prompt_encoder.positions.gaussian_matrix", "prompt_encoder.no_mask_embed"
    if positions in base:
        tensors["positions.gaussian_matrix"] = base[positions]
    if rows in base:
        single = len(base[rows]) == 1
        tensors["no_mask_embed"] = (
            np.tile(base[rows], (sum(model.channels), 1)) if single else base[rows]
        )
    return tensors


def merged(model: MSam, task: str) -> dict[str, np.ndarray]:
    """A base of one task, in float32: `for_msam` undone, the adapter's update in the qkv weights.

    An `MSam` of this task alone that has no adapter gives from it the maps that `model` gives. It
    has no prompts' embeddings: the model has none.

    Raises:
      KeyError: a task that the model does not have.
    """
    (number,) = model.task_ids([task])
    first_row = sum(model.channels[:number])
    rows = slice(first_row, first_row + model.channels[number])
    encoder = nnx.state(model.image_encoder.merge(number))
    tensors = {f"image_encoder.{name}": x for name, x in tensors_of(encoder).items()}
    rest = nnx.state(model, nnx.Not(nnx.PathContains("image_encoder")))
    for name, x in tensors_of(rest).items():
        if name.startswith("mask_decoders."):
            tensors[name.replace("mask_decoders", f"mask_decoders.{task}", 1)] = x[number]
        else:
            tensors[f"prompt_encoder.{name}"] = x[rows] if name == "no_mask_embed" else x
    return {name: np.asarray(x, np.float32) for name, x in tensors.items()}


def _run_once(function: Callable[[], Tree]) -> Tree:
    """The result of a program that is not worth optimising: compiling it takes most of the time."""
    compiled = jax.jit(function).lower().compile({"xla_backend_optimization_level": 0})
    return compiled()


def _select(model: MSam | Sam, paths: list[tuple]) -> dict:
    return {p: v[...] for p, v in nnx.to_flat_state(nnx.state(model)) if p in paths}
