"""Each task's loss and its gradient, apart by task.

Where tasks are encoded one after the other (`MSam.takes_turns`), each goes forward and backward
before the next one does: activations are one task's. Else one pass forward and one backward serve
all tasks.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import MSam
from talora_jax.training.setup import Run
from talora_jax.weighting.gradients import Jacobian

Batch = dict[str, Array]


class Parts(NamedTuple):
    """What trains: what tasks share in the encoder, each task's own there, decoders and rows."""

    common: nnx.State
    own: nnx.State
    heads: nnx.State


class Given(NamedTuple):
    """What a part of a batch is computed from, but for what trains.

    Attributes:
      part: the part.
      counts: labelled pixels of each task in the whole batch, at least 1.
      key: for dropout.
    """

    run: Run
    frozen: nnx.State
    part: Batch
    counts: Float[Array, "T"]
    key: Key[Array, ""]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.part["image"].shape[1:3]

    def merge(self, *trainable: nnx.State) -> MSam:
        """The model, with what trains as one state or as `Parts`."""
        return nnx.merge(self.run.graphdef, *trainable, self.frozen)

    def trunk(self, model: MSam) -> Float[Array, "B h w D"]:
        """What the model's trunk gives of the part's images, if the batch does not bring it."""
        return self.part["trunk"] if "trunk" in self.part else model.trunk(self.part["image"])

    def loss(self, number: int, maps: Float[Array, "B H W C"]) -> Float[Array, ""]:
        """The part's share of a task's loss, of raw maps."""
        task = self.run.tasks[number]
        return task.loss(maps, self.part[task.name])[0] / self.counts[number]

    def losses(self, maps: dict[str, Float[Array, "B H W C"]]) -> Float[Array, "T"]:
        """The part's share of each task's loss, of raw maps."""
        return jnp.stack([self.loss(t, maps[task.name]) for t, task in enumerate(self.run.tasks)])


class TaskGradients(NamedTuple):
    """Losses, and their gradients. Sums over the parts of a batch, as losses are.

    Attributes:
      losses: each task's.
      jacobian: every loss's gradient by `Parts.common`.
      own: of each loss the gradient by what its task has alone, in one tree.
    """

    losses: Float[Array, "T"]
    jacobian: Jacobian
    own: nnx.State


def task_gradients(given: Given, parts: Parts) -> TaskGradients:
    """The losses and gradients of a part of a batch."""
    takes_turns = given.merge(*parts).takes_turns(len(given.part["image"]), given.size)
    return (_in_turn if takes_turns else _together)(given, parts)


def _in_turn(given: Given, parts: Parts) -> TaskGradients:
    """One task after the other, in one program whatever the tasks."""
    model = given.merge(*parts)
    # No gradient goes through it: what trains in the encoder comes after.
    trunk = given.trunk(model)

    def add_task(own_sum, task):
        def embed(common, own):
            encoder = given.merge(common, own, parts.heads).image_encoder
            return encoder.from_trunk(trunk, (task,), key=given.key)[0]

        embedding, pull = jax.vjp(embed, parts.common, parts.own)
        loss, slope, heads = _heads_gradient(given, parts, embedding, task)
        row, own = pull(slope)
        return jax.tree.map(jnp.add, own_sum, (own, heads)), (loss, row)

    zeros = jax.tree.map(jnp.zeros_like, (parts.own, parts.heads))
    own, (losses, jacobian) = jax.lax.scan(add_task, zeros, jnp.arange(len(given.run.tasks)))
    return TaskGradients(losses, jacobian, nnx.merge_state(*own))


