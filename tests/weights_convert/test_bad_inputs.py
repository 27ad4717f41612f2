"""Whatever is wrong with an input gets one line and exit status 2, and leaves nothing behind."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import weights_convert.write as write_lib
from talora_jax.errors import run_command
from talora_jax.weights.adapter_file import AdapterFile
from weights_convert.__main__ import main
from weights_convert.names import HUGGINGFACE_ALIAS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def refuse(run, tmp_path):
    """Runs a conversion that must fail, and gives its one line."""

    def refuse(path, output="out.safetensors"):
        before = sorted(tmp_path.rglob("*"))
        status, _, error = run(path, tmp_path / output)
        assert status == 2 and error.count("\n") == 1 and error.startswith("error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return refuse


@pytest.fixture
def saved(tmp_path):
    def saved(state):
        path = tmp_path / "state.safetensors"
        safetensors.numpy.save_file(state, path)
        return path

    return saved


def test_missing_extra_and_misshaped_tensors_are_listed_together(refuse, saved, official):
    state = dict(official)
    del state["image_encoder.blocks.1.norm1.weight"]
    del state["mask_decoder.iou_token.weight"]
    state["mask_decoder.hf_token.weight"] = np.zeros((1, 32), np.float32)
    state["image_encoder.neck.3.bias"] = np.zeros(7, np.float32)
    error = refuse(saved(state))
    assert "missing image_encoder.blocks.1.norm1.weight" in error
    assert "missing mask_decoder.iou_token.weight" in error
    assert "unexpected mask_decoder.hf_token.weight" in error
    assert "image_encoder.neck.3.bias has shape [7], expected [32]" in error
    assert error.count(";") == 3


def test_huggingface_problems_use_huggingface_names(refuse, saved, huggingface):
    state = dict(huggingface)
    del state["vision_encoder.layers.0.layer_norm2.bias"]
    state["mask_decoder.upscale_conv1.bias"] = np.zeros(3, np.float32)
    error = refuse(saved(state))
    assert "missing vision_encoder.layers.0.layer_norm2.bias" in error
    assert "mask_decoder.upscale_conv1.bias has shape [3], expected [8]" in error
    state = dict(huggingface)
    state[HUGGINGFACE_ALIAS] = state.pop("shared_image_embedding.positional_embedding")
    assert "missing shared_image_embedding.positional_embedding" in refuse(saved(state))


def test_an_encoder_without_absolute_positions(refuse, saved, official, huggingface):
    for state in (official, huggingface):
        rest = {key: x for key, x in state.items() if not key.endswith("encoder.pos_embed")}
        (name,) = set(state) - set(rest)
        assert f"missing {name}, absolute positions, which tell the image's size" in refuse(
            saved(rest)
        )


def test_without_one_bias_of_q_k_and_v_it_is_missing(refuse, saved, official):
    name = "image_encoder.blocks.1.attn.qkv.bias"
    assert f"missing {name}" in refuse(saved({k: x for k, x in official.items() if k != name}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["image_encoder.pos_embed", "image_encoder.blocks.0.attn.rel_pos_h"]
)
def test_without_what_tells_the_sizes_the_nearest_sam_is_the_measure(refuse, saved, official, name):
    state = {key: x for key, x in official.items() if key != name}
    assert f"missing {name}" in refuse(saved(state))
    wrong = {**official, name: np.zeros((1, 5, 5, 5), np.float32)}
    assert f"{name} has shape [1, 5, 5, 5], expected" in refuse(saved(wrong))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers(refuse, saved, official, value):
    state = {name: x.copy() for name, x in official.items()}
    bad = ["image_encoder.blocks.2.mlp.lin1.bias", "mask_decoder.mask_tokens.weight"]
    for name in bad:
        state[name].flat[3] = value
    error = refuse(saved(state))
    assert all(name in error for name in bad)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("image_encoder.trunk.blocks.0.norm1.weight", "SAM 2"),
        ("vision_encoder.backbone.pos_embed", "SAM 2"),
        ("image_encoder.layers.0.blocks.0.conv1.c.weight", "MobileSAM"),
        ("backbone.weight", "not a SAM checkpoint"),
    ],
)
def test_other_models(refuse, saved, name, what):
    assert what in refuse(saved({name: np.zeros((3, 3), np.float32)}))


def test_integers_are_no_weights(refuse, saved, official):
    state = {**official, "image_encoder.neck.3.bias": np.zeros(32, np.int8)}
    assert "I8" in refuse(saved(state))


@pytest.mark.parametrize("name", ["sam.pth", "sam.safetensors"])
def test_a_web_page(refuse, tmp_path, name):
    for before in ("\n", "\ufeff"):
        page = f"{before}<!DOCTYPE html><html><body>404</body></html>"
        (tmp_path / name).write_text(page, encoding="utf-8")
        assert "web page" in refuse(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "empty"), (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull")],
)
def test_files_of_no_content(refuse, tmp_path, content, what):
    (tmp_path / "sam.pth").write_bytes(content)
    assert what in refuse(tmp_path / "sam.pth")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"error": "not found"}', """text (it begins '{"error": "not found"}')"""),
        (gzip.compress(bytes(1000)), "an archive to unpack"),
        (b"x" * 257 + b"ustar" + bytes(600) + b"PK\5\6" + bytes(18), "an archive to unpack"),
        (b"\x89HDF\r\n\x1a\n", "a file of another kind"),
    ],
    ids=["json", "gzip", "tar", "hdf5"],
)
def test_files_of_other_kinds(refuse, tmp_path, content, what):
    (tmp_path / "sam.pth").write_bytes(content)
    assert f"is {what}, not a checkpoint" in refuse(tmp_path / "sam.pth")


def test_a_safetensors_file_cut_short(refuse, checkpoint):
    content = checkpoint.read_bytes()
    for length in (len(content) // 2, 100, 5):
        checkpoint.write_bytes(content[:length])
        assert "cut short" in refuse(checkpoint)


def test_no_file(refuse, tmp_path):
    assert "no checkpoint at" in refuse(tmp_path / "absent.pth")


def test_outputs_that_cannot_be(run, refuse, checkpoint, tmp_path):
    (tmp_path / "there.safetensors").write_text("precious")
    assert "exists" in refuse(checkpoint, "there.safetensors")
    assert (tmp_path / "there.safetensors").read_text() == "precious"
    assert "no folder" in refuse(checkpoint, "absent/out.safetensors")
    assert "ends in .bin" in refuse(checkpoint, "out.bin")


@pytest.mark.parametrize("output", ["out.safetensors", "folder"])
@pytest.mark.process
def test_a_disk_that_fills_up(checkpoint, tmp_path, output):
    # A limit on the size of files stands in for the disk: the write itself fails.
    before = sorted(tmp_path.rglob("*"))
    half = checkpoint.stat().st_size // 2
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({half}, {half})); "
        "from talora_jax.errors import run_command; "
        "from weights_convert.__main__ import main; run_command(main)"
    )
    command = [sys.executable, "-c", program, checkpoint, tmp_path / output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.process
def test_without_pytorch_the_error_names_the_extra(checkpoint, tmp_path):
    # Conversions without .pth run without PyTorch; those with say what to install.
    program = (
        "import sys; sys.modules['torch'] = None; from talora_jax.errors import run_command; "
        "from weights_convert.__main__ import main; run_command(main)"
    )
    command = [sys.executable, "-c", program, checkpoint, "--decoder-heads=2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True}
    assert subprocess.run([*command, "base.safetensors"], **run).returncode == 0
    done = subprocess.run([*command, "out.pth"], **run)
    assert done.returncode == 2 and "pip install 'talora_jax[torch]'" in done.stderr
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    "name",
    [
        "mask_decoder.999999999999.iou_token.weight",
        "mask_decoder.9999.iou_token.weight",
        "mask_decoder.transformer.layers.88888888.norm1.weight",
        "image_encoder.blocks.77777777.norm1.weight",
        f"image_encoder.blocks.{'9' * 5000}.norm1.weight",
    ],
    ids=lambda name: name[:40],
)
def test_numbers_in_names_that_count_nothing(refuse, saved, official, name):
    error = refuse(saved({**official, name: np.zeros(3, np.float32)}))
    assert f"unexpected {name[:100]}" in error and len(error) < 600


def test_many_problems_are_counted(refuse, saved, official):
    state = {**official, **{f"loss.{i}": np.zeros(1, np.float32) for i in range(1000)}}
    error = refuse(saved(state))
    assert error.endswith("more\n") and len(error) < 600


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["mask_decoder.compress_vit_feat.0.weight", "mask_decoder.hf_token.weight"], "SAM-HQ"),
        (["vision_encoder.pos_embed", "mask_decoder.hq_token.weight"], "SAM-HQ"),
        (["sam_mask_decoder.iou_token.weight"], "SAM 2"),
        (["module.image_encoder.trunk.pos_embed"], "SAM 2"),
        (["image_encoder.blocks.0.attn.qkv.lora_A.weight"], "adapters without the SAM"),
        (["w_a_000", "w_b_000", "mask_decoder.iou_token.weight"], "adapters without the SAM"),
        (["image_encoder.blocks.0.attn.qkv.td_U1"], "adapters without the SAM"),
        (["mask_decoder.iou_token.weight"], "a mask decoder without an image encoder"),
        (["transformer.layers.0.norm1.weight"], "a mask decoder without an image encoder"),
        (["blocks.0.norm1.weight", "pos_embed"], "an image encoder without a mask decoder"),
        (["image_encoder.pos_embed"], "an image encoder without a mask decoder"),
    ],
    ids=str,
)
def test_what_else_is_saved_is_named(refuse, saved, names, what):
    assert what in refuse(saved({name: np.zeros((3, 3), np.float32) for name in names}))


def test_an_adapter_file_is_no_input(refuse, tmp_path):
    path = tmp_path / "adapter.safetensors"
    AdapterFile({"a": np.zeros(3, np.float32)}, {}, {"depth": 1}, {}, "", "").write(path)
    assert f"with --adapter={path}" in refuse(path)


def test_adapters_inside_a_whole_sam(refuse, saved, official):
    lora = {"image_encoder.blocks.0.attn.qkv.linear_a_q.weight": np.zeros((4, 32), np.float32)}
    assert "a SAM with adapters in it" in refuse(saved({**official, **lora}))


def test_names_do_not_write_to_the_terminal(refuse, saved, official):
    error = refuse(saved({**official, "\x1b[31mred\n": np.zeros(3, np.float32)}))
    assert r"unexpected \x1b[31mred\n" in error and "\x1b" not in error


def test_two_models_are_not_guessed_between(refuse, saved, official):
    both = {**official, **{f"teacher.{name}": x for name, x in official.items()}}
    assert "several models, under no prefix, teacher." in refuse(saved(both))


def test_a_folder_without_weights(refuse, tmp_path):
    assert "is a folder without weights" in refuse(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1.safetensors"}}')
    assert "lacks 1.safetensors" in refuse(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')
    assert "is no index" in refuse(tmp_path)


def test_heads_that_do_not_divide(checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_command(lambda: main([str(checkpoint), str(tmp_path / "x.pth"), "--decoder-heads=3"]))
    assert "--decoder-heads=3" in capsys.readouterr().err


def test_a_damaged_base(refuse, run, checkpoint, tmp_path):
    assert run(checkpoint, tmp_path / "base.safetensors")[0] == 0
    content = bytearray((tmp_path / "base.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "base.safetensors").write_bytes(content)
    assert "its tensors are not those that were written" in refuse(tmp_path / "base.safetensors")


def test_what_does_not_read_back_is_not_kept(run, checkpoint, tmp_path, monkeypatch):
    """A disk that changes a number on the way."""
    wrong = write_lib.write_safetensors

    def write(path, *args):
        wrong(path, *args)
        with open(path, "rb+") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\1\2\3\4")

    monkeypatch.setattr(write_lib, "write_safetensors", write)
    for output in ("base.safetensors", "folder"):
        status, printed, error = run(checkpoint, tmp_path / output)
        assert status == 2 and "did not read back" in error and "wrote" not in printed
        assert not (tmp_path / output).exists()
