"""Another input size: positions interpolated, everything else kept."""

import numpy as np
import pytest

from talora_jax.inference.prompts import SamPredictor
from talora_jax.weights.base_file import read_base
from talora_jax.weights.build import load_sam


def test_report_header_and_what_changes(run, checkpoint, tmp_path):
    assert run(checkpoint, tmp_path / "base.safetensors")[0] == 0
    base = tmp_path / "base.safetensors"
    status, printed, _ = run(base, tmp_path / "large.safetensors", "--image-size=128")
    assert status == 0
    assert "interpolated absolute and global relative positions from 64 to 128 pixels" in printed
    before, _ = read_base(base)
    after, description = read_base(tmp_path / "large.safetensors")
    assert description.config.encoder.image_size == 128
    assert description.source["interpolated_from"] == 64
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    tables = {f"image_encoder.global_blocks.attn.rel_pos_{axis}" for axis in "hw"}
    assert changed == {"image_encoder.pos_embed", *tables}
    assert after["image_encoder.pos_embed"].shape == (16, 16, 32)
    assert after["image_encoder.global_blocks.attn.rel_pos_h"].shape == (2, 31, 16)

    predictor = SamPredictor(load_sam(tmp_path / "large.safetensors"))
    predictor.set_image(np.zeros((20, 30, 3), np.uint8))
    assert predictor.predict().masks().shape == (1, 3, 20, 30)


def test_a_linear_ramp_stays_one(run, checkpoint, official, tmp_path):
    # Half-pixel centres: between the outermost, linear interpolation is exact on a ramp.
    import safetensors.numpy

    ramp = np.arange(8, dtype=np.float32)
    state = dict(official)
    state["image_encoder.pos_embed"] = np.tile(
        (ramp[:, None] + 10 * ramp)[None, ..., None], (1, 1, 1, 32)
    )
    safetensors.numpy.save_file(state, checkpoint)
    assert run(checkpoint, tmp_path / "large.safetensors", "--image-size=128")[0] == 0
    x = np.clip((np.arange(16) + 0.5) / 2 - 0.5, 0, 7)
    tensors, _ = read_base(tmp_path / "large.safetensors")
    np.testing.assert_allclose(
        tensors["image_encoder.pos_embed"][..., 5], x[:, None] + 10 * x, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("size", [24, 100, 8, 0, -64])
def test_sizes_that_cannot_be(run, checkpoint, tmp_path, size):
    status, _, error = run(checkpoint, tmp_path / "out.safetensors", f"--image-size={size}")
    assert status == 2 and "expected a multiple of 8 above 24" in error
    assert not (tmp_path / "out.safetensors").exists()
