"""Weightings against their papers' formulas in NumPy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talora_jax import config as config_lib
from talora_jax.errors import UserError
from talora_jax.weighting.losses import (
    KINDS,
    DynamicAverage,
    Equal,
    Famo,
    Fixed,
    Random,
    SmoothTchebycheff,
    Uncertainty,
    make_weighting,
)

T = 3
LOSSES = np.float32([1.5, 0.25, 4.0])
KEY = jax.random.key(0)


def make(kind):
    return make_weighting(fields(kind, (1.0, 1.0, 4.0)), T, 2)


def fields(kind, task_weights, **others):
    """`config.weighting` of a run."""
    weighting = config_lib.default().weighting
    weighting.update(kind=kind, task_weights=tuple(task_weights), **others)
    return weighting


def objective(weighting, params, state, losses, key=KEY):
    weights, constant = weighting.weights(params, state, jnp.asarray(losses), key)
    return weights @ losses + constant


def softmax(values):
    return np.exp(values) / np.exp(values).sum()


def test_fixed_is_the_references_objective():
    golden = np.load(Path(__file__).parent.parent / "goldens" / "mtsam_tiny.npz")
    value = objective(Fixed((1.0, 1.0, 4.0)), {}, {}, jnp.asarray(golden["loss/per_task"]))
    np.testing.assert_allclose(value, golden["loss/weighted"], rtol=1e-6)


def test_fixed_may_switch_a_task_off():
    np.testing.assert_allclose(objective(Fixed((3.0, 0.0, 1.0)), {}, {}, LOSSES), (4.5 + 4) / 4)


def test_equal_is_the_mean():
    np.testing.assert_allclose(objective(Equal(T), {}, {}, LOSSES), LOSSES.mean(), rtol=1e-6)


@settings(deadline=None, max_examples=20)
@given(s=st.lists(st.floats(-3, 3, width=32), min_size=T, max_size=T))
def test_uncertainty(s):
    params = {"log_variance": jnp.float32(s)}
    value, gradient = jax.value_and_grad(lambda p: objective(Uncertainty(T), p, {}, LOSSES))(params)
    s = np.float64(s)
    expected = np.sum(LOSSES / (2 * np.exp(s)) + s / 2)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    slope = (1 - LOSSES * np.exp(-s)) / 2
    np.testing.assert_allclose(gradient["log_variance"], slope, rtol=1e-5, atol=1e-6)


def test_uncertainty_starts_as_libmtl_and_is_least_at_the_log_of_the_loss():
    params = Uncertainty(T).init_params()
    np.testing.assert_array_equal(params["log_variance"], [-0.5] * T)
    weights, constant = Uncertainty(T).weights(params, {}, None, KEY)
    np.testing.assert_allclose(weights, np.exp(0.5) / 2 * np.ones(T), rtol=1e-6)
    assert constant == -0.25 * T
    least = {"log_variance": jnp.log(LOSSES)}
    slope = jax.grad(lambda p: objective(Uncertainty(T), p, {}, LOSSES))(least)
    np.testing.assert_allclose(slope["log_variance"], 0, atol=1e-6)


@pytest.mark.parametrize("steps_per_epoch", [1, 4])
def test_dynamic_average(steps_per_epoch):
    weighting = DynamicAverage(T, steps_per_epoch, temperature=2.0)
    losses = np.random.default_rng(0).uniform(0.1, 3, (5, steps_per_epoch, T)).astype(np.float32)
    means = losses.astype(np.float64).mean(axis=1)
    state, step = weighting.init_state(), 0
    update = jax.jit(weighting.update)
    for epoch in range(5):
        ratio = means[epoch - 1] / means[epoch - 2] if epoch >= 2 else np.ones(T)
        for step_losses in losses[epoch]:
            weights, constant = weighting.weights({}, state, None, KEY)
            np.testing.assert_allclose(weights, softmax(ratio / 2), rtol=1e-5)
            assert constant == 0
            state = update(state, jnp.asarray(step_losses), jnp.int32(step))
            step += 1


def test_dynamic_average_survives_a_loss_of_zero():
    weighting = DynamicAverage(T, steps_per_epoch=1)
    state = weighting.init_state()
    for step, losses in enumerate([[0, 1, 0], [0, 1, 2], [3, 1, 0]]):
        state = weighting.update(state, jnp.float32(losses), jnp.int32(step))
        assert np.isfinite(weighting.weights({}, state, None, KEY)[0]).all()


def test_dynamic_average_says_nothing_of_an_epoch_without_a_label():
    weighting = DynamicAverage(T, steps_per_epoch=1)
    state = weighting.init_state()
    for step, losses in enumerate([[2, 1, 4], [0, 1, 2]]):
        state = weighting.update(state, jnp.float32(losses), jnp.int32(step))
    weights, _ = weighting.weights({}, state, None, KEY)
    np.testing.assert_allclose(weights, softmax(np.array([1, 1, 0.5]) / 2), rtol=1e-6)


def test_famo_is_the_papers_formula():
    rate, decay = 0.1, 0.01
    weighting = Famo(T, rate, decay)
    rng = np.random.default_rng(0)
    state, update = weighting.init_state(), jax.jit(weighting.update)
    weights_of = jax.jit(lambda state, losses: weighting.weights({}, state, losses, KEY)[0])
    logits = mean = square = np.zeros(T)
    before = None
    for step in range(6):
        losses = rng.uniform(0.1, 5, T)
        if before is not None:
            z = softmax(logits)
            rates = np.log(before) - np.log(losses)
            slope = z * (rates - z @ rates) + decay * logits
            mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            adam = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
            logits = logits - rate * adam
        share = softmax(logits) / losses
        found = weights_of(state, jnp.float32(losses))
        np.testing.assert_allclose(found, share / share.sum(), rtol=1e-4)
        state, before = update(state, jnp.float32(losses), step), losses
    assert np.abs(logits).max() > 0.1


def test_famo_of_one_task_is_the_loss():
    famo = Famo(1, 0.1, 0.01)
    losses = jnp.float32([3.0])
    state = famo.update(famo.init_state(), losses, 0)
    np.testing.assert_allclose(famo.weights({}, state, losses, KEY)[0], 1, rtol=1e-6)


def test_famo_passes_over_tasks_without_a_loss():
    famo = Famo(T, 0.1, 0.01)
    state = famo.init_state()
    for losses in ([0, 0, 0], [0, 1, 2], [3, 0, 1]):
        weights = famo.weights({}, state, jnp.float32(losses), KEY)[0]
        np.testing.assert_array_equal(np.asarray(weights) > 0, np.array(losses) > 0)
        state = famo.update(state, jnp.float32(losses), 0)
    np.testing.assert_array_equal(state["losses"], [3, 1, 1])
    # Only the last task had two losses in turn, and it fell: it counts for less.
    assert state["logits"][2] < state["logits"][0] == state["logits"][1]


@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_stch_is_the_gradient_of_the_papers_formula(mu):
    weighting = SmoothTchebycheff(T, steps_per_epoch=2, mu=mu, warmup_epochs=1)
    rng = np.random.default_rng(0)
    losses = rng.uniform(0.1, 5, (8, T)).astype(np.float32)
    nadir = losses[2:4].mean(0)
    state, update = weighting.init_state(), jax.jit(weighting.update)
    weights_of = jax.jit(lambda state, losses: weighting.weights({}, state, losses, KEY)[0])

    def scalarised(losses, step):
        if step < 4:
            return jnp.log(losses).sum()
        return mu * jnp.log(jnp.sum(jnp.exp(jnp.log(losses / nadir) / mu)))

    for step in range(8):
        slope = np.float64(jax.grad(scalarised)(jnp.asarray(losses[step]), step))
        found = weights_of(state, losses[step])
        np.testing.assert_allclose(found, slope / slope.sum(), rtol=1e-4)
        state = update(state, losses[step], step)
    np.testing.assert_allclose(state["nadir"], nadir, rtol=1e-6)


def test_stch_passes_over_tasks_without_a_loss():
    weighting = SmoothTchebycheff(T, steps_per_epoch=2, mu=0.5, warmup_epochs=0)
    state = weighting.init_state()
    for step, losses in enumerate(([0, 1, 2], [0, 0, 4], [0, 0, 0], [3, 0, 1])):
        weights = weighting.weights({}, state, jnp.float32(losses), KEY)[0]
        np.testing.assert_array_equal(np.asarray(weights) > 0, np.array(losses) > 0)
        state = weighting.update(state, jnp.float32(losses), step)
    # Means over the batches that had the task; of the first there was none.
    np.testing.assert_array_equal(state["nadir"], [0, 1, 3])


def test_random_is_a_softmax_of_normals_drawn_anew_with_each_key():
    keys = jax.random.split(KEY, 20_000)
    weights = jax.vmap(lambda key: Random(T).weights({}, {}, None, key)[0])(keys)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    # Differences of the logs are differences of two standard normals: mean 0, variance 2.
    difference = np.log(weights[:, 0]) - np.log(weights[:, 1])
    assert abs(difference.mean()) < 0.05
    assert abs(difference.var() - 2) < 0.1
    np.testing.assert_array_equal(Random(T).weights({}, {}, None, keys[7])[0], weights[7])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_jitted_scanned_and_checkpointed(kind):
    weighting = make(kind)
    params = weighting.init_params()

    def step(state, index):
        weights, constant = weighting.weights(
            params, state, jnp.asarray(LOSSES), jax.random.fold_in(KEY, index)
        )
        return weighting.update(state, weights * LOSSES, index), (weights, constant)

    # A scan fails if the state changes shape or type from step to step.
    state, (weights, constants) = jax.lax.scan(step, weighting.init_state(), jnp.arange(6))
    assert weights.shape == (6, T) and constants.shape == (6,)
    assert weights.dtype == constants.dtype == jnp.float32
    leaves = jax.tree.leaves((params, state))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves if leaf.ndim)  # Adam counts its steps
    if kind != "uncertainty":
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
        assert not constants.any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not make(kind).looks_at_losses])
def test_every_kind_is_affine_in_the_losses(kind):
    weighting = make(kind)
    params, state = weighting.init_params(), weighting.init_state()
    for step in range(4):
        state = weighting.update(state, jnp.asarray(LOSSES * (1 + step)), jnp.int32(step))
    parts = [objective(weighting, params, state, losses) for losses in (LOSSES, LOSSES[::-1])]
    whole = objective(weighting, params, state, (LOSSES + LOSSES[::-1]) / 2)
    np.testing.assert_allclose(whole, np.mean(parts), rtol=1e-6)


def test_make_weighting():
    def make(kind, **others):
        return make_weighting(fields(kind, (1.0, 3.0), **others), 2, 10)

    assert make("fixed") == Fixed((1.0, 3.0))
    assert make("equal") == Equal(2)
    assert make("uncertainty") == Uncertainty(2)
    assert make("dynamic_average") == DynamicAverage(2, 10, 2.0)
    assert make("random") == Random(2)
    assert make("famo", famo_learning_rate=0.1, famo_decay=0.2) == Famo(2, 0.1, 0.2)
    assert make("stch", stch_mu=0.5) == SmoothTchebycheff(2, 10, 0.5, 4)


def test_a_warm_up_that_takes_the_whole_run_is_refused():
    config = fields("stch", (1.0, 1.0), stch_warmup_epochs=2)
    assert make_weighting(config, 2, 10, steps=31) == SmoothTchebycheff(2, 10, 1.0, 2)
    with pytest.raises(UserError, match="2 epochs and one more, 30 steps, and the run has 30"):
        make_weighting(config, 2, 10, steps=30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("gradnorm", 2, (1.0, 1.0), 5),
            "'gradnorm'.*fixed, equal, uncertainty, dynamic_average, random, famo, stch",
        ),
        (("fixed", 3, (1.0, 1.0), 5), r"3.*given 2: \(1.0, 1.0\)"),
        (("fixed", 2, (1.0, -1.0), 5), r"at least 0.*\(1.0, -1.0\)"),
        (("fixed", 2, (0.0, 0.0), 5), r"not all 0.*\(0.0, 0.0\)"),
        (("fixed", 2, (1.0, float("nan")), 5), r"finite.*\(1.0, nan\)"),
        (("fixed", 2, (1.0, float("inf")), 5), r"finite.*\(1.0, inf\)"),
        (("dynamic_average", 2, (1.0, 1.0), 0), "there are 0"),
        (("stch", 2, (1.0, 1.0), 0), "there are 0"),
    ],
)
def test_make_weighting_tells_what_is_wrong(arguments, message):
    kind, num_tasks, task_weights, steps_per_epoch = arguments
    with pytest.raises(UserError, match=message):
        make_weighting(fields(kind, task_weights), num_tasks, steps_per_epoch)
