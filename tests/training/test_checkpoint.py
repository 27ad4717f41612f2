"""Damaged checkpoints are passed over, told in one line, and kept."""

import contextlib
import shutil

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from talora_jax.errors import UserError
from talora_jax.training import checkpoint
from talora_jax.training.checkpoint import Checkpoints

STATE = {"x": jnp.zeros(1000)}


def learnt(step):
    # Of random numbers, which no compression makes few enough to stand among the metadata.
    return {"x": jnp.asarray(np.random.default_rng(step).normal(size=1000), jnp.float32)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir)
    for step in (2, 4):
        checkpoints.save(step, learnt(step), {"next_index": step})
    checkpoints.close()
    return workdir


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def cut(step):
    for file in (step / "state" / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zeros(step):
    manifest = step / "state" / "manifest.ocdbt"
    manifest.write_bytes(bytes(manifest.stat().st_size))


def no_position(step):
    (step / "iterator" / "metadata").write_text("[")


def other_position(step):
    path = step / "iterator" / "metadata"
    path.write_text(path.read_text().replace('"next_index": 4', '"next_index": 5'))
    assert '"next_index": 5' in path.read_text()


def flipped(step):
    """One bit of the numbers that Orbax reads all the same."""
    wanted, abstract = learnt(4)["x"], {"state": ocp.args.StandardRestore(STATE)}
    for file in sorted((step / "state" / "ocdbt.process_0" / "d").iterdir()):
        whole = file.read_bytes()
        for place in range(len(whole) // 4, len(whole), len(whole) // 7):
            content = bytearray(whole)
            content[place] ^= 1
            file.write_bytes(content)
            with contextlib.suppress(Exception), ocp.CheckpointManager(step.parent) as manager:
                read = manager.restore(int(step.name), args=ocp.args.Composite(**abstract))
                if (read.state["x"] != wanted).any():
                    return
        file.write_bytes(whole)
    raise AssertionError("Orbax tells by itself")


DAMAGE = (empty, cut, zeros, no_position, other_position, flipped)


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_one_before_a_damaged_checkpoint_serves(saved, tmp_path, damage, capfd):
    workdir = shutil.copytree(saved, tmp_path / "run")
    damage(workdir / "checkpoints" / "4")
    told = []
    state, position = Checkpoints(workdir, read_only=True).restore(STATE, told.append)
    assert position == {"next_index": 2} and (state["x"] == learnt(2)["x"]).all()
    assert (workdir / "checkpoints" / "4").exists()

    checkpoints = Checkpoints(workdir)
    assert checkpoints.restore(STATE, told.append)[1] == position
    for line in told:
        assert line.startswith("checkpoint 4 cannot be read (") and len(line.splitlines()) == 1
        assert line.endswith("): going on from checkpoint 2")
    # The run comes by step 4 again, and nothing is lost.
    assert (workdir / "checkpoints" / "unreadable_4").is_dir()
    checkpoints.save(4, learnt(4), {"next_index": 4})
    checkpoints.close()
    assert Checkpoints(workdir, read_only=True).restore(STATE)[1] == {"next_index": 4}
    out, errors = capfd.readouterr()
    assert not out and "Traceback" not in errors


def test_checkpoints_of_before_they_had_checksums_are_read(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "_checksum", lambda state, iterator: None)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, learnt(2), {"next_index": 2})
    checkpoints.close()
    monkeypatch.undo()
    state, position = Checkpoints(tmp_path, read_only=True).restore(STATE)
    assert position == {"next_index": 2} and (state["x"] == learnt(2)["x"]).all()


def test_without_a_checkpoint_that_can_be_read_all_stay(saved, tmp_path):
    workdir = shutil.copytree(saved, tmp_path / "run")
    empty(workdir / "checkpoints" / "2")
    zeros(workdir / "checkpoints" / "4")
    with pytest.raises(UserError, match="can be read: 4 .*; 2 .*Nothing is deleted") as error:
        Checkpoints(workdir).restore(STATE)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 600
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}


def test_what_a_checkpoint_tells_is_read_without_its_state(saved):
    assert Checkpoints(saved, read_only=True).told() == {"next_index": 4}
