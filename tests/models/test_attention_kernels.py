"""Accelerators' kernels against `attend`: splash and Tokamax's interpreted, cuDNN's by XLA."""

import functools
import importlib.util
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from talora_jax import sharding
from talora_jax.errors import UserError
from talora_jax.models import attention_kernels
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.attention import attend
from talora_jax.models.msam import MSam

splash = functools.partial(attention_kernels.splash, interpret=True)
cudnn = functools.partial(attention_kernels.cudnn, implementation="xla")


@pytest.fixture
def tokamax():
    """Tokamax asks for no GPU; skips where it is not installed."""
    tokamax = pytest.importorskip("tokamax", reason="for Python 3.12 and newer, by itself")
    with tokamax.config.cross_compile(True):
        yield


@pytest.fixture
def tokamax_interpreted(tokamax, monkeypatch):
    """Tokamax's kernels run on this machine."""
    from jax.experimental import pallas

    interpreted = functools.partial(pallas.pallas_call, interpret=True)
    monkeypatch.setattr(pallas, "pallas_call", interpreted)
    # The interpreter does not know what a branch asks for its place in the grid; of as many queries
    # as keys none is left out.
    monkeypatch.setattr(pallas, "when", lambda condition: lambda branch: branch())


def arrays(height, width, tasks=2, images=1, heads=2, width_of_head=4):
    rng = np.random.default_rng(0)
    shape = (3, tasks, images, heads, height, width, width_of_head)
    tables = (rng.normal(size=(2 * n - 1, width_of_head)) for n in (height, width))
    return tuple(jnp.asarray(x, jnp.float32) for x in (*rng.normal(size=shape), *tables))


def with_gradients(attention, inputs):
    """What attention gives, and the gradients of a function of it in every argument."""

    @jax.jit
    def both(inputs):
        out, pull = jax.vjp(attention, *inputs)
        return out, pull(jnp.cos(out))

    return both(inputs)


# 24 tokens are padded to 128, 16×24 are three whole blocks of 128. cuDNN's bias is tiled.
@pytest.mark.parametrize(
    ("kernel", "grid"),
    [
        (splash, (4, 6)),
        (splash, (16, 24)),
        (functools.partial(cudnn, max_bias=400), (4, 6)),
    ],
)
def test_a_kernel_is_attend_and_so_are_its_gradients(kernel, grid):
    inputs = arrays(*grid)
    ours, our_gradients = with_gradients(kernel, inputs)
    expected, gradients = with_gradients(attend, inputs)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    for ours, expected in zip(our_gradients, gradients, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# Blocks of 32, 64 and 128 tokens, the last not full.
@pytest.mark.parametrize("grid", [(4, 6), (7, 9), (16, 24)])
def test_tokamax_is_attend_and_so_are_its_gradients(grid, tokamax_interpreted):
    test_a_kernel_is_attend_and_so_are_its_gradients(attention_kernels.tokamax, grid)


def test_tokamax_in_bfloat16_is_near_float32(tokamax_interpreted):
    test_bfloat16_is_near_float32(attention_kernels.tokamax)


# ViT-B's and ViT-L's heads and ViT-H's, of the whole square and of a part.
@pytest.mark.parametrize(
    ("width_of_head", "grid", "dtype"),
    [(64, (64, 64), "bfloat16"), (80, (64, 64), "bfloat16"), (64, (48, 64), "float32")],
)
def test_gpus_run_two_kernels_of_tokamax(width_of_head, grid, dtype, tokamax):
    gpu = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    auto = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.sharding.AbstractMesh((1, 1, 1), sharding.AXES, auto, abstract_device=gpu)
    inputs = (x.astype(dtype) for x in arrays(*grid, heads=1, width_of_head=width_of_head))
    both = jax.jit(functools.partial(with_gradients, attention_kernels.tokamax))
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = both.trace(tuple(inputs)).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("custom_call @__gpu$xla.gpu.triton") == 2


def test_inner_products_of_folded_queries_and_keys_are_the_logits():
    q, k, _, rel_pos_h, rel_pos_w = arrays(3, 5)
    folded_q, folded_k = attention_kernels.fold_relative_positions(q, k, rel_pos_h, rel_pos_w)
    assert folded_q.shape == folded_k.shape == (*q.shape[:-1], 4 + 3 + 5)
    at, to = (0, 0, 1, 2, 1), (0, 0, 1, 0, 4)
    expected = q[at] @ k[to] / 2 + q[at] @ rel_pos_h[2 - 0 + 2] + q[at] @ rel_pos_w[1 - 4 + 4]
    np.testing.assert_allclose(folded_q[at] @ folded_k[to], expected, rtol=1e-5)


@pytest.mark.parametrize("kernel", [splash, cudnn])
def test_bfloat16_is_near_float32(kernel):
    inputs = arrays(4, 6, tasks=1)
    low = jax.jit(kernel)(*(jnp.asarray(x, jnp.bfloat16) for x in inputs))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), attend(*inputs), rtol=0, atol=0.06)


