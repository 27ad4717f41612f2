"""Builds mSAM, on random numbers or on a base: the tensors of a SAM checkpoint under our names.

A base holds `image_encoder.*`, `prompt_encoder.*` and `mask_decoder.*` (see `weights_convert`). The
encoder goes in as it is, the decoder into every task's decoder, the no-mask row into every output
channel's row. Tensors under mSAM's own names (`mask_decoders.<task>.*`, adapters) go in as they are.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx

from talora_jax.errors import UserError
from talora_jax.models.msam import MSam

# Parts of a promptable SAM that mSAM does not have.
_UNUSED = ("prompt_encoder.", "mask_decoder.")


def build(make: Callable[[], MSam], base: Mapping[str, np.ndarray] | None = None) -> MSam:
    """The model that `make` makes; with a base, only what the base lacks is drawn at random.

    Raises:
      UserError: tensors of the base are missing, unexpected or misshapen; all are listed.
    """
    graphdef, abstract = nnx.split(nnx.eval_shape(make))
    if base is None:
        return nnx.merge(graphdef, jax.jit(lambda: nnx.state(make()))())

    model = nnx.merge(graphdef, abstract)
    tensors = _for_msam(base, model)
    flat = nnx.to_flat_state(abstract)
    names = {path: ".".join(map(str, path)) for path, _ in flat}
    # Adapters are what training adds: the only part that a base may lack.
    fresh_paths = [p for p, n in names.items() if n not in tensors and "adapter" in p]
    problems = [
        f"missing {n}" for p, n in names.items() if n not in tensors and p not in fresh_paths
    ]
    problems += [f"unexpected {n}" for n in tensors if n not in names.values()]
    for path, variable in flat:
        value = tensors.get(names[path])
        if value is not None and value.shape != variable.shape:
            problems.append(f"{names[path]} has shape {value.shape}, expected {variable.shape}")
    if problems:
        raise UserError("the base does not fit this model: " + "; ".join(problems))

    # Compiled as a whole, the random numbers that the base replaces are never drawn.
    fresh = jax.jit(lambda: _select(make(), fresh_paths))() if fresh_paths else {}
    leaves = [
        (
            path,
            variable.replace(
                fresh[path] if path in fresh else jax.numpy.asarray(tensors[names[path]])
            ),
        )
        for path, variable in flat
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def _select(model: MSam, paths: list[tuple]) -> dict:
    return {p: v[...] for p, v in nnx.to_flat_state(nnx.state(model)) if p in paths}


def _for_msam(base: Mapping[str, np.ndarray], model: MSam) -> dict[str, np.ndarray]:
    """A base under mSAM's names: the decoder copied per task, the no-mask row per channel."""
    tensors = {name: x for name, x in base.items() if not name.startswith(_UNUSED)}
    for name, x in base.items():
        if name.startswith("mask_decoder."):
            for task in model.tasks:
                tensors[f"mask_decoders.{task}.{name.removeprefix('mask_decoder.')}"] = x
    positions, rows = "prompt_encoder.positions.gaussian_matrix", "prompt_encoder.no_mask_embed"
    if positions in base:
        tensors["positions.gaussian_matrix"] = base[positions]
    if rows in base:
        single = len(base[rows]) == 1
        tensors["no_mask_embed"] = (
            np.tile(base[rows], (sum(model.channels), 1)) if single else base[rows]
        )
    return tensors
