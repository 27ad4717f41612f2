"""A channel of a trained mSAM as a plain SAM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import MSam, trainable
from talora_jax.weights.assemble import save_adapter
from talora_jax.weights.base_file import read_description
from talora_jax.weights.build import load_msam, load_sam
from weights_convert.__main__ import main

CHANNELS = {"normals": 3, "depth": 1}


@pytest.fixture
def train(run, checkpoint, tmp_path):
    """A base, and an mSAM on it with random numbers for what it learnt, saved as training does."""

    def train(kind, blocks=None):
        base = tmp_path / "base.safetensors"
        assert run(checkpoint, base)[0] == 0
        adapter = AdapterConfig(kind, (4, 5, 2), qkv=(True, False, True), blocks=blocks)
        model = load_msam(base, adapter, CHANNELS)
        graphdef, learnt, frozen = nnx.split(model, trainable(adapter), ...)
        rng = np.random.default_rng(1)
        learnt = jax.tree.map(
            lambda x: np.asarray(x) + np.float32(rng.normal(0, 0.1, x.shape)), learnt
        )
        model = nnx.merge(graphdef, learnt, frozen)
        save_adapter(model, tmp_path / "adapter.safetensors", base)
        return model, base

    return train


@nnx.jit
def first_mask(sam, squares):
    no_points = jnp.zeros((1, 1, 0, 2)), jnp.zeros((1, 1, 0), int)
    return sam.decode(sam.encode(squares), *no_points, multimask=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "channels", "blocks"),
    [("talora", 2, None), ("lora_shared", 1, None), ("full", 1, None), ("talora", 1, (-1,))],
)
def test_without_a_prompt_the_mask_is_the_channel(train, run, tmp_path, kind, channels, blocks):
    model, base = train(kind, blocks)
    squares = jax.random.normal(jax.random.key(2), (1, 64, 64, 3))
    embeddings = nnx.jit(MSam.embed, static_argnums=2)(model, squares, model.tasks)
    maps = nnx.jit(MSam.decode, static_argnums=2)(model, embeddings, model.tasks)
    for channel, task, number in (("depth", "depth", 0), ("normals:2", "normals", 2))[:channels]:
        output = tmp_path / f"{task}.safetensors"
        status, printed, error = run(
            base, output, "--adapter", tmp_path / "adapter.safetensors", "--channel", channel
        )
        assert status == 0, error
        assert f"merged {channel}" in printed
        sam = load_sam(output)
        masks, _ = first_mask(sam, squares)
        expected = maps[task][0, ..., number]
        assert expected.std() > 0.01
        np.testing.assert_allclose(masks[0, 0, 0], expected, rtol=0, atol=1e-5)


def test_the_decoders_heads_are_the_adapters(train, checkpoint, tmp_path):
    train("talora")
    adapter, output = tmp_path / "adapter.safetensors", tmp_path / "out.safetensors"
    # Of a checkpoint's tensors none shows them, and they are not those of a released SAM.
    main([*map(str, (checkpoint, output)), f"--adapter={adapter}", "--channel=depth"])
    assert read_description(output).config.decoder.heads == 2


@pytest.mark.slow
def test_what_is_refused(train, run, checkpoint, tmp_path):
    _, base = train("talora")
    adapter, output = tmp_path / "adapter.safetensors", tmp_path / "out.pth"

    def refuse(*args):
        status, _, error = run(*args)
        assert status == 2 and not output.exists()
        return error

    assert "normals:0, normals:1, normals:2, depth" in refuse(
        base, output, "--adapter", adapter, "--channel", "normals"
    )
    assert "belong together" in refuse(base, output, "--adapter", adapter)
    assert "is a base and no adapter" in refuse(
        base, output, "--adapter", base, "--channel", "depth"
    )
    assert "no adapter at" in refuse(base, output, "--adapter", output, "--channel", "depth")
    state = safetensors.numpy.load_file(checkpoint)
    state["image_encoder.neck.3.bias"] += 1
    safetensors.numpy.save_file(state, checkpoint)
    assert "another base" in refuse(checkpoint, output, "--adapter", adapter, "--channel", "depth")
