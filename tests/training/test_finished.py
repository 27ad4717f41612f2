"""A finished run says so at once, unless something is not as it was."""

import json
import shutil

import pytest

from talora_jax.data import memory
from talora_jax.errors import UserError
from talora_jax.training import finished
from talora_jax.training.jobs import JOBS, Job
from talora_jax.training.loop import train
from talora_jax.training.setup import learnt_file

JOB: Job = JOBS["tasks"]


@pytest.fixture
def workdir(config, tmp_path):
    """What a run of the config leaves, without training."""
    run = JOB.prepare(config)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    memory.remember(run.dataset, tmp_path, resumes=False, write=True)
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    learnt_file(run, run.trainable).write(tmp_path / "adapter.safetensors")
    return tmp_path


def test_no_model_is_made_to_say_it(config, workdir, nano_base, tmp_path, monkeypatch, capsys):
    def fails(*arguments):
        raise AssertionError("a model was made")

    monkeypatch.setitem(JOBS, "tasks", JOB._replace(prepare=fails))
    assert train(config, workdir) == {}
    assert f"This run is finished: {workdir} holds 4 steps and" in capsys.readouterr().out
    # Not without the adapter, the last checkpoint, the base.
    adapter = workdir / "adapter.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes(whole[:-4] + bytes(4))
    assert not finished.surely(config, workdir, JOB)
    adapter.write_bytes(whole)
    (workdir / "checkpoints" / "4").rename(workdir / "checkpoints" / "3")
    assert not finished.surely(config, workdir, JOB)
    (workdir / "checkpoints" / "3").rename(workdir / "checkpoints" / "4")
    assert finished.surely(config, workdir, JOB)
    config.model.weights = str(shutil.copy(nano_base, tmp_path / "moved.safetensors"))
    assert finished.surely(config, workdir, JOB)
    config.model.weights = "sam_small"
    assert not finished.surely(config, workdir, JOB)


def test_data_that_has_changed_is_told(config, workdir):
    data = workdir / "data.json"
    data.write_text(data.read_text().replace('"image/', '"image/old_', 1))
    with pytest.raises(UserError, match="has changed: 1 files new"):
        finished.surely(config, workdir, JOB)
