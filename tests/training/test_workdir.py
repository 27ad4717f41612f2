"""Whose a workdir is, who is at work in it, and what its mishaps are told as."""

import errno
import json
import os
import signal
import sys
import time

import pytest

from talora_jax import config as config_lib
from talora_jax import signals
from talora_jax.errors import Stopped, UserError, run_command
from talora_jax.training.workdir import (
    Stop,
    as_begun,
    check_free,
    check_same,
    claim_workdir,
    held,
    interrupted,
    on_disk,
)


def read(workdir):
    return json.loads((workdir / "config.json").read_text())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("log_every", 7),
        ("eval_every", 7),
        ("checkpoint_every", 7),
        ("read_threads", 1),
        ("num_pictures", 1),
        ("data.dir", "elsewhere"),
        ("data.path", "moved"),
        ("mesh.data", 1),
        ("hosts.process_id", 1),
    ],
)
def test_what_numbers_do_not_depend_on_may_change(tmp_path, field, value):
    config = config_lib.default()
    claim_workdir(config, tmp_path, write=True)
    config.update_from_flattened_dict({field: value})
    claim_workdir(config, tmp_path, write=False)
    assert read(tmp_path) == json.loads(json.dumps(config_lib.default().to_dict()))
    claim_workdir(config, tmp_path, write=True)
    assert config_lib.read(tmp_path / "config.json").to_dict() == config_lib.plain(config)


def test_a_run_that_began_with_a_field_that_its_data_does_not_read_goes_on(tmp_path):
    config = config_lib.default()
    config.data.depth_scale = 1000.0
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    for ours in (config, config_lib.default()):
        claim_workdir(ours, tmp_path, write=False)
        assert as_begun(ours, tmp_path).data.depth_scale is None
    config.data.depth_scale = 2.0
    assert as_begun(config, tmp_path).data.depth_scale == 2.0
    with pytest.raises(UserError, match="config.data.depth_scale was None and is now 2.0"):
        claim_workdir(config, tmp_path, write=False)
    assert as_begun(config, tmp_path / "new") is config


def test_more_steps_are_for_those_who_ask_and_fewer_for_nobody(tmp_path):
    config = config_lib.default()
    claim_workdir(config, tmp_path, write=True)
    for name in ("adapter.safetensors", "base.safetensors"):
        (tmp_path / name).write_text("of 1000 steps")
    config.steps = 2000
    with pytest.raises(UserError, match="was 1000 and is now 2000.*give --config.steps=2000 to tr"):
        claim_workdir(config, tmp_path, write=True)
    results = ("adapter.safetensors",)
    claim_workdir(config, tmp_path, write=False, more_steps=True, results=results)
    assert read(tmp_path)["steps"] == 1000 and (tmp_path / "adapter.safetensors").exists()
    claim_workdir(config, tmp_path, write=True, more_steps=True, results=results)
    assert read(tmp_path)["steps"] == 2000
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "base.safetensors", "adapter_1000_steps.safetensors"}
    config.steps = 1500
    with pytest.raises(UserError, match="a run gets longer, never shorter"):
        claim_workdir(config, tmp_path, write=True, more_steps=True)
    config.steps, config.batch_size = 3000, 2
    with pytest.raises(UserError, match="config.batch_size was 4 and is now 2, config.steps was"):
        claim_workdir(config, tmp_path, write=True, more_steps=True)


def test_checkpoints_without_their_config_are_not_gone_on_from(tmp_path):
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(UserError, match="holds checkpoints, but config.json, which tells what of"):
        claim_workdir(config_lib.default(), tmp_path, write=True)


def test_a_workdir_that_cannot_be_one(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to(tmp_path / "gone")
    for workdir, told in (
        (file, "file is a file, expected a directory"),
        (file / "run", "file is a file, expected a directory"),
        (link, "link is a link to .*gone, which is gone"),
        (link / "run", "link is a link to .*gone, which is gone"),
    ):
        with pytest.raises(UserError, match=told):
            claim_workdir(config_lib.default(), workdir, write=True)


def test_another_base_or_other_classes(tmp_path):
    config = config_lib.default()
    config.model.weights = "a.safetensors"
    claim_workdir(config, tmp_path, write=True)
    config.model.weights = "b.safetensors"
    is_now = {"base_fingerprint": "1", "class_names": {"semantic": ["red"]}}
    check_same(config, tmp_path, is_now, is_now)
    with pytest.raises(UserError, match="weights=b.safetensors is not the base"):
        check_same(config, tmp_path, is_now | {"base_fingerprint": "2"}, is_now)
    # Older checkpoints do not say.
    with pytest.raises(UserError, match="weights=b.safetensors is not the base"):
        check_same(config, tmp_path, {}, is_now)
    with pytest.raises(UserError, match="the classes .*blue.*, but the data has .*red"):
        check_same(config, tmp_path, is_now | {"class_names": {"semantic": ["blue"]}}, is_now)


def test_one_process_at_a_time(tmp_path):
    workdir = tmp_path / "new" / "run"
    check_free(workdir)
    with held(workdir):
        with pytest.raises(UserError, match="another process is at work in it"):
            check_free(workdir)
        with pytest.raises(UserError, match="another process is at work in it"), held(workdir):
            pass
    check_free(workdir)
    assert not list(workdir.iterdir())


def test_who_has_the_workdir_removes_what_killed_ones_left(tmp_path):
    half = ".adapter.safetensors.partial-0123456789abcdef"
    for directory in (tmp_path, tmp_path / "pictures"):
        directory.mkdir(exist_ok=True)
        (directory / half).touch()
    with held(tmp_path, active=False):
        assert (tmp_path / half).exists()
    with held(tmp_path):
        assert [path.name for path in tmp_path.rglob("*")] == ["pictures"]


def test_what_a_disk_refuses_is_told_with_its_path(tmp_path):
    with pytest.raises(UserError, match="/x/y: No space left on device. What was saved"):
        with on_disk(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y")
    with pytest.raises(UserError, match=f"{tmp_path}: Read-only file system"), on_disk(tmp_path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_and_the_second_does_not(number, capfd):
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopping after this step" in capfd.readouterr().err


def test_an_interrupt_is_one_line_and_a_status(tmp_path, capsys, monkeypatch):
    hook = sys.unraisablehook

    def run_another(main):
        """As if it were of another process."""
        monkeypatch.setattr(signals, "_interrupted", None)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(SystemExit) as end:
            run_command(main)
        signal.signal(signal.SIGINT, before)
        return end.value.code

    def main():
        with interrupted(tmp_path):
            raise KeyboardInterrupt

    assert run_another(main) == 130
    assert capsys.readouterr().err == (
        f"stopped; the same command goes on from its start in {tmp_path}\n"
    )

    def collected():
        """Python drops what is raised where garbage is collected."""

        class Garbage:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)

        with interrupted(tmp_path) as check:
            Garbage()
            reached.append(True)
            check()

    reached = []
    assert run_another(collected) == 130 and reached
    errors = capsys.readouterr().err
    assert "goes on from its start" in errors and "Traceback" not in errors
    assert sys.unraisablehook is hook

    def before_a_step():
        with interrupted(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    assert run_another(before_a_step) == 143
    assert "goes on from its start" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def terminated():
        raise Stopped("stopped after step 3", 143)

    assert run_another(terminated) == 143
    assert capsys.readouterr().err == "stopped after step 3\n"
