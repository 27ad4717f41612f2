"""The methods that balance gradients, against closed forms, their papers' formulas and SciPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls

from talora_jax import config as config_lib
from talora_jax.weighting import gradients as balancing
from talora_jax.weighting.gradients import (
    aligned_weights,
    cagrad_weights,
    fair_weights,
    nash_weights,
    pcgrad_weights,
    upgrad_weights,
)

KEY = jax.random.key(0)
SHARED = {"a": jnp.zeros((1, 2)), "b": jnp.zeros(3)}
cagrad = jax.jit(cagrad_weights, static_argnums=1)
nash = jax.jit(nash_weights)
fair = jax.jit(fair_weights, static_argnums=1)
aligned, upgrad = jax.jit(aligned_weights), jax.jit(upgrad_weights)


def gram(gradients):
    return jnp.float32(gradients @ gradients.T)


@functools.cache
def make(kind, **fields):
    """A method, compiled once: (method, combine)."""
    config = config_lib.default()
    config.weighting.kind = kind
    config.weighting.update(fields)
    method = balancing.make_balancing(config.weighting)
    return method, jax.jit(method.combine)


def tree(gradients):
    """Rows of gradients as a tree of two leaves with a leading task axis."""
    gradients = jnp.float32(gradients)
    return {"a": gradients[:, :2].reshape(-1, 1, 2), "b": gradients[:, 2:]}


def flat(balanced):
    return np.concatenate([balanced.gradient["a"].ravel(), balanced.gradient["b"]])


def test_pcgrad_of_two_tasks_by_hand():
    # g1·g2 = -1: g1 − (−1/2) g2 = (1/2, 1/2), g2 − (−1/1) g1 = (0, 1).
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0]])
    for orders in ([[0, 1], [0, 1]], [[1, 0], [1, 0]]):
        weights = pcgrad_weights(gram(gradients), jnp.array(orders))
        np.testing.assert_allclose(weights @ gradients, [0.25, 0.75], rtol=1e-6)
    friends = np.array([[1.0, 0.0], [1.0, 1.0]])
    weights = pcgrad_weights(gram(friends), jnp.array(orders))
    np.testing.assert_allclose(weights, [0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_is_the_papers_algorithm_in_any_order(seed):
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(4, 3)) * rng.uniform(0.1, 10, (4, 1))
    orders = np.array([rng.permutation(4) for _ in range(4)])
    projected = gradients.copy()
    for i in range(4):
        for j in orders[i]:
            against = projected[i] @ gradients[j]
            if j != i and against < 0:
                projected[i] -= against / (gradients[j] @ gradients[j]) * gradients[j]
    weights = np.float64(pcgrad_weights(gram(gradients), jnp.asarray(orders)))
    np.testing.assert_allclose(weights @ gradients, projected.mean(0), rtol=0, atol=1e-5)
    assert np.abs(weights - 0.25).max() > 0.01


def test_pcgrad_draws_its_orders_from_the_key():
    gradients = tree([[1.0, 0, 0, 0, 0], [-1, 1, 0, 0, 0], [-1, -1, 1, 0, 0]])
    _, combine = make("pcgrad")
    drawn = [flat(combine(gradients, jnp.ones(3), {}, 0, k)) for k in jax.random.split(KEY, 16)]
    assert len({tuple(gradient.round(4)) for gradient in drawn}) > 1
    np.testing.assert_array_equal(
        flat(combine(gradients, jnp.ones(3), {}, 0, jax.random.split(KEY, 16)[0])), drawn[0]
    )


@settings(deadline=None, max_examples=25)
@given(
    angle=st.floats(0.1, 3.0),
    length=st.floats(0.1, 10),
    c=st.sampled_from([0.2, 0.4, 0.9]),
    unit=st.sampled_from([1e-8, 1.0, 1e4]),
)
def test_cagrad_of_two_tasks_has_a_closed_form(angle, length, c, unit):
    first, second = np.array([1.0, 0]), length * np.array([np.cos(angle), np.sin(angle)])
    gradients = unit * np.array([first, second])
    mean = gradients.mean(0)
    # The disc around the mean is served best at its point farthest along the worse gradient, or,
    # where that one is no longer the worse then, along the line on which both are served alike.
    radius = c * np.linalg.norm(mean)
    candidates = [mean + radius * g / np.linalg.norm(g) for g in gradients]
    difference = gradients[0] - gradients[1]
    normal = difference / np.linalg.norm(difference)
    distance = normal @ mean  # of the mean from that line
    if abs(distance) < radius:
        along = np.array([-normal[1], normal[0]])
        chord = np.sqrt(radius**2 - distance**2)
        candidates += [mean - distance * normal + sign * chord * along for sign in (1, -1)]
    best = max(candidates, key=lambda d: (gradients @ d).min())
    found = np.float64(cagrad(gram(gradients), c)) @ gradients
    np.testing.assert_allclose(found, best, rtol=0, atol=3e-3 * np.linalg.norm(best))
    served = (gradients @ found).min() - (gradients @ best).min()
    assert abs(served) < 1e-4 * unit**2 * max(1, length**2)


@pytest.mark.parametrize("seed", range(6))
def test_cagrad_of_four_tasks_is_scipys_minimum(seed):
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(4, 5)) + 1.5 * rng.normal(size=5) * (seed % 2)
    square = gradients @ gradients.T
    even, c = np.full(4, 1 / 4), 0.4
    radius = c * np.sqrt(even @ square @ even)
    solved = minimize(
        lambda w: w @ square @ even + radius * np.sqrt(w @ square @ w),
        even,
        bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    ).x
    expected = even + radius * solved / np.sqrt(solved @ square @ solved)
    found = np.float64(cagrad(gram(gradients), c))
    np.testing.assert_allclose(found @ gradients, expected @ gradients, rtol=0, atol=1e-3)


def test_cagrad_without_room_is_the_mean():
    gradients = np.random.default_rng(0).normal(size=(3, 4))
    np.testing.assert_allclose(cagrad(gram(gradients), 0.0), np.full(3, 1 / 3), rtol=1e-6)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_nash_solves_its_equation(tasks):
    rng = np.random.default_rng(tasks)
    for scale in (1e-7, 1, 1e4):
        gradients = rng.normal(size=(tasks, 8)) * 10 ** rng.uniform(-2, 2, (tasks, 1)) * scale
        square = gradients @ gradients.T
        alpha = np.float64(nash(jnp.float32(square))) * tasks / np.linalg.norm(square) ** 0.5
        np.testing.assert_allclose(square @ alpha * alpha, 1, rtol=1e-4)


def test_nash_of_two_tasks_has_a_closed_form():
    for cosine in (-0.9, -0.2, 0, 0.5, 0.99):
        gradients = np.array([[2.0, 0], [3 * cosine, 3 * np.sqrt(1 - cosine**2)]])
        # α_t = 1 / (‖g_t‖ √(1 + cos)): the direction halves the angle, whatever the lengths.
        alpha = 1 / (np.array([2.0, 3.0]) * np.sqrt(1 + cosine))
        square = gradients @ gradients.T
        expected = alpha * np.linalg.norm(square) ** 0.5 / 2
        np.testing.assert_allclose(nash(jnp.float32(square)), expected, rtol=1e-4)


def test_nash_keeps_its_weights_between_solutions():
    method, combine = make("nash_mtl", nash_update_every=2)
    rng = np.random.default_rng(0)
    state, told = method.init_state({}, 2), []
    for step in range(4):
        outcome = combine(tree(rng.normal(size=(2, 5))), jnp.ones(2), state, step, KEY)
        state = outcome.state
        told.append(np.asarray(outcome.weights))
        np.testing.assert_array_equal(outcome.own_weights, outcome.weights)
    np.testing.assert_array_equal(told[0], told[1])
    np.testing.assert_array_equal(told[2], told[3])
    assert (told[1] != told[2]).all()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_fairgrad_solves_its_equation(tasks, alpha):
    rng = np.random.default_rng(tasks)
    for scale in (1e-7, 1, 1e4):
        gradients = rng.normal(size=(tasks, 8)) * 10 ** rng.uniform(-2, 2, (tasks, 1)) * scale
        square = gradients @ gradients.T
        w = np.float64(fair(jnp.float32(square), alpha)) * tasks
        residual = square / np.linalg.norm(square) @ w * w ** (1 / alpha)
        np.testing.assert_allclose(residual, 1, rtol=1e-3)


def test_fairgrad_of_two_tasks_has_a_closed_form():
    for alpha in (0.5, 2.0, 5.0):
        for cosine in (-0.9, -0.2, 0, 0.5, 0.99):
            # Of equal length: (1 + cos) w = w^(−1/α) ‖GᵀG‖_F.
            gradients = 3 * np.array([[1, 0], [cosine, np.sqrt(1 - cosine**2)]])
            size = np.sqrt(2 + 2 * cosine**2)
            w = (size / (1 + cosine)) ** (alpha / (1 + alpha))
            np.testing.assert_allclose(fair(gram(gradients), alpha), [w / 2] * 2, rtol=1e-4)
        # At right angles: ‖g_t‖² w_t = w_t^(−1/α) ‖GᵀG‖_F.
        gradients, size = np.diag([0.01, 3.0]), np.hypot(1e-4, 9)
        expected = (size / np.array([1e-4, 9])) ** (alpha / (1 + alpha)) / 2
        np.testing.assert_allclose(fair(gram(gradients), alpha), expected, rtol=1e-4)


def test_fairgrad_with_alpha_1_is_nash():
    square = gram(np.random.default_rng(0).normal(size=(4, 6)))
    np.testing.assert_allclose(fair(square, 1.0), nash(square), rtol=1e-4)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_aligned_gradients_are_orthogonal_and_as_long_as_the_weakest_component(tasks):
    rng = np.random.default_rng(tasks)
    for scale in (1e-8, 1, 1e4):
        gradients = rng.normal(size=(tasks, 8)) * rng.uniform(0.3, 3, (tasks, 1)) * scale
        # By the singular values, not by the Gram matrix: U Vᵀ is the nearest orthogonal system.
        left, singular, right = np.linalg.svd(gradients, full_matrices=False)
        expected = (singular[-1] * left @ right).mean(0)
        found = np.float64(aligned(gram(gradients))) @ gradients
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.linalg.norm(expected))


def test_aligned_mtl_of_two_tasks_by_hand():
    # At right angles both get the shorter one's length: 3 and 4 become 3 and 3.
    np.testing.assert_allclose(aligned(gram(np.diag([3.0, 4.0]))), [0.5, 0.375], rtol=1e-5)
    # Two alike and one across: of rank 2, components of √2 and 1, so the two count as one.
    three = np.array([[1.0, 0], [1, 0], [0, 1]])
    np.testing.assert_allclose(aligned(gram(three)) @ three, [np.sqrt(2) / 3, 1 / 3], rtol=1e-5)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_upgrad_is_the_mean_of_the_projections_on_the_dual_cone(tasks):
    conflicts = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        gradients = rng.normal(size=(tasks, 6)) - rng.normal(size=6) * (seed % 2)
        gradients *= 10 ** rng.uniform(-2, 2, (tasks, 1)) * (1e-8, 1, 1e4)[seed % 3]
        # Moreau: what lacks to the projection is the nearest point of the gradients' own cone.
        units = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
        projections = [g + np.linalg.norm(g) * units.T @ nnls(units.T, -u)[0]
                       for g, u in zip(gradients, units, strict=True)]  # fmt: skip
        expected = np.mean(projections, axis=0)
        found = np.float64(upgrad(gram(gradients))) @ gradients
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.linalg.norm(expected))
        assert (units @ found >= -1e-4 * np.linalg.norm(found)).all()
        conflicts += (gradients @ gradients.mean(0) < 0).any()
    assert conflicts > 1


def test_upgrad_of_two_tasks_by_hand():
    # (1, 0) and (−1, 1): projected on the other's plane, as PCGrad does, (1/2, 1/2) and (0, 1).
    against = np.array([[1.0, 0], [-1, 1]])
    np.testing.assert_allclose(upgrad(gram(against)) @ against, [0.25, 0.75], rtol=1e-5)
    for friends in (np.diag([1.0, 5.0]), np.array([[1.0, 0], [1, 1]])):
        np.testing.assert_allclose(upgrad(gram(friends)), [0.5, 0.5], rtol=1e-5)
    # What is left of a gradient and its opposite is nothing.
    opposed = np.array([[1.0, 0], [-2, 0]])
    np.testing.assert_allclose(upgrad(gram(opposed)) @ opposed, 0, atol=1e-3)


def test_db_mtl_is_the_papers_formula():
    beta = 0.7
    method, combine = make("db_mtl", db_mtl_beta=beta)
    rng = np.random.default_rng(0)
    state, smoothed = method.init_state(SHARED, 3), np.zeros((3, 5))
    for step in range(4):
        gradients, losses = rng.normal(size=(3, 5)), rng.uniform(0.1, 5, 3)
        outcome = combine(tree(gradients), jnp.float32(losses), state, step, KEY)
        state = outcome.state
        smoothed = beta * smoothed + (1 - beta) * gradients / losses[:, None]
        norms = np.linalg.norm(smoothed, axis=1)
        expected = (norms.max() / norms) @ smoothed / 3
        np.testing.assert_allclose(flat(outcome), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(outcome.own_weights, 1 / losses / 3, rtol=1e-6)


# Of the plain mean gradient, for losses of 2.
SCALES = dict.fromkeys(balancing.KINDS, 1) | {"cagrad": 1.4 / 1.16, "db_mtl": 1 / 2}


@pytest.mark.parametrize("kind", balancing.KINDS)
@pytest.mark.parametrize("tasks", [1, 3])
def test_one_task_or_equal_gradients_give_the_gradient_to_scale(kind, tasks):
    method, combine = make(kind, **({"db_mtl_beta": 0.0} if kind == "db_mtl" else {}))
    gradient = np.array([0.3, -1, 2, 0, 5])
    jacobian = tree(np.tile(gradient, (tasks, 1)))
    state = method.init_state(SHARED, tasks)
    outcome = combine(jacobian, jnp.full(tasks, 2.0), state, 0, KEY)
    np.testing.assert_allclose(flat(outcome), SCALES[kind] * gradient, rtol=1e-3)


@pytest.mark.parametrize("kind", balancing.KINDS)
def test_gradients_without_a_direction_give_numbers(kind):
    method, combine = make(kind)
    one = np.array([0.3, -1, 2, 0, 5])
    for rows in ([0 * one] * 3, [one, -one, 0 * one], [one, one, -2 * one], [one, 1e-9 * one, one]):
        state = method.init_state(SHARED, 3)
        outcome = combine(tree(np.array(rows)), jnp.array([1.0, 0.0, 3.0]), state, 0, KEY)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(outcome))


@pytest.mark.parametrize("kind", balancing.KINDS)
def test_a_task_without_a_gradient_does_not_turn_the_direction(kind):
    method, combine = make(kind)
    two = np.random.default_rng(3).normal(size=(2, 5))

    def direction(gradients, losses):
        state = method.init_state(SHARED, len(losses))
        found = flat(combine(tree(gradients), jnp.float32(losses), state, 0, KEY))
        return found / np.linalg.norm(found)

    with_it = direction(np.insert(two, 1, 0, axis=0), [1, 0, 3])
    np.testing.assert_allclose(with_it, direction(two, [1, 3]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", balancing.KINDS)
def test_a_task_without_a_label_changes_no_direction(kind):
    """The others are balanced as they are without it, but for a mean that is over one more."""
    gradients = np.random.default_rng(3).normal(size=(2, 5))
    method, combine = make(kind)
    with_it = np.stack([gradients[0], np.zeros(5), gradients[1]])
    found = {}
    for name, rows, losses in (("two", gradients, [2, 3]), ("three", with_it, [2, 0, 3])):
        state = method.init_state(SHARED, len(rows))
        balanced = combine(tree(rows), jnp.float32(losses), state, 0, KEY)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(balanced))
        found[name] = flat(balanced)
    np.testing.assert_allclose(found["three"] * 3 / 2, found["two"], rtol=2e-3)
    # And with a label in the next batch it counts.
    balanced = combine(tree(with_it[::-1] + 1), jnp.float32([1, 2, 3]), balanced.state, 1, KEY)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(balanced))
