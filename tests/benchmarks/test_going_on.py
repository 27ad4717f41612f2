"""What is compared when a run starts from an adapter: the same, but for the start."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import going_on
from talora_jax.errors import UserError
from talora_jax.experiments import sweep
from talora_jax.weights.adapter_file import AdapterFile

SCORES = {"semantic/miou": 0.5, "semantic/pixel_acc": 0.9, "depth/pooled/abs_err": 0.2}


def test_runs_differ_by_their_start_alone(tmp_path, monkeypatch, capsys):
    adapter = {"kind": "talora", "ranks": [32, 64, 3], "scale": 1.0, "dropout": 0.0}
    adapter |= {"qkv": [True, False, True], "blocks": None, "init": "lora"}
    file = AdapterFile(
        {"x": np.zeros(1)}, adapter, {"depth": 1}, {}, "sam_small", "f" * 64, weights="sam_small"
    )
    path = tmp_path / "adapter.safetensors"
    file.write(path)
    planned = {}

    def record(runs, directory):
        planned[directory.name] = runs
        return {}

    def scored(workdir):
        better = 0.1 if workdir.parts[-3] == "from_adapter" else 0.0
        metrics = {
            name: value + (-better if name.endswith("err") else better)
            for name, value in SCORES.items()
        }
        return SimpleNamespace(tasks=("semantic",), metrics=metrics)

    monkeypatch.setattr(sweep, "sweep", record)
    monkeypatch.setattr(going_on, "read_run", scored)
    arguments = [f"--adapter={path}", f"--tabletop={tmp_path}", f"--workdir={tmp_path}"]
    assert going_on.main([*arguments, "--seeds", "0", "1", "--steps=120"]) == 0
    afresh, begun = planned["afresh"], planned["from_adapter"]
    assert list(afresh) == list(begun) == ["talora-seed0", "talora-seed1"]
    for name, run in begun.items():
        assert (run.init, afresh[name].init) == (str(path), None)
        fields = run.to_dict() | {"init": None}
        assert fields == afresh[name].to_dict()
        assert (run.steps, run.adapter.scale, run.adapter.blocks) == (120, 1.0, None)
        assert (run.adapter.ranks, run.adapter.qkv) == ((32, 64, 3), (True, False, True))
        assert not run.model.native_aspect
    row = "| semantic/miou | 0.5000 ± 0.0000 | 0.6000 ± 0.0000 | 0.1000 ± 0.0000 | 2/2 |"
    assert row in capsys.readouterr().out.splitlines()
    with pytest.raises(UserError, match="--tabletop: there is no folder"):
        going_on.main([arguments[0], f"--tabletop={path}", arguments[2]])


def test_a_gain_has_the_metrics_own_sign():
    afresh = [{"depth/pooled/abs_err": x} for x in (0.3, 0.2)]
    begun = [{"depth/pooled/abs_err": x} for x in (0.2, 0.22)]
    told = going_on.table(afresh, begun, {"depth/pooled/abs_err": -1}).splitlines()[-1]
    assert told == (
        "| depth/pooled/abs_err | 0.2500 ± 0.0707 | 0.2100 ± 0.0141 | 0.0400 ± 0.0849 | 1/2 |"
    )
