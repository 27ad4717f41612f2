"""The gradient of one step: of the weighted losses, or of balanced task gradients.

A task's loss is a sum over labelled pixels divided by their count in the whole batch. With
`config.accumulate` = n the batch is computed in n parts; since losses and their gradients add up,
the result is exactly that of one pass. λ times the orthogonal regulariser's gradient comes on top,
not balanced.

Balanced gradients are made of the tasks' own, and so are those of weighted losses where tasks are
encoded one after the other: a task then goes backward before the next one goes forward, and what a
forward pass leaves for its backward pass is that of one task, however many there are.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import shared, task_axis
from talora_jax.training.setup import Run
from talora_jax.training.task_gradients import (
    Batch,
    Given,
    Parts,
    TaskGradients,
    task_gradients,
)
from talora_jax.weighting import gradients as balancing
from talora_jax.weighting.losses import Weighting, make_weighting

Sum = TypeVar("Sum")


class Gradient(NamedTuple):
    """A step's gradient and what the log tells of it.

    Attributes:
      gradient: like `trainable`.
      scalars: for each task its loss over the whole batch and the weight of this loss, or of its
        gradient by what tasks share; the regulariser; and the objective, which is the weighted
        losses, the weighting's constant and the weighted regulariser.
      weighting: the state of the weighting or balancing after the step.
    """

    gradient: dict[str, PyTree]
    scalars: dict[str, Float[Array, ""]]
    weighting: PyTree


GradientOf = Callable[
    [dict[str, PyTree], PyTree, nnx.State, Batch, Int[Array, ""], Key[Array, ""]], Gradient
]


def init_weighting(run: Run) -> tuple[dict[str, Array], PyTree]:
    """What the weighting or balancing trains and what it carries along, before the first step."""
    if run.config.weighting.kind in balancing.KINDS:
        common = nnx.filter_state(run.trainable, shared(AdapterConfig.of(run.config.adapter)))
        return {}, balancing.make_balancing(run.config.weighting).init_state(common, len(run.tasks))
    weighting = _weighting(run)
    return weighting.init_params(), weighting.init_state()


def make_gradient(run: Run) -> GradientOf:
    """The function (trainable, weighting state, frozen, batch, step, key) → `Gradient`."""
    if run.config.weighting.kind in balancing.KINDS:
        return _make_balanced(run)
    return _make_weighted(run)


def _make_weighted(run: Run) -> GradientOf:
    """The gradient of Σ_t w_t L_t + c + λ R."""
    together, in_turn = _make_weighted_together(run), _make_weighted_in_turn(run)

    def gradient_of(trainable, state, frozen, batch, step, key):
        model = nnx.merge(run.graphdef, trainable["model"], frozen)
        images, *size = batch["image"].shape[:3]
        takes_turns = model.takes_turns(images // run.config.accumulate, tuple(size))
        found = (in_turn if takes_turns else together)(trainable, state, frozen, batch, step, key)
        # Of a task without a label in the batch there is nothing to learn how much it weighs.
        labelled = _labelled(run, batch) > 0
        found.gradient["weighting"] = {
            name: jnp.where(labelled, x, 0) for name, x in found.gradient["weighting"].items()
        }
        return found

    return gradient_of


def _make_weighted_together(run: Run) -> GradientOf:
    """One pass forward for all tasks, and one backward."""
    config = run.config
    weighting = _weighting(run)

    def gradient_of(trainable, state, frozen, batch, step, key):
        weighting_key, dropout_key = jax.random.split(key)
        counts = _counts(run, batch)

        def part_losses(model, part, key):
            given = Given(run, frozen, part, counts, key)
            return given.losses(given.merge(model)(part["image"], key=key, trunk=part.get("trunk")))

        known = None
        if weighting.looks_at_losses and config.accumulate > 1:
            known = accumulate(
                lambda part, key: part_losses(trainable["model"], part, key),
                batch,
                dropout_key,
                config.accumulate,
            )

        def weights_of(params, losses):
            seen = jax.lax.stop_gradient(losses) if known is None else known
            return weighting.weights(params, state, seen, weighting_key)

        def objective(trainable, part, key):
            """One part's share of the objective, and its share of each task's loss."""
            losses = part_losses(trainable["model"], part, key)
            weights, constant = weights_of(trainable["weighting"], losses)
            model = nnx.merge(run.graphdef, trainable["model"], frozen)
            orthogonal = model.orthogonality(config.orthogonal_parts)
            whole = constant + config.orthogonal_weight * orthogonal
            shares = (losses, weights / config.accumulate, orthogonal / config.accumulate)
            return weights @ losses + whole / config.accumulate, shares

        (value, (losses, weights, orthogonal)), gradient = accumulate(
            lambda part, key: jax.value_and_grad(objective, has_aux=True)(trainable, part, key),
            batch,
            dropout_key,
            config.accumulate,
        )
        state = weighting.update(state, losses, step)
        return Gradient(gradient, _scalars(run, losses, weights, orthogonal, value), state)

    return gradient_of


def _make_weighted_in_turn(run: Run) -> GradientOf:
    """Each task goes backward before the next one goes forward."""
    weighting = _weighting(run)

    def gradient_of(trainable, state, frozen, batch, step, key):
        weighting_key, dropout_key = jax.random.split(key)
        parts, found = _task_gradients(run, trainable["model"], frozen, batch, dropout_key)

        def weigh(params):
            weights, constant = weighting.weights(params, state, found.losses, weighting_key)
            return weights @ found.losses + constant, (weights, constant)

        slopes, (weights, constant) = jax.grad(weigh, has_aux=True)(trainable["weighting"])
        with jax.default_matmul_precision("highest"):
            gradient = balancing.weighted_sum(weights, found.jacobian)
        weighted = balancing.Balanced(
            gradient, weights, weights, weighting.update(state, found.losses, step)
        )
        return _put_together(run, parts, frozen, found, weighted, slopes, constant)

    return gradient_of


def _make_balanced(run: Run) -> GradientOf:
    """The balanced gradient of what tasks share, each task's own of the rest."""
    method = balancing.make_balancing(run.config.weighting)

    def gradient_of(trainable, state, frozen, batch, step, key):
        method_key, dropout_key = jax.random.split(key)
        parts, found = _task_gradients(run, trainable["model"], frozen, batch, dropout_key)
        with jax.default_matmul_precision("highest"):
            balanced = method.combine(found.jacobian, found.losses, state, step, method_key)
        return _put_together(run, parts, frozen, found, balanced)

    return gradient_of


