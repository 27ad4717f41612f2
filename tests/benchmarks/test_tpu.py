"""`benchmarks.tpu` on fake devices, which need no libtpu, and what it says to mistakes."""

import importlib.util
import json
import sys

import jax
import pytest

from benchmarks import tpu
from benchmarks.tpu import choose_tasks, program_text
from talora_jax.errors import UserError, run_command
from talora_jax.experiments import accelerators
from talora_jax.tasks import TASKS

RECIPE = ("semantic", "depth", "normals")


def test_more_tasks_than_a_config_names():
    others = [kind for kind in TASKS if kind not in RECIPE]
    tasks = choose_tasks(RECIPE, len(TASKS) + 1, 13)
    assert [task.name for task in tasks] == [*RECIPE, *others, "semantic_2"]
    assert [task.channels for task in tasks[:3]] == [13, 1, 3] and tasks[-1].channels == 13
    assert [task.name for task in choose_tasks(("depth", "normals"), 1, 13)] == ["depth"]


@pytest.mark.slow
@pytest.mark.long
def test_the_step_is_compiled_and_measured(start_python, tmp_path):
    path = tmp_path / "report.json"
    process = start_python(
        *("-m", "benchmarks.tpu", "--topology", "cpu:2", "--size", "tiny", "--json", str(path))
    )
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "all-reduced ÷ trainable parameters" in out
    report = json.loads(path.read_text())
    assert report["work"]["device"] == ["2 cpu"]
    step = report["sizes"]["tiny"]
    assert (step["chips"], step["batch"], report["work"]["channels"]) == (2, 2, 17)
    # Adam keeps two numbers for each that trains; a chip holds all of them.
    assert step["arguments"] > 3 * step["trainable"] + step["frozen"]
    assert step["peak"] >= step["arguments"] + step["temporaries"] > step["temporaries"] > 0
    assert step["flops"] > 0
    # Data parallel: gradients are reduced, nothing else of any size is sent.
    assert step["collectives"].keys() == {"all-reduce"}
    assert step["reduced_ratio"] > 0


# What is wrong is found before the environment is set for JAX.
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v9x:2x4"], "--topology: unknown 'v9x:2x4', expected GENERATION:SHAPE"),
        (["--topology", "v5e:2x2x2"], "--topology: unknown 'v5e:2x2x2'"),
        (["--topology", "cpu:1", "--config", "none.py"], "--config: there is no file 'none.py'"),
        (["--topology", "cpu:1", "--config.model.sise=tiny"], "the config has no field sise"),
        (["--topology", "cpu:1", "--tasks", "0"], "--tasks is 0, expected at least 1"),
        (["--topology", "cpu:1", "cpu:2"], "cpu:DEVICES stands alone, and in one slice"),
        (["--topology", "cpu:2", "--slices", "2"], "cpu:DEVICES stands alone, and in one slice"),
    ],
)
def test_mistakes_are_told_in_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["tpu", *arguments])
    monkeypatch.setattr(accelerators, "prepare_for_tpus", None)
    with pytest.raises(SystemExit) as stop:
        run_command(tpu.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_a_mesh_of_another_number_of_devices(start_python):
    process = start_python("-m", "benchmarks.tpu", "--topology", "cpu:2", "--mesh", "4,1,1")
    _, errors = process.communicate(timeout=120)
    assert process.returncode
    assert errors.splitlines()[-1] == "error: --mesh is 4,1,1, but the topology has 2 devices"


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_a_missing_libtpu_is_named(start_python):
    process = start_python("-m", "benchmarks.tpu", "--topology", "v5e:2x4")
    _, errors = process.communicate(timeout=120)
    assert errors.splitlines()[-1].endswith("pip install 'jax[tpu]'")


def test_a_libtpu_that_jax_does_not_go_with_is_named():
    class Compiled:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\n*** stack trace ***")

    with pytest.raises(UserError, match=r"cannot read .* libtpu .* pip install 'jax\[tpu\]'"):
        program_text(Compiled())
