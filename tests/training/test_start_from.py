"""What a run takes of an adapter that it starts from, and what is refused."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from talora_jax import config as config_lib
from talora_jax import config_checks
from talora_jax.errors import UserError
from talora_jax.models.adapters import KINDS, AdapterConfig
from talora_jax.models.msam import trainable
from talora_jax.models.sam import SIZES
from talora_jax.tasks import make_task
from talora_jax.training.setup import make_model
from talora_jax.training.start_from import source_of, started, taken
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.state import name_of, tensors_of

OLD = ("semantic", "normals", "depth")
NEW = ("edges", "depth", "semantic")


def drawn(config, names, classes, seed):
    """The tasks, and random numbers for all that trains of a model for them."""
    tasks = tuple(make_task(name, class_names=classes) for name in names)
    model = nnx.eval_shape(lambda: make_model(config, tasks, SIZES["nano"]()))
    _, state, _ = nnx.split(model, trainable(AdapterConfig.of(config.adapter)), ...)
    rng = np.random.default_rng(seed)
    flat = nnx.to_flat_state(state)
    return tasks, {name_of(p): rng.normal(size=x.shape).astype(np.float32) for p, x in flat}


def file_of(config, classes=("red", "green", "blue")):
    tasks, tensors = drawn(config, OLD, classes, 0)
    channels = {task.name: task.channels for task in tasks}
    adapter = dataclasses.asdict(AdapterConfig.of(config.adapter))
    return AdapterFile(tensors, adapter, channels, {"semantic": classes}, "a base", "f" * 64)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_taken_by_task_and_class(config, kind):
    config.adapter.kind = kind
    file = file_of(config)
    tasks, own = drawn(config, NEW, ("blue", "sky"), 1)
    kept = {name: x.copy() for name, x in own.items()}
    tensors, lines = taken(own, file, tasks, AdapterConfig.of(config.adapter))
    assert tensors.keys() == own.keys()
    # Channels: edges, depth, blue, sky; there red, green, blue, three of normals, depth.
    rows, old_rows = tensors.pop("no_mask_embed"), file.tensors["no_mask_embed"]
    np.testing.assert_array_equal(rows[[1, 2]], old_rows[[6, 2]])
    np.testing.assert_array_equal(rows[[0, 3]], kept.pop("no_mask_embed")[[0, 3]])
    of_tasks = {"talora": ("U3", -2), "lora_per_task": ("A B", -3)}.get(kind, ("", 0))
    for name, x in tensors.items():
        axis = 0 if name.startswith("mask_decoders.") else None
        if "adapter" in name and name.rpartition(".")[2] in of_tasks[0].split():
            axis = of_tasks[1]
        if axis is None:
            np.testing.assert_array_equal(x, file.tensors[name])
        else:
            np.testing.assert_array_equal(
                np.take(x, (1, 2), axis), np.take(file.tensors[name], (2, 0), axis)
            )
            np.testing.assert_array_equal(np.take(x, 0, axis), np.take(kept[name], 0, axis))
    assert all((own[name] == x).all() for name, x in kept.items())
    assert lines == [
        "what tasks share: taken",
        "edges: not there, starts anew",
        "depth: taken",
        "semantic: 3 classes there, 2 here: its decoder is taken, and the no-mask rows of blue; "
        "the others start anew",
        "normals: not of this run, left out",
    ]


def test_other_classes_and_another_order_of_the_same(config):
    file = file_of(config)
    adapter = AdapterConfig.of(config.adapter)
    tasks, own = drawn(config, ("semantic",), ("table", "object"), 1)
    tensors, lines = taken(own, file, tasks, adapter)
    np.testing.assert_array_equal(tensors["no_mask_embed"], own["no_mask_embed"])
    told = "semantic: 3 classes there, 2 here: its decoder is taken, its no-mask rows start anew"
    assert told in lines

    tasks, own = drawn(config, ("semantic",), ("blue", "red", "green"), 1)
    tensors, lines = taken(own, file, tasks, adapter)
    np.testing.assert_array_equal(
        tensors["no_mask_embed"], file.tensors["no_mask_embed"][[2, 0, 1]]
    )
    assert "semantic: taken" in lines


def test_what_is_of_another_shape_is_listed(config):
    file = file_of(config)
    name = next(name for name in file.tensors if name.endswith("U1"))
    other = dataclasses.replace(file, tensors={**file.tensors, name: np.zeros((2, 2))})
    tasks, own = drawn(config, OLD, ("red", "green", "blue"), 1)
    tensors, lines = taken(own, other, tasks, AdapterConfig.of(config.adapter))
    np.testing.assert_array_equal(tensors[name], own[name])
    assert f"{name}: of another shape or not there, start anew" in lines


@pytest.mark.slow
def test_a_run_starts_with_all_of_an_adapter_for_the_same(config, learn, shelf):
    config.init = str(shelf / "adapter.safetensors")
    run, _ = learn(config, 0)
    file = AdapterFile.read(config.init)
    begun, lines = started(run)
    assert lines[0] == f"starting from {config.init}, an adapter for {', '.join(file.tasks)}"
    assert lines[1:] == ["  what tasks share: taken", *(f"  {task}: taken" for task in file.tasks)]
    found = tensors_of(begun.trainable)
    for name, x in file.tensors.items():
        np.testing.assert_array_equal(found[name], x)
    assert any((x != found[name]).any() for name, x in tensors_of(run.trainable).items())
    with pytest.raises(UserError, match=r"config.init: .* belongs to another base \(.*sam_nano"):
        started(dataclasses.replace(run, fingerprint="f" * 64))


def test_what_cannot_be_started_from(config, shelf, tmp_path):
    config.init = str(shelf / "adapter.safetensors")
    source_of(config)
    for fields, told in (
        ({"adapter.ranks": (4, 4, 3)}, r"config.init names an adapter trained with \(4, 4, 2\)"),
        (
            {"adapter.kind": "none"},
            "'none', but config.init names .* set --config.adapter.kind=",
        ),
        ({"init": "x"}, "no adapter at x"),
        ({"init": str(tmp_path)}, "holds no run"),
    ):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(fields)
        with pytest.raises(UserError, match=told):
            source_of(changed)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"adapter.extend": "x"}, "config.init starts from an adapter of which all trains.*one of"),
        ({"trains": "prompts"}, "config.init names an adapter, and a promptable SAM starts from a"),
        ({"init": "s3://bucket/x"}, "^config.init: s3://bucket/x: expected a local path"),
    ],
)
def test_what_no_config_may_say(fields, told):
    config = config_lib.default()
    config.update_from_flattened_dict({"init": "adapter.safetensors", **fields})
    with pytest.raises(UserError, match=told):
        config_checks.check(config)
