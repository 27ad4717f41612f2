"""Whether a config has what an adapter was trained with, for runs that go on from one."""

import operator
import shlex

import ml_collections

from talora_jax.errors import UserError
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.sam import SamConfig
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.assemble import sizes_of


def check_trained_with(
    config: ml_collections.ConfigDict, field: str, file: AdapterFile, sam: SamConfig
) -> None:
    """Refuses a config in which an adapter's tensors would mean something else.

    Args:
      field: which names the adapter's path, as adapter.extend.
      sam: the sizes of the config's model.

    Raises:
      UserError: names the first field that differs, and how to set it.
    """
    theirs = sizes_of(file, operator.attrgetter(field)(config))
    if theirs not in (sam, None):
        raise UserError(
            f"config.model has {sam.apart_from(theirs)}, but "
            f"config.{field} names an adapter for {theirs.apart_from(sam)}"
        )
    trained_with = {
        "model.pixel_normalisation": file.pixel_normalisation,
        "model.native_aspect": file.native_aspect,
        "adapter.kind": file.adapter["kind"],
        "adapter.ranks": tuple(file.adapter["ranks"]),
        "adapter.scale": file.adapter["scale"],
        "adapter.qkv": tuple(file.adapter["qkv"]),
        "adapter.blocks": _blocks_as(config, file, sam.encoder.depth),
    }
    if not config.model.weights:
        trained_with["seed"] = file.seed  # random numbers are its base
    for name, was in trained_with.items():
        value = operator.attrgetter(name)(config)
        if value != was:
            raise UserError(
                f"config.{name} is {value!r}, but config.{field} names an adapter trained "
                f"with {was!r}: set --config.{name}={shlex.quote(str(was).replace(' ', ''))}"
            )


def _blocks_as(
    config: ml_collections.ConfigDict, file: AdapterFile, depth: int
) -> tuple[int, ...] | None:
    """The blocks of an adapter, as the config has them if it means the same."""
    theirs, ours = AdapterConfig.of(file.adapter), AdapterConfig.of(config.adapter)
    same = theirs.adapted(depth) == ours.adapted(depth) and None not in (theirs.blocks, ours.blocks)
    return config.adapter.blocks if same else theirs.blocks
