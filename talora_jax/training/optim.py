"""Schedule, parameter groups and optimizers.

Those of the released recipe: Adam with L2 weight decay (added to the gradient before Adam), a
linear warm-up and a linear decay to 0, per step, as in the MTSAM release. Groups of parameters may
scale the learning rate.
"""

import functools

import jax
import ml_collections
import optax
import optax.contrib
from flax import nnx
from jaxtyping import Array, PyTree

# Of a decoder these never reach an output of mSAM, which reads mask token 0 alone. They get no
# gradient, and Adam would turn their weight decay into full-sized steps.
_UNUSED = ("iou_prediction_head", *(("output_hypernetworks_mlps", i) for i in (1, 2, 3)))


def make_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Linear from 0 over the warm-up, then linear to 0 at `config.steps`."""
    warmup = int(config.optimizer.warmup * config.steps)
    peak = config.optimizer.learning_rate
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.linear_schedule(peak, 0.0, config.steps - warmup),
        ],
        [warmup],
    )


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The optimizer of {"model": nnx.State, "weighting": …}, groups told apart by path."""

    decay = config.optimizer.weight_decay
    matrices = functools.partial(_map_paths, lambda path, x: _is_matrix(path))

    def group(scale: float) -> optax.GradientTransformation:
        def rate(step):
            return scale * schedule(step)

        match config.optimizer.kind:
            case "adam":
                return optax.chain(
                    optax.add_decayed_weights(decay),
                    optax.scale_by_adam(),
                    optax.scale_by_learning_rate(rate),
                )
            case "adamw":
                return optax.adamw(rate, weight_decay=decay, mask=matrices)
            case "muon":
                # This RMS of an update is AdamW's, so that learning rates are alike.
                return optax.contrib.muon(
                    rate,
                    weight_decay=decay,
                    consistent_rms=0.2,
                    muon_weight_dimension_numbers=functools.partial(_map_paths, _muon_axes),
                )

    groups = {name: group(scale) for name, scale in config.optimizer.lr_scale.items()}
    # Decayed towards 0, a log variance would be pulled towards a weight of 1/2.
    groups["weighting"] = optax.adam(
        lambda step: config.optimizer.lr_scale.weighting * schedule(step)
    )
    groups["unused"] = optax.set_to_zero()
    partitioned = optax.partition(groups, group_names)
    if config.optimizer.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), partitioned)
    return partitioned


def _map_paths(function, params: PyTree) -> PyTree:
    """Maps function(names along the path, array); what a group leaves out has no arrays."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: function([getattr(k, "key", getattr(k, "name", None)) for k in path], x),
        params,
    )


def _is_matrix(path: list) -> bool:
    return any(name in ("kernel", "kernel1", "kernel2") for name in path)


def _muon_axes(path: list, x: Array) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a parameter are a matrix's rows and columns; None for what is no matrix."""
    if not _is_matrix(path):
        return None
    if "output_upscaling" in path:
        return optax.contrib.MuonDimensionNumbers(-4, (-3, -2, -1))
    if any(name in ("patch_embed", "conv1", "conv2", "conv3") for name in path):
        return optax.contrib.MuonDimensionNumbers((-4, -3, -2), -1)
    return optax.contrib.MuonDimensionNumbers(-2, -1)  # blocks and tasks are stacked in front


def group_names(params: dict[str, PyTree]) -> dict[str, PyTree]:
    """The group of every trained parameter, in a tree of the same structure."""
    model = nnx.from_flat_state(
        [(path, v.replace(group_of(path))) for path, v in nnx.to_flat_state(params["model"])]
    )
    return {"model": model, "weighting": {name: "weighting" for name in params["weighting"]}}


def group_of(path: tuple) -> str:
    """The group of the trained parameter at a path of the model."""
    if "mask_decoders" in path:
        inside = path[1:]
        return "unused" if inside[0] in _UNUSED or inside[:2] in _UNUSED else "decoders"
    if "adapter" in path:
        return "adapters"
    if path[0] == "no_mask_embed":
        return "no_mask"
    if "prompt_encoder" in path:
        return "prompts"
    if "mask_decoder" in path or "auxiliary" in path:
        return "decoders"
    return "norms" if "norm1" in path or "norm2" in path else "encoder"
