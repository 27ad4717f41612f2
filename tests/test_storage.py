"""Paths that are URLs: what lies in a bucket works as what lies here, and the rest is told."""

import gc
import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import talora_jax
from talora_jax import config as config_lib
from talora_jax import config_checks, storage
from talora_jax.commands import main
from talora_jax.errors import UserError
from talora_jax.files import replacing, write_atomically
from talora_jax.training import evaluate_run
from talora_jax.training.checkpoint import Checkpoints
from talora_jax.training.log import RunLog, read_metrics
from talora_jax.training.workdir import check_free, claim_workdir, has_checkpoints, held
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.base_file import read_base

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


def test_a_bucket_has_no_folder_above():
    with pytest.raises(UserError, match=r"^gs://bucket/a/../run: a bucket has no \.\. between"):
        storage.place("gs://bucket/a/../run")
    assert storage.place("~/../runs") == Path.home() / "../runs"


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
        (("predict", "--adapter=x", "--images=gs://b/x", "--out=o"), f"gs://b/x: {LOCAL}"),
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
        ("init", OTHER),
    ],
)
def test_no_field_makes_a_folder_of_an_url(field, told):
    config = config_lib.default()
    config.update_from_flattened_dict({"tasks": ("depth",), field: "s3://bucket/x"})
    with pytest.raises(UserError, match=f"^config.{field}: s3://bucket/x: {told}"):
        config_checks.check(config)


