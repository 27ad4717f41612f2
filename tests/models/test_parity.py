"""Parity with the authors' PyTorch code at a tiny size, float32 on CPU."""

import jax
import numpy as np
from flax import nnx


def nhwc(x):
    return np.moveaxis(x, 1, -1)


def test_embeddings_low_res_maps_and_outputs(golden):
    graphdef, state = nnx.split(golden.model)

    @jax.jit
    def forward(state, squares):
        model = nnx.merge(graphdef, state)
        return model.embed(squares, golden.tasks), model.low_res(squares)

    embeddings, low_res = forward(state, golden.squares())
    for t, task in enumerate(golden.tasks):
        outputs = golden.geometry().from_square(low_res[task])
        for ours, name in (
            (embeddings[t], "embedding"),
            (low_res[task], "low_res"),
            (outputs, "output"),
        ):
            theirs = nhwc(golden.arrays[f"{name}/task{t}"])
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=f"{name} {task}")


def test_architecture_is_read_from_the_shapes(golden):
    encoder = golden.model.config.encoder
    c = golden.config
    assert (encoder.image_size, encoder.width, encoder.heads, encoder.depth, encoder.window) == (
        c["img_size"],
        c["embed_dim"],
        c["num_heads"],
        c["depth"],
        c["window_size"],
    )


def test_orthogonal_regulariser(golden):
    np.testing.assert_allclose(
        golden.model.orthogonality(), golden.arrays["loss/orthogonal"], rtol=1e-5
    )
