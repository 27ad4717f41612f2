"""Damaged checkpoints are passed over, told in one line, and kept."""

import resource
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from talora_jax.errors import UserError
from talora_jax.training.checkpoint import Checkpoints

STATE = {"x": jnp.zeros(1000)}


def learnt(step):
    # Of random bits, which no compression makes few enough to stand among the metadata, nor packs
    # so that one is of several numbers.
    bits = np.random.default_rng(step).integers(2**32, size=2000, dtype=np.uint32)
    exponents = bits >> 23 & 255
    finite = bits[(exponents > 0) & (exponents < 255)]
    return {"x": jnp.asarray(finite[:1000].view(np.float32))}


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


def one_bit(step):
    """Of an array, so that it can still be read."""
    largest = max((step / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def no_position(step):
    (step / "iterator" / "metadata").write_text("[")


def other_position(step):
    path = step / "iterator" / "metadata"
    text = path.read_text().replace('"next_index": 4', '"next_index": 5')
    assert text != path.read_text()
    path.write_text(text)


def another_key(step):
    path = step / "iterator" / "metadata"
    text = path.read_text().replace('"sha256"', '"shb256"')
    assert text != path.read_text()
    path.write_text(text)


DAMAGE = (empty, cut, zeros, one_bit, no_position, other_position, another_key)


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


def test_without_a_checkpoint_that_can_be_read_all_stay(saved, tmp_path):
    workdir = shutil.copytree(saved, tmp_path / "run")
    empty(workdir / "checkpoints" / "2")
    zeros(workdir / "checkpoints" / "4")
    with pytest.raises(UserError, match="can be read: 4 .*; 2 .*Nothing is deleted") as error:
        Checkpoints(workdir).restore(STATE)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 600
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}


def test_another_number_is_told_and_taken_of_a_checkpoint_that_does_not_say(saved, tmp_path):
    workdir = shutil.copytree(saved, tmp_path / "run")
    one_bit(workdir / "checkpoints" / "4")
    told = []
    Checkpoints(workdir, read_only=True).restore(STATE, told.append)
    (line,) = told
    assert "4 cannot be read (its numbers are not the ones that were saved): going on" in line
    # As before there was a checksum.
    (workdir / "checkpoints" / "4" / "iterator" / "metadata").write_text('{"next_index": 4}')
    state, position = Checkpoints(workdir, read_only=True).restore(STATE)
    assert position == {"next_index": 4} and (state["x"] != learnt(4)["x"]).sum() == 1


def test_what_a_checkpoint_tells_is_read_without_its_state(saved):
    assert Checkpoints(saved, read_only=True).told() == {"next_index": 4}


def test_what_a_full_disk_cuts_is_told_once(saved, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    workdir = shutil.copytree(saved, tmp_path / "run")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    many = {str(i): learnt(i)["x"] for i in range(12)}
    with pytest.raises(UserError, match="a checkpoint could not be written to .*before stays"):
        with Checkpoints(workdir) as checkpoints:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, most))
            try:
                checkpoints.save(6, many, {"next_index": 6})
                checkpoints.close()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert not told
    assert Checkpoints(workdir, read_only=True).told() == {"next_index": 4}
