"""Conversions that need no PyTorch: Hugging Face's files and bases."""

import dataclasses
import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

import talora_jax.weights.base_file as base_lib
from talora_jax.errors import UserError
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.geometry import PIXEL_MEAN
from talora_jax.models.msam import MSam
from talora_jax.weights.base_file import read_base
from talora_jax.weights.build import build, load_sam
from weights_convert.__main__ import main
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


@pytest.mark.parametrize(
    ("some", "others"),
    [(np.float32, np.float16), (ml_dtypes.bfloat16, np.float16), (np.float64, np.float16)],
)
def test_a_stack_of_two_dtypes_is_as_wide_as_both_need(run, official, tmp_path, some, others):
    """The last block was tuned in float32, the rest lies in 16 bits."""
    last = "image_encoder.blocks.3."
    state = {n: x.astype(some if n.startswith(last) else others) for n, x in official.items()}
    safetensors.numpy.save_file(state, tmp_path / "mixed.safetensors")
    base = tmp_path / "base.safetensors"
    assert run(tmp_path / "mixed.safetensors", base)[0] == 0
    kept = tensors_of(base)["image_encoder.global_blocks.lin1.kernel"]
    assert kept.dtype == (np.float64 if some is np.float64 else np.float32)
    for i, block in enumerate((1, 3)):
        theirs = state[f"image_encoder.blocks.{block}.mlp.lin1.weight"].T
        np.testing.assert_array_equal(kept[i], theirs.astype(kept.dtype))
    assert tensors_of(base)["image_encoder.neck.conv1.kernel"].dtype == others


@pytest.mark.parametrize("prefix", ["module.", "sam.", "model.", "module.model.sam.", "_orig_mod."])
def test_prefixes_of_wrappers_come_off(run, checkpoint, official, tmp_path, prefix):
    assert run(checkpoint, tmp_path / "plain.safetensors")[0] == 0
    wrapped = {f"{prefix}{name}": x for name, x in official.items()}
    safetensors.numpy.save_file(wrapped, tmp_path / "wrapped.safetensors")
    status, printed, _ = run(tmp_path / "wrapped.safetensors", tmp_path / "base.safetensors")
    assert status == 0 and f"took the prefix {prefix} off" in printed
    assert_same(
        tensors_of(tmp_path / "base.safetensors"), tensors_of(tmp_path / "plain.safetensors")
    )


def test_wrappers_inside_a_model_come_off(run, checkpoint, official, tmp_path):
    assert run(checkpoint, tmp_path / "plain.safetensors")[0] == 0
    inside = {
        f"sam.{k.replace('image_encoder.', 'image_encoder._orig_mod.module.')}": x
        for k, x in official.items()
    }
    safetensors.numpy.save_file(inside, tmp_path / "inside.safetensors")
    status, printed, error = run(tmp_path / "inside.safetensors", tmp_path / "base.safetensors")
    assert status == 0 and "took the names of wrappers out" in printed, error
    assert_same(
        tensors_of(tmp_path / "base.safetensors"), tensors_of(tmp_path / "plain.safetensors")
    )
    twice = {**inside, "sam.image_encoder.neck.3.bias": official["image_encoder.neck.3.bias"]}
    safetensors.numpy.save_file(twice, tmp_path / "twice.safetensors")
    status, _, error = run(tmp_path / "twice.safetensors", tmp_path / "other.safetensors")
    assert status == 2 and "has tensors twice" in error and "neck.3.bias" in error


def test_a_decoders_heads_that_no_tensor_shows_are_told_of(run, checkpoint, tmp_path, capsys):
    assert run(checkpoint, tmp_path / "base.safetensors")[0] == 0
    _, printed, _ = run(tmp_path / "base.safetensors", tmp_path / "folder")
    assert "attention heads" not in printed
    main([str(checkpoint), str(tmp_path / "guessed.safetensors")])
    assert "took 8 for the attention heads of its mask decoder" in capsys.readouterr().out