@pytest.mark.parametrize("width", [4, 5])
def test_tiles_of_cudnn_have_an_even_number_of_queries(monkeypatch, width):
    seen = []

    def recorded(q, *args, **kwargs):
        seen.append(q.shape[1])
        return jnp.zeros_like(q)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    attention_kernels.cudnn(*arrays(6, width), max_bias=1)
    assert seen == [width if width % 2 == 0 else 2 * width]


def test_tpus_run_three_kernels_and_the_forward_one_not_again():
    both = jax.jit(functools.partial(with_gradients, attention_kernels.splash))
    text = both.trace(arrays(16, 8)).lower(lowering_platforms=("tpu",)).as_text()
    assert re.findall(r'kernel_name = "splash_mha_([a-z]+)', text) == ["fwd", "dkv", "dq"]


# Runs in a process of its own: the number of devices is fixed when JAX starts.
PROGRAM = """
import sys, json
sys.path.insert(0, "tests/models")
import jax, numpy as np
from test_attention_kernels import arrays, attend, cudnn, splash, with_gradients
from talora_jax import sharding

for tasks, images in ((2, 4), (1, 4)):
    inputs = arrays(2, 3, tasks, images, heads=1)
    expected = jax.tree.leaves(with_gradients(attend, inputs))
    with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
        for kernel in splash, cudnn:
            ours = jax.tree.leaves(with_gradients(kernel, inputs))
            spread = len({str(shard.index) for shard in ours[0].addressable_shards})
            errors = [float(abs(a - b).max() / abs(b).max()) for a, b in zip(ours, expected)]
            print(json.dumps([spread, max(errors)]))
"""


@pytest.mark.slow
def test_a_mesh_spreads_the_grids_and_changes_nothing(start_python):
    process = start_python("-c", PROGRAM, devices=8)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    results = [json.loads(line) for line in out.splitlines()]
    # One task cannot be spread over two devices, four images can over four.
    assert [spread for spread, _ in results] == [8, 8, 4, 4]
    assert max(error for _, error in results) < 1e-5


@pytest.mark.parametrize("name", attention_kernels.KERNELS)
def test_the_model_attends_by_it_in_global_blocks_alone(monkeypatch, micro, name):
    grids = {kernel: set() for kernel in attention_kernels.KERNELS}

    def recorded(kernel, q, *args):
        grids[kernel].add(q.shape[3:5])
        return attend(q, *args)

    for kernel in attention_kernels.KERNELS:
        monkeypatch.setitem(attention_kernels.KERNELS, kernel, functools.partial(recorded, kernel))
    adapter = AdapterConfig("talora", (4, 4, 2))
    make = functools.partial(MSam, micro, adapter, {"depth": 1}, attention=name)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    nnx.eval_shape(lambda x: make(rngs=nnx.Rngs(0))(x), images)
    assert grids == {kernel: set() for kernel in attention_kernels.KERNELS} | {
        name: {(8, 8)},
        "xla": {(3, 3)} | ({(8, 8)} if name == "xla" else set()),
    }


def test_auto_is_splash_on_tpus_alone():
    chosen = [attention_kernels.choose("auto", platform) for platform in ("cpu", "gpu", "tpu")]
    assert chosen == ["xla", "xla", "splash"]
    assert [attention_kernels.choose(word, "tpu") for word in ("xla", "cudnn")] == ["xla", "cudnn"]


def device(platform, version="", capability="9.0"):
    return types.SimpleNamespace(
        platform=platform,
        client=types.SimpleNamespace(platform_version=version),
        compute_capability=capability,
        device_kind="a device",
    )


CPU, TPU, CUDA = device("cpu"), device("tpu"), device("gpu", "PJRT C API\ncuda 12090")
OLD, ROCM = device("gpu", "cuda 12090", "7.5"), device("gpu", "rocm 60000")


@pytest.mark.parametrize(
    ("word", "where", "dtype", "told"),
    [
        ("splash", CPU, "float32", "a TPU, but the devices are cpu; config.*auto"),
        ("splash", CUDA, "bfloat16", "a TPU, but the devices are gpu"),
        ("cudnn", CPU, "bfloat16", "an NVIDIA GPU, but the devices are cpu"),
        ("cudnn", ROCM, "bfloat16", "an NVIDIA GPU, but the devices are gpu"),
        ("cudnn", OLD, "bfloat16", "compute capability 8.0 .* but a device has 7.5"),
        ("cudnn", CUDA, "float32", "config.model.dtype=bfloat16, not float32"),
        ("tokamax", TPU, "bfloat16", "an NVIDIA GPU, but the devices are tpu"),
        ("tokamax", OLD, "float32", "compute capability 8.0 .* but a device has 7.5"),
        (
            "tokamax",
            CUDA,
            "float32",
            "tokamax, in Python 3.12 or newer: pip install 'talora_jax.*a",
        ),
    ],
)
def test_kernels_that_cannot_run_are_refused(word, where, dtype, told, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"config.model.attention={word} needs {told}"):
        attention_kernels.check(word, where, dtype)


def test_kernels_that_can_run_are_not_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tokamax" or None)
    for word in attention_kernels.ATTENTION:
        attention_kernels.check(word, CUDA if word in ("cudnn", "tokamax") else TPU, "bfloat16")
    for word in ("auto", "xla"):
        attention_kernels.check(word, CPU, "float32")
    attention_kernels.check("tokamax", CUDA, "float32")
