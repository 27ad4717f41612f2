"""Paths that are URLs: what lies in a bucket works as what lies here, and the rest is told."""

import importlib.util
from pathlib import Path

import pytest

import talora_jax
from talora_jax import config as config_lib
from talora_jax import storage
from talora_jax.command_line import main
from talora_jax.errors import UserError

LOCAL = "expected a local path here"
OTHER = "expected a local path or gs://BUCKET/FOLDER"


@pytest.fixture
def without_gcsfs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize("given", ["runs/a", "/runs/a:b/c", "C:/runs", "a://b"])
def test_a_local_path_is_itself(given):
    assert storage.place(given) == storage.local(given) == storage.fetched(given) == Path(given)
    assert not storage.is_remote(given)


def test_the_home_is_put_in():
    assert storage.place("~/runs") == storage.local("~/runs") == Path.home() / "runs"


@pytest.mark.parametrize(
    "given", ["s3://bucket/run", "file:///run", Path("s3://bucket/run"), "gs:/"]
)
def test_an_url_that_leads_nowhere(given):
    with pytest.raises(UserError, match=OTHER):
        storage.place(given)


def test_a_bucket_needs_gcsfs(without_gcsfs):
    for given in ("gs://bucket/run", Path("gs://bucket/run")):
        with pytest.raises(UserError, match=r"^gs://bucket/run needs gcsfs: pip install 'talora_j"):
            storage.place(given)


TRAIN = ("--config", "rooms_tiny")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((*TRAIN, "--workdir", "s3://b/run"), f"s3://b/run: {OTHER}"),
        ((*TRAIN, "--workdir=gs://b/run"), "gs://b/run needs gcsfs"),
        (("evaluate", "--workdir=gs://b/run"), "gs://b/run needs gcsfs"),
        (("describe", "--workdir=hdfs://b/run"), f"hdfs://b/run: {OTHER}"),
        (("predict", "--adapter=x", "--images=x", "--out=gs://b/out"), f"gs://b/out: {LOCAL}"),
        (
            ("predict", "--adapter=s3://b/x", "--images=x.png", "--out=o"),
            f"s3://b/x: {OTHER}",
        ),
        (("masks", "--images=x", "--base=x", "--out=gs://b/out"), f"gs://b/out: {LOCAL}"),
        (("demo", "--workdir", "s3://b/run"), f"s3://b/run: {OTHER}"),
        (("export", "gs://b/run", "out"), "gs://b/run needs gcsfs"),
        (("export", "run", "gs://b/out"), f"gs://b/out: {LOCAL}"),
        (("sweep", *TRAIN, "--workdir=gs://b/runs"), f"gs://b/runs: {LOCAL}"),
        (("report", "gs://b/run"), f"gs://b/run: {LOCAL}"),
        (("report", "run", "--out=gs://b/report"), f"gs://b/report: {LOCAL}"),
        (("adapter", "gs://b/adapter.safetensors"), "gs://b/adapter.safetensors needs gcsfs"),
        (("push", "gs://b/run", "user/name"), f"gs://b/run: {LOCAL}"),
        (("rooms", "gs://b/rooms"), f"gs://b/rooms: {LOCAL}"),
        (("convert", "sam.pth", "gs://b/base.safetensors"), f"base.safetensors: {LOCAL}"),
    ],
)
def test_no_command_makes_a_folder_of_an_url(arguments, told, tmp_path, monkeypatch, without_gcsfs):
    (tmp_path / "x.png").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        main(arguments)
    assert told in str(error.value) and len(str(error.value)) < 600
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("data.dir", LOCAL),
        ("data.path", LOCAL),
        ("model.weights", OTHER),
        ("adapter.extend", OTHER),
    ],
)
def test_no_field_makes_a_folder_of_an_url(field, told):
    config = config_lib.default()
    config.update_from_flattened_dict({"tasks": ("depth",), field: "s3://bucket/x"})
    with pytest.raises(UserError, match=f"^config.{field}: s3://bucket/x: {told}"):
        config_lib.check(config)


def test_nor_does_python(without_gcsfs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("gs://bucket/run", Path("gs://bucket/run")):
        with pytest.raises(UserError, match="^gs://bucket/run needs gcsfs"):
            talora_jax.load(given)
    with pytest.raises(UserError, match="^gs://bucket/base.safetensors needs gcsfs"):
        talora_jax.load_sam("gs://bucket/base.safetensors")
