"""SAMs of other shapes than the released ones: what `segment_anything` computes, we compute."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from talora_jax.errors import UserError
from talora_jax.models.adapters import AdapterConfig
from talora_jax.weights.base_file import read_description
from talora_jax.weights.build import load_msam, load_sam
from weights_convert.__main__ import main

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", autouse=True)
def import_torch():
    """Not at the top: the tests must be collected where there is no PyTorch."""
    global torch
    import torch


@pytest.fixture
def make_small(official_sam):
    """Makes a SAM of `segment_anything` as small as can be; what it is told differs from that."""

    def make(places=(1, 3), **changes):
        sizes = {"grid": 4, "patch": 4, "window": 3, "decoder": (16, 1, 2, 32)} | changes
        return official_sam(16, 2, 4, places, **sizes)

    return make


def assert_alike(official, path, side):
    """The embedding and the masks of one point, of the official model and of a base of ours."""
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, side, side))).float()
    point = torch.tensor([[[3.0, 5.0]]])
    with torch.no_grad():
        embedding = official.image_encoder(image)
        sparse, dense = official.prompt_encoder((point, torch.ones(1, 1)), None, None)
        told = {"sparse_prompt_embeddings": sparse, "dense_prompt_embeddings": dense}
        positions = official.prompt_encoder.get_dense_pe()
        masks, _ = official.mask_decoder(embedding, positions, **told, multimask_output=False)
    # The official encoder adds "no point" to points without a box.
    points = jnp.array([[[[3.0, 5.0], [-0.5, -0.5]]]]), jnp.array([[[1, -1]]])
    found, mask = answer(load_sam(path), image.numpy().transpose(0, 2, 3, 1), points)
    theirs = embedding.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mask[0, 0], masks.numpy()[0], rtol=1e-4, atol=1e-4)


@nnx.jit
def answer(sam, image, points):
    embedding = sam.encode(image)
    return embedding, sam.decode(embedding, *points, multimask=False)[0]


def converted(official, tmp_path, capsys, *flags, change=lambda state: state):
    state = {name: x.clone() for name, x in official.state_dict().items()}
    torch.save(change(state), tmp_path / "sam.pth")
    base = tmp_path / "base.safetensors"
    main([str(tmp_path / "sam.pth"), str(base), "--decoder-heads=2", *flags])
    return base, capsys.readouterr().out


@pytest.mark.parametrize(
    "how",
    [
        {"grid": 3},  # as large as a window
        {"window": 0, "places": ()},  # without windows
        {"places": (0, 2)},
        {"places": ()},  # nothing but windows
        {"window": 5},  # larger than the grid
        {"grid": 5, "window": 2, "places": (1, 2)},
    ],
    ids=str,
)
def test_windows_and_global_blocks_anywhere(make_small, how, tmp_path, capsys):
    official = make_small(**how)
    base, _ = converted(official, tmp_path, capsys)
    assert_alike(official, base, 4 * how.get("grid", 4))
    # And back, bit for bit.
    main([str(base), str(tmp_path / "back.pth")])
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    for name, x in official.state_dict().items():
        torch.testing.assert_close(back[name], x, rtol=0, atol=0)


@pytest.mark.parametrize("mask_tokens", [1, 8])
def test_any_number_of_mask_tokens(make_small, mask_tokens, tmp_path, capsys):
    official = make_small(mask_tokens=mask_tokens)
    base, _ = converted(official, tmp_path, capsys)
    assert_alike(official, base, 16)
    sam, no_points = load_sam(base), (jnp.zeros((1, 1, 0, 2)), jnp.zeros((1, 1, 0), int))
    embedding = jnp.zeros((1, 4, 4, 16))
    masks, iou = nnx.eval_shape(lambda sam: sam.decode(embedding, *no_points), sam)
    assert masks.shape[2] == iou.shape[2] == max(1, mask_tokens - 1)


@pytest.mark.parametrize("rows", [15, 8])
def test_position_tables_that_do_not_fit_the_grid(make_small, rows, tmp_path, capsys):
    official = make_small(window=2)
    for block in (1, 3):
        attention = official.image_encoder.blocks[block].attn
        for axis in "hw":
            table = torch.randn(rows, 8, generator=torch.Generator().manual_seed(block))
            setattr(attention, f"rel_pos_{axis}", torch.nn.Parameter(table))
    base, told = converted(official, tmp_path, capsys)
    assert f"from {rows} to 7 rows" in told
    assert_alike(official, base, 16)


def test_tables_that_can_be_read_in_two_ways_need_a_word(make_small, tmp_path, capsys):
    """Windows larger than the grid, or positions cut down to the window's size?"""
    official = make_small(window=5, places=(0, 2))
    with pytest.raises(UserError, match=r"7, 9 rows on a grid of 4.*--window, one of 4, 5"):
        converted(official, tmp_path, capsys)
    base, _ = converted(official, tmp_path, capsys, "--window=5")
    assert_alike(official, base, 16)


def test_without_relative_positions(make_small, tmp_path, capsys):
    official = make_small(tables=False)
    with pytest.raises(UserError, match="--encoder-heads=N --window=N --global-blocks=N,N"):
        converted(official, tmp_path, capsys)
    flags = ["--encoder-heads=2", "--window=3", "--global-blocks=1,3"]
    base, told = converted(official, tmp_path, capsys, *flags)
    assert "no relative positions, they are zeros; windows of 3, global blocks 1, 3" in told
    assert_alike(official, base, 16)


def test_without_biases_of_q_k_and_v(make_small, tmp_path, capsys):
    official = make_small(biases=False)
    base, told = converted(official, tmp_path, capsys)
    assert "no biases of q, k and v, they are zeros" in told
    assert_alike(official, base, 16)


def test_a_model_to_train_has_its_global_blocks_where_the_base_has_them(
    make_small, tmp_path, capsys
):
    base, _ = converted(make_small(places=(0, 2)), tmp_path, capsys)
    assert read_description(base).config.encoder.global_blocks == (0, 2)
    model = load_msam(base, AdapterConfig(ranks=(4, 4, 2)), {"depth": 1})
    maps = nnx.eval_shape(lambda model: model(jnp.zeros((1, 16, 16, 3))), model)
    assert maps["depth"].shape == (1, 16, 16, 1)
    assert len(model.image_encoder.adapters()) == 2
