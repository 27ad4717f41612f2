"""Attention and windows against plain definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from talora_jax.models import attention_parts
from talora_jax.models.attention import attend, join_windows, relative_positions, split_windows


def arrays(height, width, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = rng.normal(size=(3, 2, 3, height, width, 4)).astype(np.float32)
    tables = (rng.normal(size=(2 * n - 1, 4)).astype(np.float32) for n in (height, width))
    return (q, k, v, *tables)


def definition(q, k, v, rel_pos_h, rel_pos_w):
    """One pair of tokens at a time, in float64."""
    out = np.zeros(q.shape)
    height, width = q.shape[2:4]
    for m, head, y, x in np.ndindex(q.shape[:4]):
        query = q[m, head, y, x].astype(np.float64)
        logits = np.empty((height, width))
        for i, j in np.ndindex(height, width):
            logits[i, j] = query @ k[m, head, i, j] / np.sqrt(len(query))
            logits[i, j] += query @ rel_pos_h[y - i + height - 1]
            logits[i, j] += query @ rel_pos_w[x - j + width - 1]
        weights = np.exp(logits - logits.max())
        out[m, head, y, x] = np.einsum("ij,ijd->d", weights / weights.sum(), v[m, head])
    return out


@pytest.mark.parametrize("grid", [(4, 4), (6, 3), (2, 5)])
@pytest.mark.parametrize("max_logits", [1, 500, 10**9])
def test_attend_whole_or_tiled_is_the_definition(grid, max_logits):
    inputs = arrays(*grid)
    ours = jax.jit(lambda *x: attend(*x, max_logits=max_logits))(*inputs)
    np.testing.assert_allclose(ours, definition(*inputs), rtol=0, atol=2e-6)


@pytest.fixture(params=["cpu", "accelerator"])
def platform(request, monkeypatch):
    """What a processor does, and what other platforms do."""
    if request.param == "accelerator":
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *x, cpu, default: default(*x))


def test_tiles_on_every_platform_are_the_definition(platform):
    inputs = arrays(6, 4)
    expected = definition(*inputs)
    assert attention_parts._most_at_once(6, 2 * 3 * 4 * 24, 1200) == 2
    ours = jax.jit(lambda *x: attend(*x, max_logits=1200))(*inputs)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)


def test_tiled_gradients_are_those_of_the_whole(platform):
    inputs = arrays(6, 4)

    def gradient(max_logits):
        return jax.grad(lambda x: jnp.sum(attend(*x, max_logits=max_logits) ** 2), allow_int=False)(
            inputs
        )

    for tiled, whole in zip(gradient(200), gradient(10**9), strict=True):
        np.testing.assert_allclose(tiled, whole, rtol=1e-4, atol=1e-5)


def plain(q, k, v, rel_pos_h, rel_pos_w):
    """The definition, all logits at once, for JAX to differentiate."""
    height, width = q.shape[-3:-1]
    rel_h, rel_w = relative_positions(rel_pos_h, height), relative_positions(rel_pos_w, width)
    logits = jnp.einsum("mkyxd,mkijd->mkyxij", q, k) / np.sqrt(q.shape[-1])
    logits += jnp.einsum("mkyxd,yid->mkyxi", q, rel_h)[..., None]
    logits += jnp.einsum("mkyxd,xjd->mkyxj", q, rel_w)[..., None, :]
    weights = jax.nn.softmax(logits.reshape(*logits.shape[:4], -1))
    return jnp.einsum("mkyxn,mknd->mkyxd", weights, v.reshape(*v.shape[:2], -1, v.shape[-1]))


@pytest.mark.parametrize("max_logits", [200, 1200, 10**9])
def test_gradients_are_those_of_the_definition(platform, max_logits):
    inputs = arrays(6, 4)
    weight = np.random.default_rng(1).normal(size=inputs[0].shape).astype(np.float32)

    def gradients(attend):
        return jax.jit(jax.grad(lambda x: jnp.sum(attend(*x) * weight)))(inputs)

    ours = gradients(lambda *x: attend(*x, max_logits=max_logits))
    for found, expected in zip(ours, gradients(plain), strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_in_bfloat16_have_its_dtype_and_precision():
    def gradients(dtype):
        inputs = [jnp.asarray(x, jnp.bfloat16).astype(dtype) for x in arrays(6, 4)]
        return jax.grad(lambda x: jnp.sum(attend(*x, max_logits=200).astype(jnp.float32) ** 2))(
            inputs
        )

    for found, expected in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        assert found.dtype == jnp.bfloat16
        difference = np.abs(found.astype(jnp.float32) - expected).max()
        assert difference < 0.03 * np.abs(expected).max()


def test_a_longer_table_is_sliced_around_its_centre():
    table = jnp.arange(13, dtype=jnp.float32)[:, None]
    np.testing.assert_array_equal(
        relative_positions(table, 3)[..., 0], [[6, 5, 4], [7, 6, 5], [8, 7, 6]]
    )
    with pytest.raises(ValueError, match="serves at most 7 tokens, not 8"):
        relative_positions(table, 8)


@pytest.mark.parametrize("grid", [(6, 6), (7, 5), (2, 10)])
def test_windows_pad_right_and_below_and_come_back(grid):
    x = jnp.arange(2 * 3 * np.prod(grid) * 2, dtype=jnp.float32).reshape(2, 3, *grid, 2) + 1
    windows = split_windows(x, 3)
    per_image = -(-grid[0] // 3) * -(-grid[1] // 3)
    assert windows.shape == (2, 3 * per_image, 3, 3, 2)
    first = x[0, 0, :3, :3]
    np.testing.assert_array_equal(windows[0, 0, : first.shape[0], : first.shape[1]], first)
    assert int((windows == 0).sum()) == windows.size - x.size
    np.testing.assert_array_equal(join_windows(windows, grid), x)
