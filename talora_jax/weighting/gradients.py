"""How the gradients of T tasks become one, on the parameters that all tasks share.

A method gets the tasks' gradients as one tree, every leaf with a leading task axis (`Jacobian`),
and gives their weighted sum and a weight for the gradient of what belongs to each task alone. All
but `DBMTL` find the weights in the Gram matrix of the gradients, [T, T], so what they solve is
tiny, replicated on a mesh, and has a fixed number of steps. It needs products in full float32,
which accelerators make only when asked: `jax.default_matmul_precision`.

Sums over tasks in the papers are means here, as in `talora_jax.weighting.losses`: the pull of the
orthogonal regulariser, which is added afterwards and not balanced, does not grow with T. Where all
tasks have the same gradient, or there is but one, PCGrad and Nash-MTL give that gradient itself,
CAGrad (1 + c) / (1 + c²) of it, and DB-MTL (with β = 0) 1 / L of it.

A task whose gradient is zero, such as one without a label in the batch, turns no direction.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from talora_jax.errors import UserError

KINDS = ("pcgrad", "cagrad", "nash_mtl", "db_mtl")

Jacobian = PyTree[Float[Array, "T ..."]]


class Balanced(NamedTuple):
    """One step's outcome.

    Attributes:
      gradient: of the shared parameters.
      weights: how much each task's gradient counts in it.
      own_weights: the factor on the gradient of each task's own parameters.
      state: for the next step.
    """

    gradient: PyTree
    weights: Float[Array, "T"]
    own_weights: Float[Array, "T"]
    state: PyTree


class Balancing(abc.ABC):
    """A method that balances gradients."""

    def init_state(self, shared: PyTree, num_tasks: int) -> PyTree:
        """What is carried from step to step and belongs in a checkpoint."""
        return {}

    @abc.abstractmethod
    def combine(
        self,
        jacobian: Jacobian,
        losses: Float[Array, "T"],
        state: PyTree,
        step: Int[Array, ""],
        key: Key[Array, ""],
    ) -> Balanced:
        """Balances the gradients of the whole batch.

        Args:
          jacobian: the gradient of every task's loss by the shared parameters.
          losses: of the whole batch.
          state: of the step before, or `init_state`.
          step: counts from 0.
          key: for methods that draw lots.
        """


@dataclasses.dataclass(frozen=True)
class PCGrad(Balancing):
    """The mean of the gradients, each without what it has against the others (Yu et al. 2020).

    Algorithm 1: task by task, in an order drawn anew for each, a gradient that points against
    another task's is projected on the plane normal to it. A task's own parameters get its plain
    gradient.
    """

    def combine(self, jacobian, losses, state, step, key):
        gram = gram_matrix(jacobian)
        tasks = len(gram)
        orders = jax.vmap(lambda k: jax.random.permutation(k, tasks))(jax.random.split(key, tasks))
        weights = pcgrad_weights(gram, orders)
        return Balanced(weighted_sum(weights, jacobian), weights, _mean(tasks), state)


def pcgrad_weights(gram: Float[Array, "T T"], orders: Int[Array, "T T"]) -> Float[Array, "T"]:
    """Weights of PCGrad's mean; row i of `orders` is the order in which task i meets the tasks."""
    tasks = len(gram)

    def projected(task, order):
        def project(coefficients, other):
            # How far the gradient built so far, Σ_k coefficients_k g_k, points against g_other.
            against = jnp.minimum(coefficients @ gram[other], 0)
            share = _safe_ratio(against, gram[other, other])
            return coefficients.at[other].add(jnp.where(other == task, 0, -share)), None

        return jax.lax.scan(project, jax.nn.one_hot(task, tasks, dtype=gram.dtype), order)[0]

    return jax.vmap(projected)(jnp.arange(tasks), orders).mean(axis=0)


@dataclasses.dataclass(frozen=True)
class CAGrad(Balancing):
    """The direction near the mean that serves the worst-served task best (Liu et al. 2021).

    max_d min_t g_tᵀd with ‖d − g₀‖ ≤ c‖g₀‖, g₀ the mean. Divided by 1 + c², as in the authors' code
    for NYUv2. A task's own parameters get its plain gradient.
    """

    c: float

    def combine(self, jacobian, losses, state, step, key):
        weights = cagrad_weights(gram_matrix(jacobian), self.c) / (1 + self.c**2)
        return Balanced(weighted_sum(weights, jacobian), weights, _mean(len(weights)), state)


