"""One step of training: its state, and the jitted function from state to state."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int, PyTree

from talora_jax.models.adapters import AdapterConfig
from talora_jax.sharding import replicated
from talora_jax.training import gradients
from talora_jax.training.optim import make_optimizer, make_schedule
from talora_jax.training.prompted import objective
from talora_jax.training.setup import Run

# By `config.trains`.
_GRADIENTS = {"tasks": gradients, "prompts": objective}


class TrainState(NamedTuple):
    """What changes from step to step.

    Attributes:
      step: steps done.
      trainable: {"model": nnx.State, "weighting": trained parameters of the loss weighting}.
      opt_state: optimizer state.
      weighting: the own state of what weighs the losses or balances the gradients.
    """

    step: Int[Array, ""]
    trainable: dict[str, PyTree]
    opt_state: optax.OptState
    weighting: PyTree


def init_state(run: Run) -> TrainState:
    """The state before the first step, replicated over the mesh."""
    params, weighting = _GRADIENTS[run.config.trains].init_weighting(run)
    optimizer = make_optimizer(run.config, make_schedule(run.config))

    @jax.jit  # one program, where every parameter would take some
    def start(trainable, weighting):
        # Copies: the step donates its state, and the run keeps its own.
        trainable, weighting = jax.tree.map(jnp.copy, (trainable, weighting))
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, trainable, optimizer.init(trainable), weighting)

    state = start({"model": run.trainable, "weighting": params}, weighting)
    return jax.device_put(state, replicated(run.mesh))


def abstract_state(run: Run) -> TrainState:
    """The shapes of `init_state`; the run may be abstract, too."""
    return jax.eval_shape(
        lambda x: init_state(dataclasses.replace(run, trainable=x)), run.trainable
    )


def make_train_step(run: Run):
    """The jitted step (state, frozen, batch) → (state, scalars); state is donated.

    Both are replicated, as `init_state` is: left to the compiler, what belongs to tasks may come
    back laid over the mesh's `task`, and no host would have all of it to save.
    """
    config = run.config
    gradient_of = _GRADIENTS[config.trains].make_gradient(run)
    schedule = make_schedule(config)
    optimizer = make_optimizer(config, schedule)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=replicated(run.mesh))
    def train_step(state: TrainState, frozen: nnx.State, batch: dict[str, Array]):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        found = gradient_of(state.trainable, state.weighting, frozen, batch, state.step, key)
        updates, opt_state = optimizer.update(found.gradient, state.opt_state, state.trainable)
        scalars = {
            **found.scalars,
            "grad_norm": optax.tree.norm(found.gradient),
            "learning_rate": schedule(state.step),
        }
        trainable = optax.apply_updates(state.trainable, updates)
        return TrainState(state.step + 1, trainable, opt_state, found.weighting), scalars

    return train_step


def make_relative_updates(run: Run):
    """The jitted function (state, frozen) → scalars: how large adapters' updates are beside the
    kernels, of every adapted block and the largest. Not of the step, for only the log needs it."""

    @functools.partial(jax.jit, out_shardings=replicated(run.mesh))
    def relative_updates(state: TrainState, frozen: nnx.State) -> dict[str, Array]:
        if not AdapterConfig.of(run.config.adapter).adapts:
            return {}
        model = nnx.merge(run.graphdef, state.trainable["model"], frozen)
        encoder = model.image_encoder
        ratios = encoder.relative_updates()
        numbered = zip(encoder.blocks, ratios, strict=True)
        each = {f"adapter/relative_update/{i:02d}": ratio for i, ratio in numbered}
        return {"adapter/relative_update": ratios.max(), **each}

    return relative_updates
