"""Schedule, parameter groups, and optimizers on a model's own parameters."""

import jax
import numpy as np
import pytest

from talora_jax import sharding
from talora_jax.tasks import make_task
from talora_jax.training import optim
from talora_jax.training.setup import abstract
from talora_jax.training.step import abstract_state


@pytest.fixture
def shapes(config, micro):
    """What the optimizer sees of an mSAM: {"model": …, "weighting": …} without values."""
    tasks = tuple(make_task(name, class_names=("a", "b")) for name in config.tasks)
    return abstract_state(abstract(config, sharding.make_mesh(1, 1, 1), tasks, micro)).trainable


def test_schedule_warms_up_and_ends_at_zero(config):
    config.steps, config.optimizer.warmup = 100, 0.05
    schedule = optim.make_schedule(config)
    rates = [float(schedule(step)) for step in (0, 5, 52, 100)]
    np.testing.assert_allclose(rates, [0, 1e-3, 1e-3 * 48 / 95, 0], rtol=1e-5, atol=1e-12)


def test_groups_scale_the_learning_rate(config, shapes):
    config.optimizer.weight_decay = 0.0
    config.optimizer.lr_scale.decoders = 0.0
    config.optimizer.lr_scale.adapters = 10.0
    optimizer = optim.make_optimizer(config, lambda step: 1e-3)
    ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    updates, _ = jax.jit(lambda ones: optimizer.update(ones, optimizer.init(ones), ones))(ones)
    model = updates["model"]
    adapter = model["image_encoder"]["global_blocks"]["attn"]["adapter"]
    np.testing.assert_allclose(adapter["U1"][...], -1e-2, rtol=1e-5)
    np.testing.assert_allclose(model["no_mask_embed"][...], -1e-3, rtol=1e-5)
    assert not model["mask_decoders"]["mask_tokens"][...].any()


def test_muon_makes_every_matrix_of_a_stack_orthogonal(config, shapes):
    """Of decoders, which are stacked by task; what is no matrix moves by Adam."""
    config.optimizer.kind = "muon"
    config.optimizer.weight_decay = 0.0
    optimizer = optim.make_optimizer(config, lambda step: 1e-3)
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    updates, _ = jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g))(gradient)
    decoders = updates["model"]["mask_decoders"]
    mlp = decoders["transformer"]["layers"][0]["lin1"]["kernel"][...]
    kernel = decoders["output_upscaling"]["kernel1"][...]
    tasks, rows = len(config.tasks), kernel.shape[1]
    for stack in (mlp, kernel.reshape(tasks, rows, -1)):
        assert len(stack) == tasks
        singular = np.linalg.svd(np.asarray(stack), compute_uv=False)
        # Five Newton-Schulz iterations end between 0.7 and 1.2 of their common size.
        assert singular.max() < 2.5 * singular.min(), singular
        assert 0.7 < np.sqrt(np.mean(stack**2)) / 0.2e-3 < 1.2
    # Adam with Nesterov's momentum: the mean that the next step would have, and the gradient.
    first = 0.9 * 0.1 / (1 - 0.9**2) + 0.1 / (1 - 0.9)
    rows = updates["model"]["no_mask_embed"][...]
    np.testing.assert_allclose(np.abs(rows), first * 1e-3, rtol=1e-4)