def cagrad_weights(gram: Float[Array, "T T"], c: float) -> Float[Array, "T"]:
    """Weights of d = g₀ + c‖g₀‖ g_w/‖g_w‖, w the minimum of g_wᵀg₀ + c‖g₀‖‖g_w‖ on the simplex."""
    tasks = len(gram)
    mean = _mean(tasks)
    # Neither w nor d's weights change with the scale of the gradients.
    gram = _safe_ratio(gram, jnp.trace(gram) / tasks)
    radius = c * _norm(mean, gram)
    # A task without a gradient would always be the worst served, whatever the direction.
    absent = jnp.diag(gram) <= 0

    def objective(w):
        return w @ gram @ mean + radius * _norm(w, gram) + tasks**2 * jnp.sum(w * absent)

    if tasks == 1:
        w = mean
    else:
        # The rows of a rotation of the corner (1, …, 1) span the plane in which Σ w stays 1.
        plane = np.linalg.svd(np.ones((1, tasks)))[2][1:].astype(np.float32)
        w = _minimise_with_barrier(objective, mean, plane, np.geomspace(1, 1e-8, 36).repeat(2))
    return mean + jnp.where(absent, 0, radius * w / _norm(w, gram))


@dataclasses.dataclass(frozen=True)
class NashMTL(Balancing):
    """The Nash bargaining solution: Σ_t α_t g_t with (GᵀG) α = 1/α (Navon et al. 2022, eq. 2).

    With the scale of the authors' code, which divides GᵀG by its Frobenius norm before it solves.
    The equation is solved exactly: α is the minimum of the convex ½ αᵀGᵀGα − Σ log α, where the
    paper approximates. A task's own parameters get its gradient times α_t. Where the tasks' pulls
    cancel there is no solution; α is then large but bounded. The authors clip the gradient to norm
    1: `config.optimizer.clip_norm`.

    Attributes:
      update_every: steps from one solution to the next; in between α stays.
    """

    update_every: int

    def init_state(self, shared, num_tasks):
        return {"weights": _mean(num_tasks)}

    def combine(self, jacobian, losses, state, step, key):
        solved = nash_weights(gram_matrix(jacobian))
        weights = jnp.where(step % self.update_every == 0, solved, state["weights"])
        return Balanced(weighted_sum(weights, jacobian), weights, weights, {"weights": weights})


def nash_weights(gram: Float[Array, "T T"]) -> Float[Array, "T"]:
    """√‖GᵀG‖_F α / T; 1/T for a task whose gradient is zero."""
    tasks = len(gram)
    squares = jnp.diag(gram)
    norms = jnp.sqrt(squares)
    # With α_t = β_t / ‖g_t‖ the equation is one of cosines, whatever the scales of the tasks. The
    # ridge, far below what float32 tells of a cosine of millions of parameters, bounds β by 1000.
    cosines = _safe_ratio(gram, jnp.outer(norms, norms)) * (1 - np.eye(tasks)) + np.eye(tasks)
    cosines += 1e-6 * np.eye(tasks)
    beta = _minimise_with_barrier(
        lambda b: b @ cosines @ b / 2, jnp.ones(tasks), np.eye(tasks, dtype=np.float32), np.ones(50)
    )
    largest = squares.max()
    size = jnp.sqrt(largest * jnp.linalg.norm(_safe_ratio(gram, largest)))
    return jnp.where(norms > 0, size * _safe_ratio(beta, norms), 1) / tasks


