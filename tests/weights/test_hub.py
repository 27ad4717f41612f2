"""Names on the Hub: what is fetched, and what is told of what cannot be."""

import sys
import time

import numpy as np
import pytest

import talora_jax
from talora_jax.errors import UserError
from talora_jax.weights import base_file
from talora_jax.weights import hub as hub_lib
from talora_jax.weights.adapter_file import FILE_NAME, AdapterFile, find
from talora_jax.weights.assemble import read_base_of
from talora_jax.weights.base_file import base_path, read_base


def refusal(name, read=find):
    with pytest.raises(UserError) as error:
        read(name)
    assert len(str(error.value)) < 600 and str(error.value).isprintable()
    return str(error.value)


def test_what_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("user/name", "user/sam-vit_b.1", "user/name@v1", "user/name@refs/pr/1"):
        assert hub_lib.is_name(name), name
    for path in ("name", "./user/name", "/user/name", "~/name", "a/b/c", "a/b.pth", "a/.b"):
        assert not hub_lib.is_name(path), path
    (tmp_path / "user" / "name").mkdir(parents=True)
    assert not hub_lib.is_name("user/name")
    assert "user/name holds no run" in refusal("user/name")


def test_an_adapter_and_its_base_are_fetched(hub, shelf):
    hub.files["user/base/base.safetensors"] = (shelf / "sam_nano.safetensors").read_bytes()
    hub.files["user/rooms/adapter.safetensors"] = (shelf / "adapter.safetensors").read_bytes()
    hub.files["user/rooms/pytorch_model.bin"] = b"a pickle"
    model = talora_jax.load("user/rooms", base="user/base")
    here = AdapterFile.read(shelf / "adapter.safetensors")
    assert model.file.tasks == here.tasks
    for name, x in here.tensors.items():
        np.testing.assert_array_equal(model.file.tensors[name], x)
    assert find("user/rooms@main") != shelf and find("user/rooms").name == FILE_NAME
    assert {path.split("/")[-1] for path in hub.asked} == {FILE_NAME, base_file.FILE_NAME}
    number = len(hub.asked)
    find("user/rooms"), base_path("user/base")
    assert len(hub.asked) == number


def test_what_is_no_adapter_is_told(hub):
    hub.files["user/odd/adapter.safetensors"] = b"\x80\x04c__builtin__\neval\n"
    hub.files["user/odd/base.safetensors"] = b"\x80\x04c__builtin__\neval\n"
    with pytest.raises(UserError, match="is cut short or no adapter"):
        talora_jax.load("user/odd")
    with pytest.raises(UserError, match="is not a readable base"):
        talora_jax.load_sam("user/odd")


@pytest.mark.parametrize(
    ("status", "word", "what"),
    [
        (401, "RepoNotFound", "the Hub shows no user/name: if it is private, run hf auth login"),
        (404, "RepoNotFound", "the Hub shows no user/name: if it is private, run hf auth login"),
        (403, "GatedRepo", "user/name on the Hub is gated: accept its terms there, then run: hf"),
        (404, "EntryNotFound", "user/name on the Hub has no adapter.safetensors"),
        (404, "RevisionNotFound", "user/name on the Hub has no such revision"),
        (500, "Broken", r"the Hub cannot be reached \(status 500 .*\), and its cache here has no"),
    ],
)
def test_what_the_hub_refuses(hub, status, word, what):
    hub.refuses["user/name"] = status, word
    with pytest.raises(UserError, match=f"there is no path user/name, and {what}"):
        find("user/name")


def test_what_is_not_there(hub):
    hub.files["user/name/base.safetensors"] = b""
    assert "user/name on the Hub has no adapter.safetensors" in refusal("user/name")
    assert "user/name on the Hub has no such revision" in refusal("user/name@v1")
    assert "the Hub shows no user/other" in refusal("user/other", read_base)
    assert "cannot be on the Hub: " in refusal("user/na--me")


def test_offline(hub, shelf, monkeypatch):
    from huggingface_hub import constants

    hub.files["user/rooms/adapter.safetensors"] = (shelf / "adapter.safetensors").read_bytes()
    expected = AdapterFile.read(find("user/rooms")).tasks
    hub_lib.fetched.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert AdapterFile.read(find("user/rooms")).tasks == expected
    assert "may not be asked (HF_HUB_OFFLINE), and its cache here has no" in refusal("user/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert AdapterFile.read(find("user/rooms")).tasks == expected
    assert "the Hub cannot be reached (" in refusal("user/other")


@pytest.mark.parametrize("status", [None, 503])
def test_what_cannot_be_reached_is_told_after_one_try(hub, monkeypatch, status):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    if status is None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.refuses["user/name"] = status, "Busy"
    assert "the Hub cannot be reached (" in refusal("user/name")
    assert not waits and len(hub.asked) == (status is not None)


def test_an_adapter_tells_where_its_base_is(hub, shelf):
    file = AdapterFile.read(shelf / "adapter.safetensors")
    what = "the Hub shows no user/gone: .*; mine needs the base that it was trained on"
    with pytest.raises(UserError, match=what):
        read_base_of(file, "mine", "user/gone")


def test_without_the_library(monkeypatch):
    hub_lib.fetched.cache_clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refusal("user/name") == (
        "there is no path user/name, and to ask the Hugging Face Hub for user/name needs "
        "huggingface_hub: pip install huggingface_hub"
    )
