"""The command line: one clear line for each mistake, and resuming after a kill."""

import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image

from talora_jax.config import flat_fields
from talora_jax.errors import run_command
from talora_jax.main import main
from talora_jax.training.log import read_metrics


def flags(config, workdir):
    """The command line that gives this config."""
    fields = flat_fields(config.to_dict())
    # hosts, mesh and the rest stay at their defaults; what the fixture sets is given.
    given = [
        f"--{name}={value}"
        for name, value in fields.items()
        if name.startswith(("config.data.", "config.model.size", "config.model.weights"))
        or name.startswith(("config.adapter.ranks", "config.batch_size", "config.eval_batch_size"))
        or name == "config.log_every"
    ]
    return ["--config=configs/rooms_tiny.py", f"--workdir={workdir}", *given]


def finish(process, *, status=0):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    return out, errors


def mistake(errors):
    """What a command that must fail has said, without a traceback."""
    _, error, message = errors.partition("error: ")
    assert error and "Traceback" not in errors, errors
    return message.strip()


def test_mistakes_on_the_command_line_are_told_in_one_line(config, tmp_path, capsys):
    good = flags(config, tmp_path / "run")
    for arguments, told in (
        (["--config=configs/rooms_tinny.py", "--workdir=x"], "no file 'configs/rooms_tinny.py'"),
        ([*good, "--config.batchsize=4"], "no field batchsize; did you mean batch_size?"),
        (["--config=configs/rooms_tiny.py"], "--workdir is missing"),
        ([*good, "--config.tasks=('flow',)"], "expected one of semantic, depth"),
        ([*good, "--config.batch_size=three"], "batch_size"),
        ([*good, f"--config.data.path={tmp_path}/nowhere"], f"{tmp_path}/nowhere"),
        ([*good, "--config.model.weights=sam.pth"], "sam.pth"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run_command(lambda given=arguments: main(given))
        message = mistake(capsys.readouterr().err)
        assert told in message and len(message.splitlines()) == 1, message
    assert not (tmp_path / "run").exists()


def test_all_mistakes_in_a_folder_are_told_at_once(start_main, config, folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    png = broken / "image" / "003.png"
    png.write_bytes(png.read_bytes()[:200])
    Image.fromarray(np.full((24, 32), 7, np.uint8)).save(broken / "semantic" / "005.png")
    process = start_main(*flags(config, tmp_path / "run"), f"--config.data.path={broken}")
    _, errors = finish(process, status=2)
    message = mistake(errors)
    assert "image/003.png" in message and "semantic/005.png" in message and "7" in message


def test_a_batch_that_the_mesh_does_not_divide(start_main, config, tmp_path):
    process = start_main(*flags(config, tmp_path / "run"), "--config.batch_size=6", devices=4)
    _, errors = finish(process, status=2)
    assert "6 is not divisible by the mesh's data × fsdp = 4 × 1 = 4" in errors


def test_help_tells_the_modes_and_an_example(start_main):
    out, _ = finish(start_main("--help"))
    assert "--config configs/rooms_tiny.py" in out and "train|evaluate" in out


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_its_step(start_main, config, tmp_path):
    workdir = tmp_path / "run"
    command = [*flags(config, workdir), "--config.steps=200", "--config.checkpoint_every=150"]
    process = start_main(*command)
    while process.poll() is None and not read_metrics(workdir / "metrics.jsonl")[2:]:
        time.sleep(0.01)
    _, errors = finish(start_main(*command), status=2)
    assert errors.strip().endswith("choose another --workdir") and "another process" in errors
    process.send_signal(signal.SIGINT)
    _, errors = finish(process, status=130)
    step = max(row["step"] for row in read_metrics(workdir / "metrics.jsonl"))
    assert errors.splitlines()[-1].startswith(f"stopped after step {step} of 200, which")
    assert "Traceback" not in errors and (workdir / "checkpoints" / str(step)).exists()


def results(workdir):
    """All that was logged, but for times."""
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "step_time"} for row in rows]


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_run_resumes_to_the_same_end(start_main, config, tmp_path, capsys):
    def command(name):
        long = ["--config.steps=12", "--config.checkpoint_every=3", "--config.eval_every=6"]
        # A method that carries gradients from step to step: they are resumed, too.
        return [*flags(config, tmp_path / name), *long, "--config.weighting.kind=db_mtl"]

    main(command("unbroken"))
    expected = results(tmp_path / "unbroken")
    assert [row["step"] for row in expected if row["split"] == "val"] == [6, 12]

    workdir = tmp_path / "killed"

    def after_step(step):
        return any(row["step"] >= step for row in read_metrics(workdir / "metrics.jsonl"))

    def while_saving():
        return any((workdir / "checkpoints").glob("*/*tmp*")) or any(
            (workdir / "checkpoints").glob("*tmp*")
        )

    # One run, killed three times: before its first checkpoint, while it saves, between two.
    moments = {
        "early": lambda: after_step(2),
        "saving": lambda: after_step(3) and while_saving(),
        "between": lambda: after_step(8),
    }
    for name, is_now in moments.items():
        process = start_main(*command("killed"))
        while process.poll() is None and not is_now():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"{name}: ended before it was killed"
        assert not (workdir / "adapter.safetensors").exists()
    finish(start_main(*command("killed")))
    assert results(workdir) == expected

    capsys.readouterr()
    main(command("killed"))
    assert "This run is finished" in capsys.readouterr().out
