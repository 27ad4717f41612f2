"""How the gradients of T tasks become one, on the parameters that all tasks share.

A method gets the tasks' gradients as one tree, every leaf with a leading task axis (`Jacobian`),
and gives their weighted sum and a weight for the gradient of what belongs to each task alone. All
but `DBMTL` find the weights in the Gram matrix of the gradients, [T, T], so what they solve is
tiny, replicated on a mesh, and has a fixed number of steps. It needs products in full float32,
which accelerators make only when asked: `jax.default_matmul_precision`.

Sums over tasks in the papers are means here, as in `talora_jax.weighting.losses`: the pull of the
orthogonal regulariser, which is added afterwards and not balanced, does not grow with T. Where all
tasks have the same gradient, or there is but one, a method gives that gradient itself, but for
CAGrad, which gives (1 + c) / (1 + c²) of it, and DB-MTL (with β = 0), which gives 1 / L of it.

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

KINDS = ("pcgrad", "cagrad", "nash_mtl", "fairgrad", "aligned_mtl", "upgrad", "db_mtl")

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


class _ByGram(Balancing):
    """A method whose weights follow from the Gram matrix alone; a task's own parameters get its
    plain gradient."""

    @abc.abstractmethod
    def weights(self, gram: Float[Array, "T T"]) -> Float[Array, "T"]:
        """How much each task's gradient counts."""

    def combine(self, jacobian, losses, state, step, key):
        weights = self.weights(gram_matrix(jacobian))
        return Balanced(weighted_sum(weights, jacobian), weights, _mean(len(weights)), state)


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
class CAGrad(_ByGram):
    """The direction near the mean that serves the worst-served task best (Liu et al. 2021).

    max_d min_t g_tᵀd with ‖d − g₀‖ ≤ c‖g₀‖, g₀ the mean. Divided by 1 + c², as in the authors' code
    for NYUv2. A task's own parameters get its plain gradient.
    """

    c: float

    def weights(self, gram):
        return cagrad_weights(gram, self.c) / (1 + self.c**2)


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
    norms, cosines = _cosines(gram)
    # With α_t = β_t / ‖g_t‖ the equation is one of cosines, whatever the scales of the tasks.
    beta = _minimise_with_barrier(
        lambda b: b @ cosines @ b / 2, jnp.ones(tasks), np.eye(tasks, dtype=np.float32), np.ones(50)
    )
    largest = jnp.diag(gram).max()
    size = jnp.sqrt(largest * jnp.linalg.norm(_safe_ratio(gram, largest)))
    return jnp.where(norms > 0, size * _safe_ratio(beta, norms), 1) / tasks


@dataclasses.dataclass(frozen=True)
class FairGrad(_ByGram):
    """The α-fair direction: Σ_t w_t g_t with (GᵀG) w = w^(−1/α) (Ban & Ji 2024).

    α = 1 is Nash-MTL's direction; a larger α looks more at the tasks that gain least. As there GᵀG
    is divided by its Frobenius norm, which changes the gradient's length and not its direction; the
    authors clip it to norm 1: `config.optimizer.clip_norm`. Solved exactly: w is the minimum of the
    convex ½ wᵀGᵀGw − Σ ∫w^(−1/α), where the authors fit least squares. A task's own parameters get
    its plain gradient. Where the tasks' pulls cancel there is no solution; w is then large but
    bounded.
    """

    alpha: float

    def weights(self, gram):
        return fair_weights(gram, self.alpha)


def fair_weights(gram: Float[Array, "T T"], alpha: float) -> Float[Array, "T"]:
    """w / T with (GᵀG / ‖GᵀG‖_F) w = w^(−1/α); 1/T for a task whose gradient is zero."""
    tasks = len(gram)
    norms, cosines = _cosines(gram)
    ratios = jnp.where(norms > 0, _safe_ratio(norms, norms.max()), 1)
    # With w_t = x_t / ‖g_t‖ the equation is Σ_s cos_ts x_s = pulls_t x_t^(−1/α).
    pulls = ratios ** (1 / alpha - 1)

    def objective(x):
        utility = jnp.log(x) if alpha == 1 else x ** (1 - 1 / alpha) / (1 - 1 / alpha)
        return x @ cosines @ x / 2 - pulls @ utility

    # From the solution for gradients at right angles.
    x = _minimise_with_barrier(
        objective,
        pulls ** (alpha / (1 + alpha)),
        np.eye(tasks, dtype=np.float32),
        np.zeros(50),
    )
    size = jnp.linalg.norm(_safe_ratio(gram, jnp.diag(gram).max())) ** (alpha / (1 + alpha))
    return jnp.where(norms > 0, size * x / ratios, 1) / tasks


