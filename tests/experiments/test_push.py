"""Adapters and bases on the Hub: what goes there, and what comes back."""

import dataclasses
import json
import shutil

import pytest

import talora_jax
from talora_jax.errors import UserError
from talora_jax.experiments import card
from talora_jax.experiments.push import push
from talora_jax.experiments.push_command import main
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.base_file import read_base, read_description


def front_of(text):
    """The card's fields, and what people read."""
    _, front, body = text.split("---\n", 2)
    fields = (line.split(": ", 1) for line in front.splitlines())
    return {name: json.loads(value) for name, value in fields}, body


def test_a_base_and_an_adapter_come_back(hub, shelf, monkeypatch, tmp_path):
    assert push(shelf / "sam_nano.safetensors", "user/base") == f"{hub.address}/user/base"
    push(shelf / "adapter.safetensors", "user/rooms", base="user/base", license="apache-2.0")
    assert sorted(hub.files) == [
        "user/base/README.md",
        "user/base/base.safetensors",
        "user/rooms/README.md",
        "user/rooms/adapter.safetensors",
    ]
    assert hub.private == []
    here = AdapterFile.read(shelf / "adapter.safetensors")
    model = talora_jax.load("user/rooms")
    assert model.file.weights == "user/base" and model.file.tasks == here.tasks
    assert read_base("user/base")[0].keys() == read_base(shelf / "sam_nano.safetensors")[0].keys()

    front, body = front_of(hub.files["user/rooms/README.md"].decode())
    assert front == {
        "library_name": "talora_jax",
        "pipeline_tag": "image-segmentation",
        "tags": ["segment-anything", "talora", "semantic", "depth", "normals"],
        "base_model": "user/base",
        "license": "apache-2.0",
    }
    assert 'model = talora_jax.load("user/rooms")\n' in body
    assert "| semantic | 3 | red, green, blue |" in body and here.base_fingerprint in body
    front, body = front_of(hub.files["user/base/README.md"].decode())
    assert front["pipeline_tag"] == "mask-generation" and "license" not in front
    assert 'talora_jax.load_sam("user/base")' in body and "| file | sam_nano.pth |" in body


def test_a_run_brings_its_picture_and_metrics(hub, shelf, tmp_path, capsys):
    run = shutil.copytree(shelf / "run", tmp_path / "run")
    (run / "pictures").mkdir()
    shutil.copy(shelf / "photo.jpg", run / "pictures" / "val_000.png")
    steps = json.loads((run / "config.json").read_text())["steps"]
    row = {"step": steps, "split": "val", "semantic/miou": 0.39014}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    main([str(run), "user/run", "--private"])
    assert capsys.readouterr().out == f"{hub.address}/user/run\n" and hub.private == ["user/run"]
    assert hub.files["user/run/picture.png"] == (shelf / "photo.jpg").read_bytes()
    front, body = front_of(hub.files["user/run/README.md"].decode())
    assert front["metrics"] == ["miou"] and "| semantic/miou | 0.3901 |" in body
    assert "](picture.png)" in body
    content = (run / "adapter.safetensors").read_bytes()
    assert hub.files["user/run/adapter.safetensors"] == content


def test_a_card_of_names_from_a_file_is_text_alone(shelf):
    file = AdapterFile.read(shelf / "adapter.safetensors")
    file.class_names["semantic"] = ["a|b", "<script>", "\x1b[31m"]
    _, body = front_of(card.of_adapter(file, "user/name", {}))
    assert "| semantic | 3 | a\\|b, &lt;script&gt;, \\x1b[31m |" in body
    # The base lies on this machine; elsewhere it has another path, but the same name.
    assert 'talora_jax.load("user/name", base="sam_nano.safetensors")' in body
    assert str(shelf) not in body


def test_a_base_of_tasks_is_loaded_to_train(shelf, micro):
    description = read_description(shelf / "sam_nano.safetensors")
    description = dataclasses.replace(description, tasks=("depth",))
    front, body = front_of(card.of_base(description, "user/name", "f" * 64, {}))
    assert front["tags"] == ["segment-anything", "depth"]
    assert 'talora_jax.load_msam("user/name", adapter, {"depth": …})' in body


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (
            ("missing", "user/name"),
            "there is no missing: expected an adapter, a base, or a work",
        ),
        (("adapter.safetensors", "name"), "name: expected the name of a repository, user/name"),
        (("adapter.safetensors", "user/name@v1"), "expected the name of a repository, user/name"),
        (("photo.jpg", "user/name"), "photo.jpg is cut short or no adapter"),
        (("sam_nano.safetensors", "user/name", "user/base"), "is a base and has none: base= is of"),
        (("adapter.safetensors", "user/name", None, "no.png"), "there is no picture no.png"),
        (
            ("adapter.safetensors", "user/name", None, "other.safetensors"),
            "other.safetensors: not an image",
        ),
        (("adapter.safetensors", "user/name", "sam_small"), "does not fit sam_small"),
    ],
)
def test_what_is_not_pushed(hub, shelf, monkeypatch, given, what):
    monkeypatch.chdir(shelf)
    source, name, base, picture = (*given, None, None)[:4]
    with pytest.raises(UserError, match=what):
        push(source, name, base=base, picture=picture)
    assert not hub.asked


def test_who_may_not_write(hub, shelf):
    hub.refuses["user/name"] = 403, "Forbidden"
    with pytest.raises(
        UserError, match="the Hub refused user/name: status 403 .*run hf auth login"
    ):
        push(shelf / "adapter.safetensors", "user/name")