def test_nor_does_python(without_gcsfs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("gs://bucket/run", Path("gs://bucket/run")):
        with pytest.raises(UserError, match="^gs://bucket/run needs gcsfs"):
            talora_jax.load(given)
    with pytest.raises(UserError, match="^gs://bucket/base.safetensors needs gcsfs"):
        talora_jax.load_sam("gs://bucket/base.safetensors")


# In a bucket.


def test_a_file_is_written_whole_or_not_at_all(bucket):
    path = storage.place("gs://bucket/run/notes.txt")
    write_atomically(path, b"old")
    assert bucket.objects["run/notes.txt"].content == b"old"
    with pytest.raises(ZeroDivisionError), replacing(path) as here:
        here.write_bytes(b"half")
        raise ZeroDivisionError
    bucket.refuses = {"write": 403}
    told = "^gs://bucket/run/notes.txt cannot be reached .*Forbidden.*may you read and write in it"
    for given in (path, Path("gs://bucket/run/notes.txt")):
        with pytest.raises(UserError, match=told):
            write_atomically(given, b"new")
    assert {k: x.content for k, x in bucket.objects.items()} == {"run/notes.txt": b"old"}


@pytest.mark.parametrize("size", [10, 8_000_000])
def test_an_interrupt_leaves_no_half_of_an_object(bucket, monkeypatch, size):
    def interrupted(source, sink, piece):
        sink.write(source.read(size // 2 + 1))
        raise KeyboardInterrupt

    path = storage.place("gs://bucket/base.safetensors")
    write_atomically(path, b"old")
    monkeypatch.setattr(storage.shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, bytes(size))
    gc.collect()
    assert path.read_bytes() == b"old"


def test_a_path_stays_in_its_bucket(bucket):
    for given in ("gs://bucket/run", Path("gs://bucket/run")):
        assert str(storage.absolute(storage.place(given))) == "gs://bucket/run"
    assert storage.absolute(Path("run")) == Path.cwd() / "run"


def test_an_adapter_and_its_base_are_fetched(bucket, shelf, capsys):
    bucket.put("base.safetensors", (shelf / "sam_nano.safetensors").read_bytes())
    bucket.put("run/adapter.safetensors", (shelf / "adapter.safetensors").read_bytes())
    model = talora_jax.load("gs://bucket/run", base="gs://bucket/base.safetensors")
    here = AdapterFile.read(shelf / "adapter.safetensors")
    assert model.file.base_fingerprint == here.base_fingerprint
    for name, x in here.tensors.items():
        np.testing.assert_array_equal(model.file.tensors[name], x)
    main(["adapter", "gs://bucket/run"])
    size = (shelf / "adapter.safetensors").stat().st_size
    assert f"gs://bucket/run/adapter.safetensors, {size / 1e6:.2f} MB" in capsys.readouterr().out
    model.save("gs://bucket/copy.safetensors")
    assert AdapterFile.read("gs://bucket/copy.safetensors").channels == here.channels
    # Another file of the same name is another one.
    bucket.put("run/adapter.safetensors", b"{}")
    with pytest.raises(UserError, match=r"^gs://bucket/run/adapter.safetensors is cut short"):
        talora_jax.load("gs://bucket/run")


def test_what_is_written_anew_is_fetched_anew(bucket):
    """At once, with as many bytes."""
    where = "gs://bucket/notes.txt"
    for content in (b"old", b"new", b"old"):
        bucket.put("notes.txt", content)
        copy = storage.fetched(where)
        assert copy.read_bytes() == content and storage.fetched(where) == copy


def test_one_login_is_enough(bucket, monkeypatch):
    gcsfs = pytest.importorskip("gcsfs")
    bucket.put("notes.txt", b"notes")
    connected, connect = [], gcsfs.GCSFileSystem.__init__
    monkeypatch.setattr(
        gcsfs.GCSFileSystem,
        "__init__",
        lambda self, *args, **how: connected.append(self) or connect(self, *args, **how),
    )
    gcsfs.GCSFileSystem.clear_instance_cache()
    assert storage.fetched("gs://bucket/notes.txt").read_bytes() == b"notes"
    assert len(connected) == 1


def test_what_is_not_in_a_bucket_is_told(bucket):
    with pytest.raises(UserError, match="^no base at gs://bucket/base.safetensors"):
        read_base("gs://bucket/base.safetensors")
    with pytest.raises(UserError, match="^no adapter at gs://bucket/run"):
        talora_jax.load("gs://bucket/run")
    bucket.put("run/config.json", b"{}")
    with pytest.raises(UserError, match="^the run in gs://bucket/run is not finished"):
        talora_jax.load("gs://bucket/run")


@pytest.mark.parametrize(
    "command",
    [
        (*TRAIN, "--workdir=gs://bucket/run"),
        ("evaluate", "--workdir=gs://bucket/run"),
        ("describe", "--workdir=gs://bucket/run"),
        ("adapter", "gs://bucket/run"),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(
    ("refuses", "told"),
    [({"look": 403, "read": 403}, "Forbidden"), ({"read": 401}, "401"), ({"read": 403}, "Forbidd")],
)
def test_a_bucket_that_may_not_be_read_is_told(command, refuses, told, bucket, shelf, capfd):
    """Forbidden, or known no longer."""
    bucket.put("run/config.json", json.dumps(config_lib.default().to_dict()).encode())
    bucket.put("run/adapter.safetensors", (shelf / "adapter.safetensors").read_bytes())
    bucket.refuses = refuses
    with pytest.raises(UserError, match=rf"^gs://bucket/run\S* cannot be reached \(.*{told}"):
        main(command)
    out, errors = capfd.readouterr()
    assert "Traceback" not in out + errors


def test_a_run_that_may_not_be_listed_is_not_said_to_be_empty(bucket):
    bucket.put("run/checkpoints/2/state", b"")
    workdir = storage.place("gs://bucket/run")
    assert has_checkpoints(workdir)
    bucket.refuses = {"look": 403}
    with pytest.raises(UserError, match="cannot be reached"), storage.reached(workdir):
        evaluate_run._trained(workdir)


@pytest.mark.parametrize(
    "reads",
    [
        "path.read_text()",
        "__import__('tensorstore').KvStore.open('gs://bucket/notes.txt').result()[''].decode()",
    ],
    ids=["gcsfs", "TensorStore"],
)
def test_a_bucket_that_is_silent_is_asked_again(reads, bucket, start_python, monkeypatch):
    # Which this process has set by its own paths.
    monkeypatch.delenv("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", raising=False)
    bucket.put("notes.txt", b"notes")
    bucket.silences = 1
    process = start_python(
        "-c",
        "from talora_jax import storage; storage._ANSWER = 1\n"
        f"path = storage.place('gs://bucket/notes.txt'); print({reads})",
    )
    try:
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert out == "notes\n" and not bucket.silences, errors


def test_what_is_not_the_buckets_is_not_told_of_it(bucket):
    with pytest.raises(ZeroDivisionError), storage.reached(storage.place("gs://bucket/run")):
        raise ZeroDivisionError


@pytest.mark.parametrize("url", ["gs://another/run", "gs://bucket/run"])
def test_a_workdir_that_cannot_be_written_is_told_before_anything(bucket, url):
    bucket.refuses = {"write": 403}
    with pytest.raises(UserError, match=f"^{url} cannot be reached .*gcloud auth appl") as error:
        claim_workdir(config_lib.default(), storage.place(url), write=False)
    assert len(str(error.value)) < 600 and not bucket.objects


def test_a_workdir_that_is_an_object_is_told(bucket):
    bucket.put("run", b"")
    with pytest.raises(UserError, match="^--workdir: gs://bucket/run is a file, expected a direc"):
        claim_workdir(config_lib.default(), storage.place("gs://bucket/run"), write=False)
    assert list(bucket.objects) == ["run"]


def test_a_workdir_is_claimed_in_a_bucket(bucket):
    config, workdir = config_lib.default(), storage.place("gs://bucket/run")
    claim_workdir(config, workdir, write=False)
    assert not bucket.objects
    claim_workdir(config, workdir, write=True)
    assert config_lib.read(workdir / "config.json").to_dict() == config.to_dict()
    config.seed = 7
    with pytest.raises(UserError, match=r"^gs://bucket/run was written by .*config.seed was 0"):
        claim_workdir(config, workdir, write=False)
    longer = config_lib.default()
    longer.steps = config.steps + 1
    bucket.put("run/adapter.safetensors", b"learnt")
    claim_workdir(longer, workdir, write=True, more_steps=True, results=["adapter.safetensors"])
    kept = f"run/adapter_{config.steps}_steps.safetensors"
    assert set(bucket.objects) == {"run/config.json", kept}


def test_who_is_at_work_in_a_bucket_keeps_others_out(bucket, monkeypatch):
    monkeypatch.setattr(storage, "_PULSE", 0.05)
    monkeypatch.setattr(storage, "_SILENT", 1.0)
    workdir = storage.place("gs://bucket/run")
    with held(workdir):
        for claim in (lambda: check_free(workdir), lambda: held(workdir).__enter__()):
            with pytest.raises(UserError, match=r"run: another process is at work in it \(process"):
                claim()
        (left,) = bucket.objects.values()
    assert not bucket.objects
    # Who was killed is silent.
    bucket.put("run/in_use_by.txt", left.content)
    check_free(workdir)
    assert not bucket.objects


def test_a_log_in_a_bucket_goes_on_after_a_kill(bucket):
    workdir = storage.place("gs://bucket/run")
    log = RunLog(workdir, resume_step=0, last_step=4, active=True)
    log.write(1, "train", {"loss": 3.0})
    assert read_metrics(workdir / "metrics.jsonl") == []
    log.publish()
    log.write(2, "train", {"loss": 2.0})
    log.write(2, "val", {"miou": 0.5})
    log = RunLog(workdir, resume_step=1, last_step=4, active=True)
    log.write(2, "train", {"loss": 1.0})
    log.close()
    assert read_metrics(workdir / "metrics.jsonl") == [
        {"step": 1, "split": "train", "loss": 3.0},
        {"step": 2, "split": "train", "loss": 1.0},
    ]
    boards = [name for name in bucket.objects if name.startswith("run/tensorboard/events")]
    assert len(boards) >= 1 and len(bucket.objects) == len(boards) + 1


def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(bucket, capsys):
    state = {"w": jnp.arange(3.0)}
    checkpoints = Checkpoints(storage.place("gs://bucket/run"))
    for step in (1, 2):
        checkpoints.save(step, state, {"epoch": step})
    checkpoints.close()
    for name in [name for name in bucket.objects if name.startswith("run/checkpoints/2/state/d/")]:
        bucket.put(name, b"damaged")
    restored, position = Checkpoints(storage.place("gs://bucket/run")).restore(state)
    np.testing.assert_array_equal(restored["w"], state["w"])
    assert position == {"epoch": 1}
    assert "going on from checkpoint 1" in capsys.readouterr().out
    steps = {name.split("/")[2] for name in bucket.objects}
    assert steps == {"1", "unreadable_2"}


@pytest.mark.slow
@pytest.mark.long
def test_a_run_in_a_bucket_is_killed_and_goes_on(bucket, start_python):
    """By two processes and by one; it has the numbers of one that was here."""
    process = start_python("-m", "tests.hosts", "bucket")
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, out + errors
    assert out.splitlines()[-1] == "0 wrong"