@dataclasses.dataclass(frozen=True)
class DBMTL(Balancing):
    """Gradients of the log losses, smoothed, all as long as the longest (Lin et al. 2023).

    ĝ_t ← β ĝ_t + (1 − β) ∇log L_t from ĝ_t = 0; the mean of ĝ_t · max_s ‖ĝ_s‖ / ‖ĝ_t‖. A task's own
    parameters get the gradient of its log loss. It carries T gradients of the shared parameters.
    """

    beta: float

    def init_state(self, shared, num_tasks):
        return jax.tree.map(lambda x: jnp.zeros((num_tasks, *x.shape), x.dtype), shared)

    def combine(self, jacobian, losses, state, step, key):
        slopes = jnp.where(losses > 0, 1 / jnp.maximum(losses, 1e-8), 0)  # of the logarithms

        def smoothed(old, new):
            new = new * slopes.reshape(-1, *[1] * (new.ndim - 1))
            return self.beta * old + (1 - self.beta) * new

        state = jax.tree.map(smoothed, state, jacobian)
        norms = jnp.sqrt(jnp.diag(gram_matrix(state)))
        lengthening = _safe_ratio(norms.max(), norms) / len(norms)
        gradient = weighted_sum(lengthening, state)
        return Balanced(gradient, lengthening * slopes, slopes / len(norms), state)


def make_balancing(config: ml_collections.ConfigDict) -> Balancing:
    """The method of `config.kind`.

    Args:
      config: `config.weighting` of a run, of which each method reads its own fields.

    Raises:
      UserError: an unknown kind.
    """
    match config.kind:
        case "pcgrad":
            return PCGrad()
        case "cagrad":
            return CAGrad(config.cagrad_c)
        case "nash_mtl":
            return NashMTL(config.nash_update_every)
        case "db_mtl":
            return DBMTL(config.db_mtl_beta)
        case unknown:
            raise UserError(f"Unknown balancing {unknown!r}: expected one of {', '.join(KINDS)}.")


def gram_matrix(jacobian: Jacobian) -> Float[Array, "T T"]:
    """⟨g_s, g_t⟩ over all parameters."""
    return sum(jnp.einsum("s...,t...->st", x, x) for x in jax.tree.leaves(jacobian))


def weighted_sum(weights: Float[Array, "T"], jacobian: Jacobian) -> PyTree:
    """Σ_t weights_t g_t."""
    return jax.tree.map(lambda x: jnp.einsum("t,t...->...", weights, x), jacobian)


def _minimise_with_barrier(
    smooth: Callable[[Float[Array, "T"]], Float[Array, ""]],
    start: Float[Array, "T"],
    directions: Float[np.ndarray, "n T"],
    barriers: Float[np.ndarray, "steps"],
) -> Float[Array, "T"]:
    """The w > 0 with the least smooth(w) − μ Σ log w in start + span(directions), `smooth` convex.

    One Newton step for each μ of `barriers`, no longer than w > 0 and a falling slope allow. The
    slope decides and not the value, of whose minimum float32 tells only half the digits.
    """

    def step(w, mu):
        def slope(w):
            return directions @ (jax.grad(smooth)(w) - mu / w)

        curvature = jax.hessian(smooth)(w) + jnp.diag(mu / w**2)
        newton = directions.T @ jnp.linalg.solve(directions @ curvature @ directions.T, -slope(w))
        # Where rounding has made the curvature singular w stays.
        newton = jnp.where(jnp.all(jnp.isfinite(newton)), newton, 0)
        longest = 0.9 / jnp.maximum(0.9, jnp.max(-newton / w))
        lengths = longest * jnp.append(0.5 ** jnp.arange(8), 0)
        tried = w + lengths[:, None] * newton
        steepness = jnp.linalg.norm(jax.vmap(slope)(tried), axis=-1)
        return tried[jnp.argmin(jnp.where(jnp.isfinite(steepness), steepness, jnp.inf))], None

    return jax.lax.scan(step, start, jnp.asarray(barriers, jnp.float32))[0]


def _norm(weights: Float[Array, "T"], gram: Float[Array, "T T"]) -> Float[Array, ""]:
    """‖Σ_t weights_t g_t‖, rounded off near 0, where the norm has no slope."""
    return jnp.sqrt(jnp.maximum(weights @ gram @ weights, 0) + 1e-11)


def _mean(tasks: int) -> Float[Array, "T"]:
    return jnp.full(tasks, 1 / tasks, jnp.float32)


def _safe_ratio(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, and 0 where the denominator is 0 or less."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)
