"""What the trunk gives, kept on disk: the same training, without computing it again."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from talora_jax import config_checks
from talora_jax.data.pipeline import train_iterator
from talora_jax.errors import UserError
from talora_jax.models import image_encoder
from talora_jax.models.msam import MSam
from talora_jax.sharding import shard_batch
from talora_jax.training import loop, setup
from talora_jax.training.log import read_metrics
from talora_jax.training.step import init_state, make_train_step
from talora_jax.training.trunks import Trunks
from talora_jax.weights.adapter_file import AdapterFile


@pytest.fixture
def late(config, tmp_path):
    """Adapters in the last block alone, and no augmentation but `flip`."""
    config.adapter.blocks = (-1,)
    config.augment.scales = (1.0,)
    config.trunk_dir = str(tmp_path / "trunks")
    return config


def first_batch(run):
    config = run.config
    iterator = train_iterator(
        run.dataset.splits["train"],
        tasks=config.tasks,
        image_size=run.dataset.image_size,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=config.augment,
        num_threads=0,
    )
    return next(iterator)


def quiet(line):
    del line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weighting", "parts", "in_turn"),
    # Each has a way of its own to it.
    [("equal", 2, False), ("pcgrad", 1, False), ("equal", 1, True)],
)
def test_a_step_takes_it_from_the_batch(late, monkeypatch, weighting, parts, in_turn):
    late.weighting.kind, late.accumulate = weighting, parts
    if in_turn:
        monkeypatch.setattr(image_encoder, "FILLING", 0)
    run = setup.prepare(late)
    batch = first_batch(run)
    completed = Trunks(run, quiet).completed(batch)
    model = nnx.merge(run.graphdef, run.trainable, run.frozen)
    np.testing.assert_allclose(completed["trunk"], model.trunk(batch["image"]), atol=1e-5)

    def step(batch):
        state, scalars = make_train_step(run)(
            init_state(run), run.frozen, shard_batch(batch, run.mesh)
        )
        return jax.device_get((state.opt_state, scalars))

    expected = step(batch)
    monkeypatch.setattr(MSam, "trunk", lambda *_: pytest.fail("computed"))
    for ours, theirs in zip(*map(jax.tree.leaves, (step(completed), expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.slow
@pytest.mark.long
def test_another_run_on_the_same_images_computes_none(late, tmp_path, monkeypatch, capsys):
    """12 steps of 4 images see all 12 of them, and mirrored most: so does a run that adds tasks."""
    late.tasks, late.weighting.kind, late.steps = ("semantic", "depth"), "equal", 12
    loop.train(late, tmp_path / "first")
    assert "what the first 1 blocks give of an image" in capsys.readouterr().out
    monkeypatch.setattr(Trunks, "_computed", lambda *_: pytest.fail("computed"))
    loop.train(late, tmp_path / "second")
    first, second = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("first", "second"))
    times = ("step_time", "time")
    for row, other in zip(first, second, strict=True):
        assert all(row[k] == other[k] for k in row if k not in times), (row, other)
    late.tasks, late.adapter.extend = ("normals",), str(tmp_path / "first")
    loop.train(late, tmp_path / "third")
    assert AdapterFile.read(tmp_path / "third" / "adapter.safetensors").tasks[-1] == "normals"


def test_what_is_damaged_or_of_something_else_is_computed(late, monkeypatch):
    run = setup.prepare(late)
    batch, computed = first_batch(run), []
    compute = Trunks._computed
    monkeypatch.setattr(
        Trunks, "_computed", lambda self, images: computed.append(1) or compute(self, images)
    )

    def completed(run=run, batch=batch):
        computed.clear()
        return Trunks(run, quiet).completed(batch)["trunk"], len(computed)

    expected, times = completed()
    assert times == 1
    (folder,) = Path(late.trunk_dir).iterdir()
    files = sorted(folder.iterdir())
    assert len(files) == len(batch["image"])
    for damage in (lambda x: x[:-1], lambda x: b"", lambda x: x[:9] + bytes([x[9] ^ 1]) + x[10:]):
        files[1].write_bytes(damage(files[1].read_bytes()))
        found, times = completed()
        assert times == 1
        np.testing.assert_array_equal(found, expected)
        assert completed()[1] == 0

    changed = {**batch, "image": batch["image"].copy()}
    changed["image"][2, 0, 0, 0] += 1 / 255
    assert completed(batch=changed)[1] == 1 and len(list(folder.iterdir())) == len(files) + 1
    late.model.pixel_normalisation = False
    other, times = completed(setup.prepare(late))
    assert times == 1 and np.abs(other - expected).max() > 0.1


def test_what_cannot_be_kept(late, tmp_path, monkeypatch):
    def refused(told, check=config_checks.check, **fields):
        wrong = late.copy_and_resolve_references()
        wrong.update_from_flattened_dict(fields)
        with pytest.raises(UserError, match=told):
            check(wrong)

    refused(
        "come back the same, and config.augment.scales is .*set it to",
        **{"augment.scales": (1.0, 1.2)},
    )
    refused("config.augment.noise is 0.1: set it to 0.0", **{"augment.noise": 0.1})
    refused("gives* to tasks, and config.trains=prompts has none", trains="prompts")
    refused("in one process: leave it out", **{"hosts.coordinator": "here:1"})
    for blocks in (None, (0,), (0, 1), (-2,)):
        refused("there are none: set it, as -3", setup.sizes, **{"adapter.blocks": blocks})

    run = setup.prepare(late)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="GB are to come in .* and 0.0 GB are free there"):
        Trunks(run, quiet)
    (tmp_path / "file").touch()
    late.trunk_dir = str(tmp_path / "file")
    with pytest.raises(UserError, match="config.trunk_dir: .*file.*: Not a directory"):
        Trunks(setup.prepare(late), quiet)