def _task_gradients(
    run: Run, trainable: nnx.State, frozen: nnx.State, batch: Batch, key: Key[Array, ""]
) -> tuple[Parts, TaskGradients]:
    """What trains, in parts, and each task's gradient over the whole batch."""
    # Rows and pairs of the adapters belong to one task each, like the decoders.
    common = shared(AdapterConfig.of(run.config.adapter))
    parts = Parts(*nnx.split_state(trainable, common, nnx.PathContains("image_encoder"), ...))
    counts = _counts(run, batch)
    found = accumulate(
        lambda part, key: task_gradients(Given(run, frozen, part, counts, key), parts),
        batch,
        key,
        run.config.accumulate,
    )
    return parts, found


def _put_together(
    run: Run,
    parts: Parts,
    frozen: nnx.State,
    found: TaskGradients,
    balanced: balancing.Balanced,
    weighting_gradient: PyTree = (),
    constant: Float[Array, ""] | float = 0.0,
) -> Gradient:
    """A step's gradient: the regulariser's on top, each task's own times its weight.

    Args:
      weighting_gradient, constant: of weighted losses, by what the weighting trains, and c.
    """
    config = run.config
    channels = [task.channels for task in run.tasks]
    adapter = AdapterConfig.of(config.adapter)
    own_gradient = _scale_by_task(adapter, found.own, balanced.own_weights, channels)

    def orthogonality(common):
        model = nnx.merge(run.graphdef, *parts._replace(common=common), frozen)
        return model.orthogonality(config.orthogonal_parts)

    orthogonal, slopes = jax.value_and_grad(orthogonality)(parts.common)
    common_gradient = jax.tree.map(
        lambda g, r: g + config.orthogonal_weight * r, balanced.gradient, slopes
    )
    losses, weights = found.losses, balanced.weights
    value = weights @ losses + constant + config.orthogonal_weight * orthogonal
    return Gradient(
        {
            "model": nnx.merge_state(common_gradient, own_gradient),
            "weighting": dict(weighting_gradient),
        },
        _scalars(run, losses, weights, orthogonal, value),
        balanced.state,
    )


def _weighting(run: Run) -> Weighting:
    steps_per_epoch = len(run.dataset.splits["train"]) // run.config.batch_size
    return make_weighting(run.config.weighting, len(run.tasks), steps_per_epoch, run.config.steps)


def _scalars(
    run: Run,
    losses: Float[Array, "T"],
    weights: Float[Array, "T"],
    orthogonal: Float[Array, ""],
    objective: Float[Array, ""],
) -> dict[str, Float[Array, ""]]:
    return {
        **{f"{task.name}/loss": losses[i] for i, task in enumerate(run.tasks)},
        **{f"{task.name}/weight": weights[i] for i, task in enumerate(run.tasks)},
        "orthogonal": orthogonal,
        "objective": objective,
    }


def _labelled(run: Run, batch: Batch) -> Float[Array, "T"]:
    """Labelled pixels of each task in the whole batch."""
    return jnp.stack([task.count(batch[task.name]) for task in run.tasks])


def _counts(run: Run, batch: Batch) -> Float[Array, "T"]:
    """What each task's loss is divided by."""
    return jnp.maximum(_labelled(run, batch), 1)


def accumulate(
    function: Callable[[Batch, Key[Array, ""]], Sum], batch: Batch, key: Key[Array, ""], parts: int
) -> Sum:
    """The sum of function(part, key) over the parts of a batch, one after the other."""
    if parts == 1:
        return function(batch, key)
    # "b n": neighbours go to different parts, so each part is spread over all devices.
    split = {k: rearrange(x, "(b n) ... -> n b ...", n=parts) for k, x in batch.items()}
    keys = jax.random.split(key, parts)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], split), keys[0])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, function(*part)), None),
        zeros,
        (split, keys),
    )
    return total


def _scale_by_task(
    adapter: AdapterConfig,
    gradient: nnx.State,
    weights: Float[Array, "T"],
    channels: Sequence[int],
) -> nnx.State:
    """The gradient of what belongs to one task each, every task's times its weight."""

    def scaled(path, variable):
        x = variable[...]
        if "no_mask_embed" in path:
            rows = jnp.repeat(weights, np.array(channels), total_repeat_length=len(x))
            return variable.replace(x * rows[:, None])
        axis = task_axis(adapter, path) % x.ndim
        others = tuple(i for i in range(x.ndim) if i != axis)
        return variable.replace(x * jnp.expand_dims(weights, others))

    return nnx.map_state(scaled, gradient)
