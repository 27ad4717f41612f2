"""What a run tells of its pace, and its log."""

import io
import json
import time

import numpy as np
import pytest
import rich.console

from talora_jax.training import log
from talora_jax.training.lines import Lines


def test_the_time_left_counts_what_waits_and_the_step_time_does_not(monkeypatch):
    now = 0.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now)
    console = rich.console.Console(file=io.StringIO(), width=200)
    with log.Progress(console, 1000, 0, console.print) as progress:
        for step in range(1, 102):
            # Every tenth step waits for images.
            now += 11.0 if step % 10 == 0 else 1.0
            progress.advance(step)
        progress.line(100, {"depth/loss": 0.5})
    assert progress.step_time() == 1.0
    told = "step 100/1000  1.00 s/step  left 00:30:00  depth/loss 0.5"
    assert told in console.file.getvalue()


def row(step, split="train", **values):
    return {"step": step, "split": split, **values}


def test_damaged_lines_cost_no_others(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        b"\xef\xbb\xbf" + json.dumps(row(1)).encode(),
        b'{"step": 2, "spl',
        b"\xff\xfe",
        bytes(64) + json.dumps(row(3)).encode(),
        json.dumps(row(4)).encode(),
        b'{"step": 5',
    ]
    path.write_bytes(b"\n".join(lines))
    assert log.read_metrics(path) == [row(1), row(3), row(4)]


@pytest.mark.parametrize("value", ["0.5", None, True, [1], {}, 10**400])
def test_a_row_has_numbers_alone(value):
    assert log.is_row(row(1, loss=0.5, images=3)) and log.is_row(row(1, loss=float("nan")))
    assert not log.is_row(row(1, loss=value))


def test_a_resumed_log_has_every_row_once(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    kept = [row(0, "model"), row(1, loss=1.0), row(2, "val"), row(2)]
    lines = [*kept[:2], row(1, loss=2.0), *kept[2:], row(3), [3]]
    path.write_text("\n".join([json.dumps(line) for line in lines[:2]] + ["{", ""]))
    with open(path, "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines[2:])
    run_log = log.RunLog(tmp_path, resume_step=2, last_step=4, active=True)
    assert "metrics.jsonl: 2 damaged line(s) left out" in capsys.readouterr().out
    run_log.write(3, "train", {})
    run_log.close()
    assert log.read_metrics(path) == [kept[0], row(1, loss=2.0), *kept[2:], row(3)]
    # The evaluation after the last step comes behind its checkpoint: it is made again.
    log.RunLog(tmp_path, resume_step=2, last_step=2, active=True).close()
    assert log.read_metrics(path) == [kept[0], row(1, loss=2.0), row(2)]


def test_lines_stay_in_a_file(tmp_path, capsys):
    for said in ("a", "b"):
        lines = Lines(active=True)
        lines(f"before {said}")
        run_log = log.RunLog(tmp_path, resume_step=0, last_step=4, active=True, lines=lines)
        run_log.print(f"then {said}")
        with run_log.progress(4, 0) as progress:
            progress.line(1, {})
        run_log.close()
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "before a" and told[2].startswith("step 1/4") and told[4] == "then b"
    found = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[21:] for line in found] == told
    time.strptime(found[0][:19], "%Y-%m-%d %H:%M:%S")


def test_what_was_logged_before_is_there_again(tmp_path):
    constants = row(0, "val_constant", **{"depth/abs_err": 0.5})
    (tmp_path / "metrics.jsonl").write_text(json.dumps(constants) + "\n")
    run_log = log.RunLog(tmp_path, resume_step=2, last_step=4, active=True)
    assert run_log.logged(0, "val_constant") == {"depth/abs_err": 0.5}
    assert run_log.logged(2, "val") == {}


def test_tensorboard_has_what_was_written(tmp_path):
    run_log = log.RunLog(tmp_path, resume_step=0, last_step=4, active=True)
    run_log.write(1, "train", {"depth/loss": 0.5})
    run_log.picture(1, "val_000", np.zeros((2, 3, 3), np.uint8))
    run_log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/depth/loss" in content and b"val_000" in content and b"PNG" in content
