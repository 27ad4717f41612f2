"""Conversions that need no PyTorch: Hugging Face's files and bases."""

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

import talora_jax.weights.base_file as base_lib
from talora_jax.errors import UserError
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import MSam
from talora_jax.weights.base_file import read_base
from talora_jax.weights.build import build, load_sam
from weights_convert.names import HUGGINGFACE_ALIAS


def tensors_of(path):
    return safetensors.numpy.load_file(path)


def assert_same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_round_trip_to_huggingface_and_back(run, checkpoint, official, huggingface, tmp_path):
    assert run(checkpoint, tmp_path / "base.safetensors")[0] == 0
    assert run(tmp_path / "base.safetensors", tmp_path / "folder")[0] == 0
    assert_same(tensors_of(tmp_path / "folder" / "model.safetensors"), huggingface)
    assert run(tmp_path / "folder", tmp_path / "again.safetensors")[0] == 0
    again, _ = read_base(tmp_path / "again.safetensors")
    assert_same(again, read_base(tmp_path / "base.safetensors")[0])


def test_a_huggingface_file_with_the_positions_twice_comes_back_so(run, huggingface, tmp_path):
    positions = huggingface["shared_image_embedding.positional_embedding"]
    both = {**huggingface, HUGGINGFACE_ALIAS: positions}
    safetensors.numpy.save_file(both, tmp_path / "model.safetensors")
    assert run(tmp_path, tmp_path / "base.safetensors")[0] == 0
    assert run(tmp_path / "base.safetensors", tmp_path / "folder")[0] == 0
    assert_same(tensors_of(tmp_path / "folder" / "model.safetensors"), both)

    both[HUGGINGFACE_ALIAS] = positions + 1
    safetensors.numpy.save_file(both, tmp_path / "model.safetensors")
    status, _, error = run(tmp_path, tmp_path / "other.safetensors")
    assert status == 2 and "differs" in error


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_dtypes_are_kept(run, official, tmp_path, dtype):
    state = {name: x.astype(dtype) for name, x in official.items()}
    safetensors.numpy.save_file(state, tmp_path / "half.safetensors")
    assert run(tmp_path / "half.safetensors", tmp_path / "base.safetensors")[0] == 0
    kept = tensors_of(tmp_path / "base.safetensors")
    assert {x.dtype for x in kept.values()} == {np.dtype(dtype)}
    # The model computes in its own dtype whatever the file's.
    sam = load_sam(tmp_path / "base.safetensors")
    assert sam.mask_decoder.iou_token.dtype == np.float32


def test_header_tells_sizes_and_origin(run, checkpoint, micro, tmp_path):
    status, printed, _ = run(checkpoint, tmp_path / "base.safetensors")
    assert status == 0 and "64 pixels" in printed
    _, description = read_base(tmp_path / "base.safetensors")
    assert description.config == micro and description.tasks is None
    assert description.source["file"] == "sam.safetensors"
    assert description.source["sha256"] in printed and len(description.source["sha256"]) == 64


@pytest.mark.slow
def test_base_serves_sam_and_msam(run, checkpoint, official, micro, tmp_path):
    assert run(checkpoint, tmp_path / "base.safetensors")[0] == 0
    sam = load_sam(tmp_path / "base.safetensors")
    np.testing.assert_array_equal(
        sam.image_encoder.global_blocks.attn.qkv.kernel[1],
        official["image_encoder.blocks.3.attn.qkv.weight"].T,
    )
    tensors, _ = read_base(tmp_path / "base.safetensors")
    adapter = AdapterConfig(ranks=(4, 4, 2))
    msam = build(lambda: MSam(micro, adapter, {"a": 2, "b": 1}, rngs=nnx.Rngs(0)), tensors)
    row = official["prompt_encoder.no_mask_embed.weight"]
    np.testing.assert_array_equal(msam.no_mask_embed[...], np.tile(row, (3, 1)))


def test_read_base_refuses_other_files(checkpoint, tmp_path):
    with pytest.raises(UserError, match="not a base of talora_jax.*weights_convert"):
        read_base(checkpoint)
    with pytest.raises(UserError, match="no base at"):
        read_base(tmp_path / "absent")
    (tmp_path / "sam.pth").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UserError, match="not a readable base.*weights_convert"):
        read_base(tmp_path / "sam.pth")


def test_a_base_of_a_newer_version(run, checkpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(base_lib, "VERSION", base_lib.VERSION + 1)
        assert run(checkpoint, tmp_path / "base.safetensors")[0] == 0
    with pytest.raises(UserError, match="version 2.*up to 1: update"):
        read_base(tmp_path / "base.safetensors")


def test_mtsam_base_is_no_promptable_sam(golden, run, tmp_path):
    safetensors.numpy.save_file(golden.state_dict(), tmp_path / "mtsam.safetensors")
    base = tmp_path / "base.safetensors"
    status, printed, _ = run(tmp_path / "mtsam.safetensors", base, "--tasks=a,b,c")
    assert status == 0 and "a, b, c" in printed
    with pytest.raises(UserError, match="mask decoders for a, b, c"):
        load_sam(base)
    status, _, error = run(base, tmp_path / "folder")
    assert status == 2 and "one mask decoder" in error and not (tmp_path / "folder").exists()
    for names in ("a,b", "a,b,b"):
        status, _, error = run(tmp_path / "mtsam.safetensors", tmp_path / "x.pth", "--tasks", names)
        assert (
            status == 2 and f"3 mask decoders by task, but the task names are {names[0]}" in error
        )
    status, _, error = run(base, tmp_path / "x.pth", "--adapter=a", "--channel=a")
    assert status == 2 and "plain SAM" in error
