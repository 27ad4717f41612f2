"""The gradient of one step: of the weighted losses, or of balanced task gradients.

A task's loss is a sum over labelled pixels divided by their count in the whole batch. With
`config.accumulate` = n the batch is computed in n parts; since losses and their gradients add up,
the result is exactly that of one pass. λ times the orthogonal regulariser's gradient comes on top,
not balanced.
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
from talora_jax.models.msam import MSam, shared, task_axis
from talora_jax.training.setup import Run
from talora_jax.weighting import gradients as balancing
from talora_jax.weighting.losses import Weighting, make_weighting

Batch = dict[str, Array]
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
    config = run.config
    weighting = _weighting(run)

    def gradient_of(trainable, state, frozen, batch, step, key):
        weighting_key, dropout_key = jax.random.split(key)
        labelled = _labelled(run, batch)
        counts = jnp.maximum(labelled, 1)

        def losses_of(model, part, key):
            model = nnx.merge(run.graphdef, model, frozen)
            return _losses(run, model(part["image"], key=key), part, counts)

        known = None
        if weighting.looks_at_losses and config.accumulate > 1:
            known = accumulate(
                lambda part, key: losses_of(trainable["model"], part, key),
                batch,
                dropout_key,
                config.accumulate,
            )

        def weights_of(params, losses):
            seen = jax.lax.stop_gradient(losses) if known is None else known
            return weighting.weights(params, state, seen, weighting_key)

        def objective(trainable, part, key):
            """One part's share of the objective, and its share of each task's loss."""
            losses = losses_of(trainable["model"], part, key)
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
        # Of a task without a label in the batch there is nothing to learn how much it weighs.
        gradient["weighting"] = {
            name: jnp.where(labelled > 0, x, 0) for name, x in gradient["weighting"].items()
        }
        state = weighting.update(state, losses, step)
        return Gradient(gradient, _scalars(run, losses, weights, orthogonal, value), state)

    return gradient_of


def _make_balanced(run: Run) -> GradientOf:
    """The balanced gradient of what tasks share, each task's own of the rest."""
    config = run.config
    adapter = AdapterConfig.of(config.adapter)
    method = balancing.make_balancing(config.weighting)
    channels = [task.channels for task in run.tasks]

    def gradient_of(trainable, state, frozen, batch, step, key):
        method_key, dropout_key = jax.random.split(key)
        counts = jnp.maximum(_labelled(run, batch), 1)
        # Rows and pairs of the adapters belong to one task each, like the decoders.
        parts = Parts(
            *nnx.split_state(
                trainable["model"], shared(adapter), nnx.PathContains("image_encoder"), ...
            )
        )
        losses, jacobian, own_gradient = accumulate(
            lambda part, key: _by_task(run, parts, frozen, part, counts, key),
            batch,
            dropout_key,
            config.accumulate,
        )
        with jax.default_matmul_precision("highest"):
            balanced = method.combine(jacobian, losses, state, step, method_key)
        own_gradient = _scale_by_task(adapter, own_gradient, balanced.own_weights, channels)

        def orthogonality(common):
            model = _merge(run, parts._replace(common=common), frozen)
            return model.orthogonality(config.orthogonal_parts)

        orthogonal, pull = jax.value_and_grad(orthogonality)(parts.common)
        common_gradient = jax.tree.map(
            lambda g, r: g + config.orthogonal_weight * r, balanced.gradient, pull
        )
        value = balanced.weights @ losses + config.orthogonal_weight * orthogonal
        return Gradient(
            {"model": nnx.merge_state(common_gradient, own_gradient), "weighting": {}},
            _scalars(run, losses, balanced.weights, orthogonal, value),
            balanced.state,
        )

    return gradient_of


class Parts(NamedTuple):
    """What trains: what tasks share in the encoder, each task's own there, decoders and rows."""

    common: nnx.State
    own: nnx.State
    heads: nnx.State


def _merge(run: Run, parts: Parts, frozen: nnx.State) -> MSam:
    return nnx.merge(run.graphdef, *parts, frozen)


def _by_task(
    run: Run,
    parts: Parts,
    frozen: nnx.State,
    batch: Batch,
    counts: Float[Array, "T"],
    key: Key[Array, ""],
) -> tuple[Float[Array, "T"], balancing.Jacobian, nnx.State]:
    """The losses, each one's gradient by what tasks share, and by what each task has alone.

    One pass forward and one backward serve all tasks. A task's map depends on its own embedding,
    decoder and rows alone, so the pullback of Σ_t L_t through the decoders gives all their
    gradients and, row by row, the gradient of every loss by its embedding. The encoder then is
    pulled back once, with the shared parameters' gradients kept apart by task: [T, ...].
    """

    def decode(embeddings, heads):
        model = _merge(run, parts._replace(heads=heads), frozen)
        size = batch["image"].shape[1:3]
        low_res = model.decode(embeddings, model.tasks)
        maps = {name: model.from_padded(x, size) for name, x in low_res.items()}
        losses = _losses(run, maps, batch, counts)
        return losses.sum(), losses

    embeddings, pull = _embed_by_task(run, parts, frozen, batch["image"], key)
    by_embeddings_and_heads = jax.grad(decode, argnums=(0, 1), has_aux=True)
    (slopes, heads_gradient), losses = by_embeddings_and_heads(embeddings, parts.heads)
    jacobian, own_gradient = pull(slopes)
    return losses, jacobian, nnx.merge_state(own_gradient, heads_gradient)


def _embed_by_task(
    run: Run,
    parts: Parts,
    frozen: nnx.State,
    images: Float[Array, "B H W 3"],
    key: Key[Array, ""],
) -> tuple[Float[Array, "T B h w D"], Callable]:
    """Embeddings, and their pullback to (a Jacobian of what is shared, each task's own)."""
    num_tasks = len(run.tasks)

    def embed(common, own, task, key):
        model = _merge(run, Parts(common, own, parts.heads), frozen)
        return model.image_encoder(model.to_padded(images), (task,), key=key)[0]

    # The mesh's `task` axis shares what vmap lays side by side.
    if AdapterConfig.of(run.config.adapter).per_task:
        # Every task is encoded for itself anyway. With a copy of the shared parameters for each,
        # this costs what an ordinary step does.
        places = jnp.arange(num_tasks), jax.random.split(key, num_tasks)
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_tasks, *x.shape)), parts.common)
        side_by_side = jax.vmap(embed, in_axes=(0, None, 0, 0), spmd_axis_name="task")
        return jax.vjp(lambda *trained: side_by_side(*trained, *places), copies, parts.own)
    # One encoding serves all; it is pulled back for each of them.
    embedding, pull = jax.vjp(lambda *trained: embed(*trained, 0, key), parts.common, parts.own)
    embeddings = jnp.broadcast_to(embedding, (num_tasks, *embedding.shape))
    return embeddings, jax.vmap(pull, out_axes=(0, None), spmd_axis_name="task")


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


def _losses(run: Run, maps: Batch, part: Batch, counts: Float[Array, "T"]) -> Float[Array, "T"]:
    """A part's share of each task's loss."""
    sums = [task.loss(maps[task.name], part[task.name])[0] for task in run.tasks]
    return jnp.stack(sums) / counts


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