def _heads_gradient(
    given: Given, parts: Parts, embedding: Float[Array, "B h w D"], task: Int[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, "B h w D"], nnx.State]:
    """A task's loss, and its gradient by its embedding and by `Parts.heads`.

    Channels are decoded one after the other, and again for their gradients. Which task it is, is
    traced, and so is how many channels it has: one decoder is compiled. Only the resize of its maps
    and its loss are compiled for every task.
    """
    model = given.merge(*parts)
    positions = model.grid_positions(*embedding.shape[1:3])
    widths = np.array(model.channels)
    first, channels = (jnp.array(x)[task] for x in (widths.cumsum() - widths, widths))

    def chosen(heads):
        """The task's decoder, and the rows of all."""
        model = given.merge(*parts._replace(heads=heads))
        decoder = jax.tree.map(lambda x: x[task], nnx.state(model.mask_decoders))
        return decoder, model.no_mask_embed[...]

    def decode(embedding, decoder, rows, i):
        row = rows[first + i][None]
        return model.decode_channels(decoder, embedding, positions, row)[..., 0]

    def loss_of(number):
        def loss(maps):
            maps = jnp.moveaxis(maps[: widths[number]], 0, -1)
            return given.loss(number, model.from_padded(maps, given.size))

        return jax.value_and_grad(loss)

    heads, pull_heads = jax.vjp(chosen, parts.heads)
    a_map = jax.eval_shape(decode, embedding, *heads, 0)
    maps = jax.lax.fori_loop(
        0,
        channels,
        lambda i, maps: maps.at[i].set(decode(embedding, *heads, i)),
        jnp.zeros((widths.max(), *a_map.shape), a_map.dtype),
    )
    loss, slopes = jax.lax.switch(task, [loss_of(t) for t in range(len(widths))], maps)

    def add_channel(i, sums):
        _, pull = jax.vjp(lambda *x: decode(*x, i), embedding, *heads)
        return jax.tree.map(jnp.add, sums, pull(slopes[i]))

    # In float32, whatever an embedding is in: it may be a sum over many channels.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (embedding, *heads))
    slope, *slopes_of_heads = jax.lax.fori_loop(0, channels, add_channel, zeros)
    return loss, slope.astype(embedding.dtype), *pull_heads(tuple(slopes_of_heads))


def _together(given: Given, parts: Parts) -> TaskGradients:
    """One pass forward and one backward.

    A task's map depends on its own embedding, decoder and rows alone, so the pullback of Σ_t L_t
    through the decoders gives all their gradients and, row by row, the gradient of every loss by
    its embedding. The encoder then is pulled back once, with the shared parameters' gradients kept
    apart by task: [T, ...].
    """

    def decode(embeddings, heads):
        model = given.merge(*parts._replace(heads=heads))
        low_res = model.decode(embeddings, model.tasks)
        maps = {name: model.from_padded(x, given.size) for name, x in low_res.items()}
        losses = given.losses(maps)
        return losses.sum(), losses

    embeddings, pull = _embed_by_task(given, parts)
    by_embeddings_and_heads = jax.grad(decode, argnums=(0, 1), has_aux=True)
    (slopes, heads_gradient), losses = by_embeddings_and_heads(embeddings, parts.heads)
    jacobian, own_gradient = pull(slopes)
    return TaskGradients(losses, jacobian, nnx.merge_state(own_gradient, heads_gradient))


def _embed_by_task(given: Given, parts: Parts) -> tuple[Float[Array, "T B h w D"], Callable]:
    """Embeddings, and their pullback to (a Jacobian of what is shared, each task's own)."""
    num_tasks = len(given.run.tasks)

    def embed(common, own, task):
        model = given.merge(common, own, parts.heads)
        return model.image_encoder.from_trunk(given.trunk(model), (task,), key=given.key)[0]

    # The mesh's `task` axis shares what vmap lays side by side.
    if AdapterConfig.of(given.run.config.adapter).per_task:
        # Every task is encoded for itself anyway. With a copy of the shared parameters for each,
        # this costs what an ordinary step does.
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_tasks, *x.shape)), parts.common)
        side_by_side = jax.vmap(embed, in_axes=(0, None, 0), spmd_axis_name="task")
        tasks = jnp.arange(num_tasks)
        return jax.vjp(lambda *trained: side_by_side(*trained, tasks), copies, parts.own)
    # One encoding serves all; it is pulled back for each of them.
    embedding, pull = jax.vjp(lambda *trained: embed(*trained, 0), parts.common, parts.own)
    embeddings = jnp.broadcast_to(embedding, (num_tasks, *embedding.shape))
    return embeddings, jax.vmap(pull, out_axes=(0, None), spmd_axis_name="task")