@dataclasses.dataclass(frozen=True)
class AlignedMTL(_ByGram):
    """The mean of gradients that are made orthogonal and equally long (Senushkin et al. 2023).

    Ĝ = G B with B = √λ_min V Λ^(−1/2) Vᵀ, VΛVᵀ = GᵀG: the orthogonal directions nearest to G, as
    long as the weakest of its principal components; tasks are of equal weight. Components weaker
    than float32 tells from rounding (λ ≤ λ_max T ε, as in the authors' code) are left out. A task's
    own parameters get its plain gradient.
    """

    def weights(self, gram):
        return aligned_weights(gram)


def aligned_weights(gram: Float[Array, "T T"]) -> Float[Array, "T"]:
    """B 1 / T; it does not change with the scale of the gradients."""
    tasks = len(gram)
    values, vectors = jnp.linalg.eigh(_safe_ratio(gram, jnp.trace(gram)))
    kept = values > values.max() * tasks * np.finfo(np.float32).eps
    least = jnp.where(kept, values, jnp.inf).min()
    return vectors @ (jnp.sqrt(jnp.where(kept, _safe_ratio(least, values), 0)) * vectors.mean(0))


@dataclasses.dataclass(frozen=True)
class UPGrad(_ByGram):
    """The mean of the gradients, each at the nearest point that no task is against (Quinton & Rey
    2024).

    Mean_t π(g_t), π the projection on the dual cone {d: g_sᵀd ≥ 0 for all s} (their eq. 3), as the
    quadratic program of their proposition 1; exact but for a ridge of 10⁻⁶ on the cosines. A task's
    own parameters get its plain gradient.
    """

    def weights(self, gram):
        return upgrad_weights(gram)


def upgrad_weights(gram: Float[Array, "T T"]) -> Float[Array, "T"]:
    """Weights of Mean_t π(g_t); 1/T for a task whose gradient is zero."""
    tasks = len(gram)
    norms, cosines = _cosines(gram)
    identity = np.eye(tasks, dtype=np.float32)

    def projected(unit):
        """π of one of the gradients of length 1, in these: unit + s, s ≥ 0 with the least norm."""
        s = _minimise_with_barrier(
            lambda s: (unit + s) @ cosines @ (unit + s) / 2,
            jnp.ones(tasks),
            identity,
            np.geomspace(1, 1e-8, 36).repeat(2),
        )
        # The barrier tells which s are 0 (those tasks gain); the others' gains are 0 exactly. Where
        # gradients are opposite it cannot tell, and does not matter.
        gains = cosines @ (unit + s)
        free = s > gains
        system = jnp.where(free[:, None] & free, cosines, identity)
        solved = jnp.linalg.solve(system, jnp.where(free, -cosines @ unit, 0))
        return unit + jnp.where((solved >= 0).all(), solved, s)

    weights = _safe_ratio(norms @ jax.vmap(projected)(jnp.asarray(identity)), norms)
    return jnp.where(norms > 0, weights, 1) / tasks


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
        case "fairgrad":
            return FairGrad(config.fairgrad_alpha)
        case "aligned_mtl":
            return AlignedMTL()
        case "upgrad":
            return UPGrad()
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


def _cosines(gram: Float[Array, "T T"]) -> tuple[Float[Array, "T"], Float[Array, "T T"]]:
    """The gradients' norms, and their cosines, with the identity for a gradient that is zero.

    A ridge on the diagonal, far below what float32 tells of a cosine of millions of parameters,
    bounds what is solved with them where they are singular: of Nash-MTL by 1000.
    """
    norms = jnp.sqrt(jnp.diag(gram))
    identity = np.eye(len(gram))
    cosines = _safe_ratio(gram, jnp.outer(norms, norms)) * (1 - identity) + identity
    return norms, cosines + 1e-6 * identity


def _norm(weights: Float[Array, "T"], gram: Float[Array, "T T"]) -> Float[Array, ""]:
    """‖Σ_t weights_t g_t‖, rounded off near 0, where the norm has no slope."""
    return jnp.sqrt(jnp.maximum(weights @ gram @ weights, 0) + 1e-11)


def _mean(tasks: int) -> Float[Array, "T"]:
    return jnp.full(tasks, 1 / tasks, jnp.float32)


def _safe_ratio(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, and 0 where the denominator is 0 or less."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)
