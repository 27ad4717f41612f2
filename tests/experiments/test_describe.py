"""What a config's model is made of, and what a device of its mesh must hold."""

import math

import jax
import pytest
from rich.console import Console

from talora_jax import config as config_lib
from talora_jax.data import class_names
from talora_jax.errors import UserError
from talora_jax.experiments.describe import FROZEN, abstract_run, describe, memory, parts_of


def nyuv2(size):
    """Its channels: rooms have 13 classes, too."""
    config = config_lib.default()
    config.model.size = size
    return config


def totals(parts):
    counts = {}
    for part in parts:
        counts[part.group] = counts.get(part.group, 0) + part.parameters
    return counts


@pytest.mark.parametrize(
    ("size", "adapters", "trainable"),
    [
        ("vit_b", 1_228_944, 13_445_180),
        ("vit_l", 3_244_320, 15_521_996),
        ("vit_h", 5_374_336, 17_717_548),
    ],
)
def test_parameter_counts_are_the_published_ones(size, adapters, trainable):
    before = sum(x.nbytes for x in jax.live_arrays())
    run = abstract_run(nyuv2(size))
    parts = parts_of(run)
    counts = totals(parts)
    assert counts["adapters"] == adapters
    assert sum(n for group, n in counts.items() if group != FROZEN) == trainable
    # Every parameter is in one part.
    leaves = jax.tree.leaves((run.trainable, run.frozen))
    assert sum(counts.values()) == sum(math.prod(x.shape) for x in leaves)
    # Some keys of random numbers, and nothing of the model.
    assert sum(x.nbytes for x in jax.live_arrays()) - before < 1e5


def test_parameters_of_the_last_blocks():
    config = nyuv2("vit_b")
    config.adapter.blocks = (-3,)
    run = abstract_run(config)
    counts = totals(parts_of(run))
    assert counts["adapters"] == 1_228_944 * 3 // 12
    assert counts["norms"] == 3 * 4 * 768
    frozen = {part.name: part for part in parts_of(run) if part.group == FROZEN}
    assert frozen["image_encoder.window_blocks.norm1"].shapes["scale"] == (4, 2, 768)
    console = Console(width=140)
    with console.capture() as told:
        describe(config, console)
    assert "ranks 32×32×4 in blocks 9 to 11 of 0 to 11" in told.get()


@pytest.mark.slow
def test_memory_on_meshes_that_are_not_here(micro):
    config = nyuv2("micro")
    config.adapter.ranks = (4, 4, 2)
    parts = parts_of(abstract_run(config))
    counts = totals(parts)
    trained = 4 * sum(n for group, n in counts.items() if group != FROZEN)

    config.mesh.data = 8
    on_eight = memory(abstract_run(config))
    assert on_eight["frozen parameters"] == 4 * counts[FROZEN]
    assert on_eight["trained parameters"] == on_eight["gradients"] == trained
    # Adam keeps two numbers of each, but for what gets no gradient, and some counters.
    adam = 2 * (trained - 4 * counts["unused"])
    assert adam < on_eight["optimizer state"] < adam + 100

    config.mesh.fsdp = 4
    sharded = memory(abstract_run(config))
    small = 4 * sum(
        math.prod(shape)
        for part in parts
        for shape in part.shapes.values()
        if part.group == FROZEN and math.prod(shape) < 2**12
    )
    large = 4 * counts[FROZEN] - small
    assert sharded["frozen parameters"] == small + large / 4
    config.model.param_dtype = "bfloat16"
    assert memory(abstract_run(config))["frozen parameters"] == (small + large / 4) / 2


def test_the_tables_say_what_a_person_asks(micro):
    config = nyuv2("micro")
    config.adapter.ranks = (4, 4, 2)
    config.mesh.data = 8
    console = Console(width=120)
    with console.capture() as capture:
        describe(config, console)
    told = capture.get()
    for text in (
        "semantic (13), depth (1), normals (3)",
        "images of 192×256 are resized to 48×64 and padded to 64×64: 8×8 tokens",
        "image_encoder.window_blocks.attn.qkv",
        "kernel 2×1×32×96, bias 2×1×96",
        "all that trains",
        "Memory on each of 8 device(s), mesh data 8 × fsdp 1 × task 1",
        "Training on this mesh would be refused: config.batch_size / config.accumulate = 4",
    ):
        assert text in told, told


