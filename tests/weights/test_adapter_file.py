"""Adapter files told about, and new tasks on a trained adapter."""

import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx
from PIL import Image

import talora_jax
from talora_jax import config as config_lib
from talora_jax.errors import UserError, run_command
from talora_jax.experiments import describe_adapter
from talora_jax.models.adapters import KINDS, AdapterConfig
from talora_jax.models.msam import new_tasks, task_axis, trainable
from talora_jax.models.sam import SIZES
from talora_jax.tasks import make_task
from talora_jax.training.loop import train
from talora_jax.training.setup import Run, learnt_file, make_model, prepare
from talora_jax.weights.adapter_file import AdapterFile, find
from talora_jax.weights.state import fingerprint, tensors_of


def test_what_is_inside_is_told_without_jax(start_python, shelf, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    code = (
        "import sys; from talora_jax.experiments.describe_adapter import main; main(); "
        "assert 'jax' not in sys.modules"
    )
    process = start_python("-c", code, str(shelf / "adapter.safetensors"))
    told, errors = process.communicate()
    assert process.returncode == 0, errors
    file = AdapterFile.read(shelf / "adapter.safetensors")
    for text in (
        "talora, ranks 4×4×2",
        "sam_nano.safetensors, made of sam_nano.pth",
        file.base_fingerprint,
        "red, green, blue",
        f"{sum(x.size for x in file.tensors.values()):,}",
        "adapters, U3",
    ):
        assert text in told, told


def test_a_file_that_is_no_adapter(shelf, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["adapter", str(shelf / "photo.jpg")])
    with pytest.raises(SystemExit, match="2"):
        run_command(describe_adapter.main)
    errors = capsys.readouterr().err
    assert "cut short or no adapter" in errors and len(errors.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_new_task_trains_alone_and_leaves_the_others_as_they_were(config, shelf, tmp_path):
    parent, base = shelf / "adapter.safetensors", shelf / "sam_nano.safetensors"
    before = AdapterFile.read(parent)
    config.tasks = ("edges",)
    config.weighting.task_weights = (1.0,)
    config.adapter.extend = str(parent)
    config.model.weights = str(base)
    config.optimizer.warmup = 0.0
    config.steps, config.checkpoint_every = 2, 0
    train(config, tmp_path / "run")
    after = AdapterFile.read(tmp_path / "run" / "adapter.safetensors")
    assert after.channels == {**before.channels, "edges": 1}
    assert after.class_names == before.class_names == {"semantic": ["red", "green", "blue"]}
    assert after.base_fingerprint == before.base_fingerprint and after.base == before.base
    assert tuple(after.config["tasks"]) == after.tasks

    # What trained: a row of U3 in every block, a no-mask row and a decoder.
    run = prepare(config)
    fresh = tensors_of(run.trainable)
    decoder = sum(
        x[0].size for name, x in before.tensors.items() if name.startswith("mask_decoders.")
    )
    sam = SIZES["nano"]()
    trained = decoder + sam.encoder.depth * config.adapter.ranks[2] + sam.decoder.dim
    assert sum(x.size for x in fresh.values()) == trained
    grown = [sum(x.size for x in file.tensors.values()) for file in (before, after)]
    assert grown[1] - grown[0] == trained
    moved = set()
    for name, x in after.tensors.items():
        axis = task_axis(AdapterConfig(), name.split("."))
        old, new = np.split(x, [before.tensors[name].shape[axis or 0]], axis or 0)
        np.testing.assert_array_equal(old, before.tensors[name])
        assert (new.size > 0) == (axis is not None)
        if new.size and (new != fresh[name]).any():
            moved.add(name)
    assert {"no_mask_embed", "mask_decoders.mask_tokens"} < moved
    assert sum(name.endswith("U3") for name in moved) == 2

    photo = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    old, new = (talora_jax.load(file, base) for file in (parent, tmp_path / "run"))
    found = old.predict(photo)
    same, together = new.predict(photo, before.tasks), new.predict(photo)
    assert same.keys() == found.keys() == together.keys() - {"edges"}
    for name, array in found.items():
        np.testing.assert_array_equal(same[name], array)

    def maps_of(model):
        """Raw maps [C, 4h, 4w] of all its tasks, the photo's."""
        (maps,) = model.each([photo], model.prepared, lambda *found: found[-1], model.tasks)
        return np.asarray(maps)

    # Another program, of four tasks: what `predict` promises. Not of unit normals: a short vector's
    # rounding is stretched as much as the vector.
    theirs, ours = map(maps_of, (old, new))
    largest = np.abs(theirs).max(axis=(1, 2), keepdims=True)
    assert (np.abs(ours[: len(theirs)] - theirs) < 1e-5 * largest).all()
    for name in found.keys() - {"normals"}:
        np.testing.assert_allclose(together[name], found[name], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_new_tasks_on_every_kind(config, kind):
    """What trains, and where it goes: beside the old tasks' entries, whatever their axis."""
    config.adapter.kind = kind
    adapter = AdapterConfig.of(config.adapter)

    def ones(names, filter):
        """Of a model for these tasks, what the filter names, all ones."""
        tasks = tuple(make_task(name, class_names=()) for name in names)
        model = nnx.eval_shape(lambda: make_model(config, tasks, SIZES["nano"]()))
        _, state, _ = nnx.split(model, filter, ...)
        return tasks, jax.tree.map(lambda x: np.ones(x.shape, np.float32), state)

    (depth,), learnt = ones(["depth"], trainable(adapter))
    tensors = tensors_of(learnt)
    parent = AdapterFile(tensors, dataclasses.asdict(adapter), {"depth": 1}, {}, "a base", "f" * 64)
    tasks, added = ones(["normals", "edges"], new_tasks(adapter))
    names = set(tensors_of(added))
    inside = {name.rpartition(".")[2] for name in names if name.startswith("image_encoder.")}
    assert inside == {"talora": {"U3"}, "lora_per_task": {"A", "B"}}.get(kind, set())
    assert {name.partition(".")[0] for name in names} - {"image_encoder"} == {
        "mask_decoders",
        "no_mask_embed",
    }

    run = Run(config, None, None, tasks, None, added, None, "f" * 64, parent)
    file = learnt_file(run, jax.tree.map(lambda x: 2 * x, added))
    assert file.channels == {"depth": 1, "normals": 3, "edges": 1}
    assert file.tensors.keys() == tensors.keys()
    for name, x in file.tensors.items():
        axis = task_axis(adapter, name.split("."))
        if axis is None:
            assert x.shape == tensors[name].shape and (x == 1).all()
        else:
            entries = {1, 2} if name != "no_mask_embed" else {1, 4}
            assert {(x == 1).sum(axis).min(), (x == 2).sum(axis).min()} == entries


@pytest.fixture
def late(config, learn, tmp_path):
    """An adapter of the last block of two, in its file; and the model that it was saved from."""
    config.adapter.blocks = (-1,)
    run, learnt = learn(config, 0)
    path = tmp_path / "late.safetensors"
    learnt_file(run, learnt).write(path)
    return path, nnx.merge(run.graphdef, learnt, run.frozen)


def test_a_file_of_some_blocks_holds_these_alone(late, config, shelf, capsys):
    path, model = late
    file, photo = AdapterFile.read(path), Image.open(shelf / "photo.jpg")
    in_blocks = {name: x.shape for name, x in file.tensors.items() if "image_encoder" in name}
    parts = ("adapter.G", "adapter.U1", "adapter.U2", "adapter.U3", *NORMS)
    assert {*in_blocks} == {f"image_encoder.adapted.global_blocks.{part}" for part in parts}
    assert in_blocks["image_encoder.adapted.global_blocks.adapter.U3"] == (1, 3, 2)
    assert file.adapter["blocks"] == [-1]
    describe_adapter.main([str(path)])
    assert "scale 0.5, blocks -1" in capsys.readouterr().out

    # Whatever of the base: an adapter of other blocks has the same.
    config.adapter.blocks = (0, 1)
    assert prepared_fingerprint(config) == file.base_fingerprint
    config.adapter.blocks = None
    assert prepared_fingerprint(config) != file.base_fingerprint

    loaded = talora_jax.load(path)
    seen = loaded.predict(photo)
    maps = nnx.jit(lambda model, x: model(x))(model, np.asarray(photo)[None] / np.float32(255))
    np.testing.assert_allclose(seen["depth"], maps["depth"][0, ..., 0], rtol=0, atol=1e-5)
    merged = loaded.merge("depth")
    squares = jax.random.uniform(jax.random.key(0), (1, 64, 64, 3))
    expected = nnx.jit(lambda model: model.embed(squares, ["depth"]))(model)
    alone = nnx.jit(lambda encoder: encoder(squares, (0,)))(merged)
    np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-5)
    shared, base = (nnx.state(x.image_encoder.window_blocks) for x in (loaded.promptable(), model))
    np.testing.assert_array_equal(shared["norm1"]["scale"][...], base["norm1"]["scale"][...])
    with pytest.raises(
        UserError, match=r"adapter.safetensors has adapters in all blocks, this model in blocks \(-"
    ):
        loaded.with_adapter(shelf / "adapter.safetensors")


NORMS = tuple(f"norm{i}.{part}" for i in (1, 2) for part in ("scale", "bias"))


def prepared_fingerprint(config) -> str:
    """Of the base, as a run of this config has it."""
    adapter = AdapterConfig.of(config.adapter)
    model = talora_jax.load_msam(config.model.weights, adapter, {"depth": 1})
    return fingerprint(tensors_of(nnx.state(model, nnx.Not(trainable(adapter)))))


def test_adapted_layer_norms_begin_as_the_bases(config):
    adapter = AdapterConfig(ranks=(4, 4, 2), blocks=(-1,))
    encoder = talora_jax.load_msam(config.model.weights, adapter, {"depth": 1}).image_encoder
    own, of_base = encoder.adapted["global_blocks"], encoder.global_blocks
    for norm in ("norm1", "norm2"):
        for ours, theirs in zip(
            jax.tree.leaves(nnx.state(getattr(own, norm))),
            jax.tree.leaves(nnx.state(getattr(of_base, norm))),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)
    assert np.ptp(own.norm1.scale[...]) > 0


def test_extending_an_adapter_of_some_blocks(late, config, learn):
    path, _ = late
    config.tasks = ("edges",)
    config.adapter.extend = str(path)
    config.adapter.blocks = (1, 2)  # the same, in other words
    run, learnt = learn(config, 1)
    inside = {name for name in tensors_of(learnt) if "image_encoder" in name}
    assert inside == {"image_encoder.adapted.global_blocks.adapter.U3"}
    before, after = AdapterFile.read(path), learnt_file(run, learnt)
    (name,) = inside
    assert after.tensors[name].shape == (1, 4, 2)
    np.testing.assert_array_equal(after.tensors[name][:, :3], before.tensors[name])
    for blocks, told in ((None, "is None, but"), ((0,), r"is \(0,\), but")):
        config.adapter.blocks = blocks
        with pytest.raises(
            UserError, match=rf"blocks {told}.*set --config.adapter.blocks='\(-1,\)"
        ):
            learn(config, 1)


@pytest.mark.slow
def test_what_can_be_extended(config, learn, shelf):
    config.tasks = ("edges",)
    config.model.weights = None
    config.adapter.extend = str(shelf / "run")  # which started from random numbers
    run, learnt = learn(config, 0)
    before = AdapterFile.read(shelf / "run" / "adapter.safetensors")
    file = learnt_file(run, learnt)
    assert file.tasks == (*before.tasks, "edges")
    assert file.base_fingerprint == before.base_fingerprint

    def refused(**fields):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(fields)
        with pytest.raises(UserError) as told:
            learn(changed, 0)
        return str(told.value)

    assert "has depth already" in refused(tasks=("edges", "depth"))
    assert "--config.adapter.ranks='(4,4,2)'" in refused(**{"adapter.ranks": (4, 4, 3)})
    assert "--config.seed=0" in refused(seed=1)
    base = str(shelf / "sam_nano.safetensors")
    assert "belongs to another base" in refused(**{"model.weights": base})
    assert "no adapter at x" in refused(**{"adapter.extend": "x"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run/adapter", "adapter"])
def test_files_that_have_all_in_the_runs_config_predict_the_same(shelf, tmp_path, name):
    path, old = shelf / f"{name}.safetensors", tmp_path / "old.safetensors"
    file = AdapterFile.read(path)
    with safetensors.safe_open(path, "np") as opened:
        metadata = opened.metadata()
    kept = ("config", "channels", "class_names", "base", "base_fingerprint", "tensors_sha256")
    metadata = {key: metadata[key] for key in kept} | {"format": "talora_jax adapter 2"}
    safetensors.numpy.save_file(dict(file.tensors), old, metadata)
    assert dataclasses.replace(AdapterFile.read(old), tensors={}, sam=file.sam) == (
        dataclasses.replace(file, tensors={})
    )
    photo = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    expected = talora_jax.load(path).predict(photo)
    for name, array in talora_jax.load(old).predict(photo).items():
        np.testing.assert_array_equal(array, expected[name])


def test_what_should_be_frozen_is_not_saved_over(shelf, tmp_path):
    base = shelf / "sam_nano.safetensors"
    model = talora_jax.load_msam(base, AdapterConfig(ranks=(4, 4, 2)), {"depth": 1})
    model.image_encoder.neck.conv1.kernel[...] += 1
    with pytest.raises(UserError, match="image_encoder.neck.conv1.kernel: expected as in .*nano"):
        talora_jax.save_adapter(model, tmp_path / "mine.safetensors", base)
    assert not list(tmp_path.iterdir())


def test_a_model_needs_a_base_or_sizes(shelf):
    with pytest.raises(UserError, match="needs a base, or sizes"):
        talora_jax.load_msam(None, AdapterConfig(), {"depth": 1})
    with pytest.raises(UserError, match="no base at nowhere"):
        talora_jax.load_msam("nowhere", AdapterConfig(), {"depth": 1})


@pytest.mark.slow
def test_from_random_numbers_and_back(micro, tmp_path):
    """Without a base the seed is what the file keeps of it."""
    adapter = AdapterConfig("lora_per_task", ranks=(4, 4, 2))
    model = talora_jax.load_msam(None, adapter, {"depth": 1}, sam=SIZES["nano"](), seed=3)
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    talora_jax.save_adapter(model, tmp_path / "mine.safetensors", None, seed=3)
    seen = talora_jax.load(tmp_path / "mine.safetensors").predict(photo)["depth"]
    maps = nnx.jit(lambda model, images: model(images))(model, photo[None] / np.float32(255))
    np.testing.assert_allclose(seen, maps["depth"][0, ..., 0], rtol=0, atol=1e-5)


def test_an_unknown_kind_of_adapter_is_refused():
    with pytest.raises(UserError, match="no adapter kind 'lora'; expected one of talora, lora_sh"):
        AdapterConfig("lora")


def test_a_folder_of_another_program_is_no_unfinished_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "sam", "vision_config": {}}')
    with pytest.raises(
        UserError, match="a Hugging Face model and no run; .* python -m weights_conv"
    ):
        find(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config_lib.default().to_dict()))
    with pytest.raises(UserError, match="is not finished: adapter.safetensors"):
        find(tmp_path)
    (tmp_path / "config.json").write_text('{"trains": "prompts"}')
    with pytest.raises(UserError, match="no adapter.safetensors but a base; .*load_sam reads"):
        find(tmp_path)


def test_bases_and_adapters_are_told_apart(shelf, tmp_path):
    base, adapter = shelf / "sam_nano.safetensors", shelf / "adapter.safetensors"
    with pytest.raises(UserError, match="is a base and no adapter; talora_jax.load_sam reads it"):
        talora_jax.load(base)
    with pytest.raises(UserError, match="is an adapter and no base; talora_jax.load reads it"):
        talora_jax.load_sam(adapter)
    for domain in ("instance", "part"):
        shutil.copy(base, tmp_path / f"base_{domain}.safetensors")
    with pytest.raises(UserError, match=r"several bases: name one of .*base_instance.*, .*_part"):
        talora_jax.load_sam(tmp_path)