def test_a_huggingface_folder_of_shards(run, huggingface, checkpoint, tmp_path):
    assert run(checkpoint, tmp_path / "plain.safetensors")[0] == 0
    folder = tmp_path / "folder"
    folder.mkdir()
    names = sorted(huggingface)
    files = {name: f"model-{i % 2 + 1}-of-2.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: huggingface[name] for name in names if files[name] == file}
        safetensors.numpy.save_file(part, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert run(folder, tmp_path / "base.safetensors")[0] == 0
    assert_same(
        tensors_of(tmp_path / "base.safetensors"), tensors_of(tmp_path / "plain.safetensors")
    )
    _, description = read_base(tmp_path / "base.safetensors")
    both = b"".join((folder / file).read_bytes() for file in sorted(set(files.values())))
    assert description.source["sha256"] == hashlib.sha256(both).hexdigest()


def test_a_folders_config_tells_what_tensors_leave_open(run, huggingface, tmp_path, capsys):
    """Without relative positions: the windows, the global blocks and the heads."""
    state = {name: x for name, x in huggingface.items() if "rel_pos" not in name}
    folder = tmp_path / "folder"
    folder.mkdir()
    safetensors.numpy.save_file(state, folder / "model.safetensors")
    vision = {"window_size": 3, "global_attn_indexes": [0, 2], "num_attention_heads": 2}
    config = {"vision_config": vision, "mask_decoder_config": {"num_attention_heads": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    main([str(folder), str(tmp_path / "base.safetensors")])
    assert "no relative positions, they are zeros" in capsys.readouterr().out
    tensors, description = read_base(tmp_path / "base.safetensors")
    encoder = description.config.encoder
    assert (encoder.window, encoder.global_blocks, encoder.heads) == (3, (0, 2), 2)
    assert description.config.decoder.heads == 4
    assert not tensors["image_encoder.window_blocks.attn.rel_pos_h"].any()
    # What the folder then says is the same.
    main([str(tmp_path / "base.safetensors"), str(tmp_path / "again")])
    again = json.loads((tmp_path / "again" / "config.json").read_text())["vision_config"]
    assert {name: again[name] for name in vision} == vision


def test_a_base_keeps_how_images_are_padded(run, checkpoint, micro, tmp_path):
    assert run(checkpoint, tmp_path / "base.safetensors")[0] == 0
    tensors, description = read_base(tmp_path / "base.safetensors")
    native = dataclasses.replace(description, native_aspect=True)
    base_lib.write_base(tmp_path / "native.safetensors", tensors, native)
    assert run(tmp_path / "native.safetensors", tmp_path / "copy.safetensors")[0] == 0
    assert base_lib.read_description(tmp_path / "copy.safetensors") == native
    status, printed, _ = run(tmp_path / "native.safetensors", tmp_path / "folder")
    assert status == 0 and "learnt from images without padding" in printed


def test_the_pixels_mean_is_every_sams_or_refused(run, official, tmp_path):
    mean = np.array(PIXEL_MEAN, np.float32).reshape(3, 1, 1)
    path = tmp_path / "sam.safetensors"
    safetensors.numpy.save_file({**official, "pixel_mean": mean}, path)
    status, printed, _ = run(path, tmp_path / "base.safetensors")
    assert status == 0 and "left pixel_mean, which is every SAM's" in printed
    safetensors.numpy.save_file({**official, "pixel_mean": mean / 255}, path)
    status, _, error = run(path, tmp_path / "other.safetensors")
    assert status == 2 and "unexpected pixel_mean" in error


def test_an_encoder_without_biases_of_q_k_and_v_has_zeros(run, official, huggingface, tmp_path):
    bias = ".attn.qkv.bias"
    zeros = {k: np.zeros_like(x) if k.endswith(bias) else x for k, x in official.items()}
    safetensors.numpy.save_file(zeros, tmp_path / "zeros.safetensors")
    told = run(tmp_path / "zeros.safetensors", tmp_path / "expected.safetensors")[1]
    assert "no biases" not in told
    for state in (official, huggingface):
        without = {k: x for k, x in state.items() if not k.endswith(bias)}
        safetensors.numpy.save_file(without, tmp_path / "without.safetensors")
        status, told, _ = run(tmp_path / "without.safetensors", tmp_path / "base.safetensors")
        assert status == 0 and "no biases of q, k and v, they are zeros" in told
        expected, _ = read_base(tmp_path / "expected.safetensors")
        assert_same(read_base(tmp_path / "base.safetensors")[0], expected)
        (tmp_path / "base.safetensors").unlink()