def test_class_names_without_opening(folder, tmp_path):
    data = config_lib.default().data
    assert len(class_names(data, ("semantic",))) == 13  # rooms, not rendered
    data.name, data.dir = "folder", str(tmp_path)
    assert class_names(data, ("depth",)) == ()
    data.class_names = ("red", "green", "blue")
    assert class_names(data, ("semantic",)) == ("red", "green", "blue")
    assert not list(tmp_path.iterdir())

    data.class_names = None
    with pytest.raises(UserError, match="config.data.path is empty"):
        class_names(data, ("semantic",))
    data.path = str(folder)
    assert class_names(data, ("semantic",)) == ("class 0", "class 1", "class 2")
    data.name = "moon"
    with pytest.raises(UserError, match="config.data.name: unknown 'moon'"):
        class_names(data, ("semantic",))


@pytest.mark.parametrize("axis", ["data", "fsdp", "task"])
def test_a_mesh_without_devices(axis):
    config = nyuv2("tiny")
    config.mesh[axis] = 0
    with pytest.raises(UserError, match=f"config.mesh.{axis} is 0, expected at least 1"):
        abstract_run(config)


def test_what_is_wrong_with_config_and_mesh_is_told_at_once():
    config = nyuv2("tiny")
    config.data.depth_scale = 2.0  # `rooms` does not read it
    config.augment.turn = -1.0
    config.steps = 0
    config.mesh.task = 2
    with pytest.raises(UserError) as error:
        abstract_run(config)
    told = str(error.value)
    for part in ("config.steps is 0", "config.data.depth_scale", "config.augment.turn", "3 tasks"):
        assert part in told, told


@pytest.mark.slow
def test_the_command(start_main):
    process = start_main(
        "--mode=describe", "--config=configs/rooms_tiny.py", "--config.adapter.ranks=(4,4,3)"
    )
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "all that trains" in out and "on each of 1 device(s)" in out
    process = start_main("--mode=describe")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and "describe needs --config" in errors


@pytest.mark.slow
def test_of_an_extended_adapter_only_the_new_tasks_train(config, shelf):
    config.tasks, config.weighting.kind = ("edges",), "equal"
    config.model.weights = str(shelf / "sam_nano.safetensors")
    config.adapter.extend = str(shelf / "adapter.safetensors")
    trained = {part.name for part in parts_of(abstract_run(config)) if part.group != FROZEN}
    encoder = {name.rpartition(".")[2] for name in trained if name.startswith("image_encoder.")}
    assert encoder == {"U3"} and "no_mask_embed" in trained

    config.adapter.extend = "nowhere.safetensors"
    with pytest.raises(UserError, match="nowhere.safetensors"):
        abstract_run(config)


def test_an_adapter_to_start_from_is_looked_at(micro):
    config = nyuv2("micro")
    config.init = "nowhere.safetensors"
    with pytest.raises(UserError, match="no adapter at nowhere.safetensors"):
        abstract_run(config)


def test_the_best_parameters_take_memory_too(micro):
    config = nyuv2("micro")
    before = memory(abstract_run(config))
    config.best, config.eval_every = "semantic/miou", 1
    after = memory(abstract_run(config))
    assert after == before | {"best parameters": before["trained parameters"]}


def test_a_sam_that_trains_from_prompts(micro):
    config = nyuv2("micro")
    config.trains = "prompts"
    config.adapter.kind = "lora_shared"
    config.adapter.ranks = (4, 4, 1)
    config.prompts.auxiliary = ("semantic",)
    console = Console(width=120)
    with console.capture() as capture:
        describe(config, console)
    told = capture.get()
    assert "prompts of instance; auxiliary tasks (channels): semantic (13)" in told, told
    assert "of decoders, tasks" not in told and "no output" not in told
    groups = {part.name: part.group for part in parts_of(abstract_run(config))}
    assert groups["mask_decoder.transformer"] == "decoders"
    assert groups["prompt_encoder.point_embeddings"] == FROZEN
    assert groups["image_encoder.global_blocks.attn.adapter.A"] == "adapters"
