"""What training loops save, and what happens to it on disks: taken whole, or refused in a line."""

import argparse
import datetime
import os
import pathlib
import sys
import types
import zipfile

import numpy as np
import pytest

from talora_jax.errors import UserError
from weights_convert.pytorch_file import read_pytorch

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", autouse=True)
def import_torch():
    """Not at the top: the tests must be collected where there is no PyTorch."""
    global torch
    import torch


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sam.pth"


def state():
    return {
        "image_encoder.pos_embed": torch.arange(6.0).reshape(2, 3),
        "mask_decoder.iou_token.weight": torch.nn.Parameter(torch.ones(4)),
    }


def refusal(path, saved=None) -> str:
    if saved is not None:
        torch.save(saved, path)
    with pytest.raises(UserError) as told:
        read_pytorch(path)
    error = str(told.value)
    assert len(error) < 600 and error.isprintable()
    assert not any(word in error for word in ("weights_only", "torch.load", "safe_globals"))
    return error


def assert_state(read):
    assert set(read) == set(state())
    for name, x in state().items():
        np.testing.assert_array_equal(read[name], x.detach().numpy())


@pytest.mark.parametrize(
    "word", ["state_dict", "model", "model_state_dict", "params", "ema", "net"]
)
def test_weights_under_any_word(path, word):
    adam = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": np.float64(0.1)}]}
    torch.save({word: state(), "epoch": 3, "optimizer": adam, "best": np.float32(0.7)}, path)
    read, notes = read_pytorch(path)
    assert_state(read)
    assert notes == [f"took what is under {word}, and left epoch, optimizer, best"]


def test_settings_beside_weights_are_left_and_nothing_of_them_is_made(path):
    settings = {
        "args": argparse.Namespace(lr=np.float64(1), folder=pathlib.PurePosixPath("/a")),
        "when": datetime.datetime(2024, 1, 1),
        "history": np.arange(3),
        "step": torch.tensor(7),
    }
    torch.save({**state(), **settings}, path)
    read, notes = read_pytorch(path)
    assert_state(read)
    assert notes == ["left args, when, history: no tensors", "left step: single numbers"]


def test_a_path_that_another_python_has_saved(path, monkeypatch):
    """3.13 calls its class otherwise."""
    folder = type("PosixPath", (), {"__module__": "pathlib._local"})
    module = types.ModuleType("pathlib._local")
    module.PosixPath = folder
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({**state(), "folder": folder()}, path)
    read, notes = read_pytorch(path)
    assert_state(read)
    assert notes == ["left folder: no tensors"]


def test_modules_saved_one_by_one(path):
    torch.save({"image_encoder": {"a": torch.ones(2)}, "mask_decoder": {"b": torch.ones(3)}}, path)
    assert set(read_pytorch(path)[0]) == {"image_encoder.a", "mask_decoder.b"}


def test_of_several_none_is_guessed(path):
    saved = {"model": state(), "ema": {"module": state()}}
    assert "several sets of weights, under model, ema.module: name one with" in refusal(path, saved)
    assert_state(read_pytorch(path, "ema.module")[0])
    with pytest.raises(UserError, match="no weights under other"):
        read_pytorch(path, "other")


def test_what_holds_no_tensors_by_name(path):
    assert "found no tensor under 0, 1" in refusal(path, {0: torch.ones(2), 1: torch.ones(2)})
    assert "found list" in refusal(path, [torch.ones(2)])
    assert "found no tensor under epoch, \\x1b[31m" in refusal(path, {"epoch": 3, "\x1b[31m": 4})
    assert "found nothing" in refusal(path, {})


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.eye(3).to_sparse(), "the layout torch.sparse_coo"),
        (lambda: torch.ones(3).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (lambda: torch.ones(3, device="meta"), "no values (on the meta device)"),
        (lambda: torch.ones(3, dtype=torch.complex64), "torch.complex64"),
    ],
)
def test_tensors_that_are_no_plain_numbers(path, make, what):
    error = refusal(path, {**state(), "odd": make()})
    assert f"tensors of {what}, odd the first" in error


class Code:
    def __reduce__(self):
        return os.system, ("true",)


def test_code_is_named_and_told_how_to_do_without(path):
    error = refusal(path, {**state(), "code": Code()})
    assert f"would run {os.system.__module__}.system" in error and "state_dict() alone" in error
    assert "torch.nn.modules.linear.Linear" in refusal(path, torch.nn.Linear(2, 2))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    assert "TorchScript program" in refusal(path)


def test_a_number_changed_inside_the_zip_file(path):
    torch.save({"image_encoder.a": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.find(np.arange(500, 502, dtype=np.float32).tobytes())] ^= 1
    path.write_bytes(content)
    assert "the checksum of sam/data/0 in it is wrong" in refusal(path)


def test_a_record_cut_short_inside_the_zip_file(path, tmp_path):
    torch.save({"image_encoder.a": torch.arange(1000.0)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "cut.pth", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[:-400] if name.endswith("/data/0") else content)
    assert "cut short inside" in refusal(tmp_path / "cut.pth")


def test_a_record_that_is_shorter_than_what_is_read_of_it(path, tmp_path):
    """Also where another record is as long as this one should be."""
    torch.save({"image_encoder.a": torch.arange(8.0), "image_encoder.b": torch.arange(16.0)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "other.pth", "w") as new:
        for name in old.namelist():
            other = {"sam/data/0": "sam/data/1", "sam/data/1": "sam/data/0"}.get(name, name)
            new.writestr(name, old.read(other))
    assert "cut short inside" in refusal(tmp_path / "other.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_record_that_is_there_twice(path):
    torch.save(state(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("sam/data/0", archive.read("sam/data/0"))
    assert "it has sam/data/0 twice, and nothing tells which is meant" in refusal(path)


def test_a_zip_file_packed_again_is_read(path, tmp_path):
    torch.save(state(), path)
    again = tmp_path / "again.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_state(read_pytorch(again)[0])


def test_bytes_flipped_anywhere_are_told_or_change_nothing(path):
    torch.save(state(), path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 200):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            read, _ = read_pytorch(path)
        except UserError as error:
            assert "weights_only" not in str(error)
        else:
            assert_state(read)
