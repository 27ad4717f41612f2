"""Every config in configs/ loads and passes its checks; the big recipe builds and steps."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from talora_jax import config as config_lib
from talora_jax import config_checks, sharding
from talora_jax.command_line import load_config
from talora_jax.data.dataset import Dataset
from talora_jax.errors import UserError
from talora_jax.models.adapters import ORTHOGONAL_PARTS
from talora_jax.models.sam import SIZES
from talora_jax.tasks import make_task
from talora_jax.training.loop import claim_workdir, train
from talora_jax.training.setup import abstract, prepare, sizes
from talora_jax.training.step import abstract_state, make_train_step

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
CLASSES = tuple(f"class {i}" for i in range(13))


SIZED = ("nyuv2:vit_b", "nyuv2:vit_l", "nyuv2:vit_h")


@pytest.mark.parametrize("name", [*(path.stem for path in CONFIGS), *SIZED])
def test_configs_pass_their_checks_and_are_locked(name):
    config = load_config(name)
    config_checks.check(config)
    config_checks.check_read(config)
    with pytest.raises(AttributeError):
        config.no_such_field = 1


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("tasks", ("semantic", "flow"), "config.tasks: unknown 'flow', expected one of semantic"),
        ("tasks", ("depth", "depth"), "names a task twice"),
        ("tasks", ("depth", ["edges"]), r"config.tasks: unknown \['edges'\], expected one of"),
        ("trains", "x" * 3000, "config.trains: unknown 'x{79}…, expected one of tasks, prompts"),
        ("model.size", "vit_x", "config.model.size: unknown 'vit_x'"),
        ("model.attention", "flash", "unknown 'flash', expected one of auto, xla, splash, cudnn, "),
        ("adapter.ranks", (97, 16, 3), "p is 97, expected at least 1 and at most 96 for tiny"),
        ("adapter.blocks", (-5,), r"adapter.blocks is \(-5,\), and the encoder has 4 blocks: exp"),
        ("adapter.blocks", (-2, 0), r"-1 for the last 1\), or that .* last one's, as \(2, 4\)"),
        ("adapter.blocks", (1.5,), r"is \(1.5,\), expected a whole number or two, as -6 for the"),
        ("adapter.init", "orthogonal", "config.adapter.init: unknown 'orthogonal'.* orthonormal?"),
        ("adapter.qkv", (False, False, False), "switches q, k and v all off"),
        (
            "orthogonal_parts",
            ("U1", "U3"),
            "parts: unknown 'U3', expected one of U1, U2, G",
        ),
        ("orthogonal_parts", ("G", "G"), "config.orthogonal_parts names a part twice: G, G"),
        ("orthogonal_parts", (), "for no regulariser set config.orthogonal_weight=0"),
        ("adapter.dropout", 1.0, "config.adapter.dropout is 1.0"),
        ("optimizer.warmup", 1.5, "a fraction of the steps"),
        ("weighting.kind", "gradnorm", "config.weighting.kind: unknown 'gradnorm', .* pcgrad"),
        ("weighting.cagrad_c", -0.1, "config.weighting.cagrad_c is -0.1, expected 0 or more"),
        ("weighting.db_mtl_beta", 1.0, "config.weighting.db_mtl_beta is 1.0, expected 0 to below"),
        ("weighting.nash_update_every", 0, "nash_update_every is 0, expected at least 1"),
        ("weighting.fairgrad_alpha", 0.0, "fairgrad_alpha is 0.0, expected above 0"),
        ("weighting.stch_mu", 0.0, "stch_mu is 0.0, expected above 0"),
        ("weighting.famo_learning_rate", 0.0, "famo_learning_rate is 0.0, expected above 0"),
        ("accumulate", 3, "config.batch_size=4 is not divisible by config.accumulate=3"),
        ("steps", 0, "config.steps is 0, expected at least 1"),
        ("read_workers", -1, "config.read_workers is -1, expected 0 or more"),
        ("data.max_depth", -1.0, "config.data.max_depth is -1.0, expected above 0"),
        ("adapter.ranks", (8, 8), r"ranks is \(8, 8\), expected three whole numbers p, q, v"),
        ("adapter.ranks", (8, 8.5, 2), "expected three whole numbers p, q, v, as"),
        ("adapter.scale", -0.5, "config.adapter.scale is -0.5, expected 0 or more"),
        ("optimizer.learning_rate", math.nan, "learning_rate is nan, expected a finite number"),
        ("optimizer.learning_rate", -1e-3, "learning_rate is -0.001, expected 0 or more"),
        ("optimizer.weight_decay", math.inf, "weight_decay is inf, expected a finite number"),
        ("optimizer.weight_decay", 1e39, r"weight_decay is 1e\+39, expected a finite number"),
        ("optimizer.lr_scale.decoders", -1.0, "lr_scale.decoders is -1.0, expected 0 or more"),
        ("weighting.task_weights", (1.0, math.nan, 1.0), "task_weights is .* a finite number"),
        ("weighting.task_weights", (1.0, -1.0, 1.0), "task_weights is .*, expected 0 or more"),
        ("class_weights.kind", "inverse", "class_weights.kind: unknown 'inverse', expected one of"),
        ("class_weights.given", (1.0, 2.0), "class_weights.kind=none: expected numbers of kind=g"),
        ("class_weights.given", (1.0, -2.0), "class_weights.given is .*, expected 0 or more"),
        ("class_weights.given", ((1.0, 2.0), (1.0,)), "expected a number for each class, or such"),
        ("class_weights.kind", "given", r"given is \(\) and config.class_weights.kind=given"),
        ("data.part_weights", (1.0, 0.0), "part_weights is .*, expected above 0"),
        ("weighting.task_weights", (1.0,), "a weight for each of the 3 tasks, .*kind=equal"),
        ("orthogonal_weight", math.nan, "config.orthogonal_weight is nan, expected a finite"),
        ("steps", True, "config.steps is True, expected a number"),
        ("steps", None, "config.steps is None, expected a value"),
        ("steps", 2**31, "config.steps is 2147483648, expected at most 2147483647"),
        ("seed", -1, "config.seed is -1, expected 0 to 4294967295"),
        ("mesh.task", 0, "config.mesh.task is 0, expected at least 1"),
        ("hosts.num_processes", 2, "num_processes is 2, but config.hosts.coordinator is missing"),
        ("hosts.heartbeat_timeout", 4, "config.hosts.heartbeat_timeout is 4, expected at least 5"),
    ],
)
def test_values_that_cannot_work(field, value, told):
    config = config_lib.default()
    *parents, last = field.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value
    with pytest.raises(UserError, match=told):
        config_checks.check(config)


def test_nothing_is_balanced_that_tasks_share_where_it_stays_as_it_is():
    config = config_lib.default()
    config.adapter.extend = "run"
    config.weighting.kind = "nash_mtl"
    with pytest.raises(UserError, match="nash_mtl balances what tasks share, and with .*as equal"):
        config_checks.check(config)
    config.weighting.kind = "equal"
    config_checks.check(config)


def test_all_that_is_wrong_is_told_at_once():
    config = config_lib.default()
    config.batch_size, config.accumulate = 4, 3
    config.steps = 0
    config.adapter.ranks = (97, 16)
    config.model.size = "vit_x"
    config.tasks = ("semantic", "flow")
    with pytest.raises(UserError) as error:
        config_checks.check(config)
    # Of what is refused, nothing else is asked: neither ranks by sizes nor weights by tasks.
    begins = [
        "config.adapter.ranks is (97, 16), expected three whole numbers",
        "config.steps is 0, expected at least 1",
        "config.model.size: unknown 'vit_x'",
        "config.tasks: unknown 'flow'",
        "config.batch_size=4 is not divisible by config.accumulate=3",
    ]
    lines = str(error.value).splitlines()
    assert all(line.startswith(begin) for line, begin in zip(lines, begins, strict=True)), lines

    for name in ("log_every", "eval_batch_size", "num_pictures", "read_threads", "seed"):
        config[name] = -1
    config.optimizer.learning_rate = -1.0
    config.weighting.cagrad_c = -1.0
    with pytest.raises(UserError, match=r"\nand \d more$") as error:
        config_checks.check(config)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is damaged: Expecting value"),
        (b'{"steps": 4', "is damaged: Expecting"),
        (b"\xff\xfe{}", "is damaged: 'utf-8' codec"),
        (b"[" * 100_000, "is damaged: maximum recursion"),
        (b"[1]", "does not understand .it is a list, expected fields by their names"),
        (b'{"model": null}', "its model is a NoneType, expected fields by their names"),
        (b'{"model": {"sise": 1}}', "no field sise; did you mean size?"),
        (b'{"learning_rate": 1}', "no field learning_rate; did you mean optimizer.learning_rate?"),
        (b'{"steps": 1, "seed": 0, "steps": 2}', "is damaged: 'steps' stands there twice"),
        (
            b'{"optimizer": {"clip_norm": true}}',
            "its optimizer.clip_norm is True, expected a number",
        ),
        (b'{"steps": true}', "its steps is True, expected a number"),
        (b'{"adapter": {"scale": 1' + b"0" * 400 + b"}}", "int too large to convert to float"),
        (b"{}", "it lacks tasks, data, model, adapter, optimizer, batch_size, steps"),
    ],
)
def test_a_config_json_that_no_run_left_is_told_in_one_line(tmp_path, content, told):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=told) as error:
        config_lib.read(tmp_path / "config.json")
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 600


def test_a_wrong_value_is_told_with_the_nearest_right_one():
    config = config_lib.default()
    config.adapter.kind = "tallora"
    with pytest.raises(UserError, match=r"expected one of .*; did you mean talora\?$"):
        config_checks.check(config)


def test_a_workdir_with_values_that_mean_unset_is_the_same_runs(tmp_path):
    """Files may hold what `OPTIONAL` lists for None, and lack fields that have a default."""
    config = config_lib.default()
    fields = config.to_dict()
    for name, empty in config_lib.OPTIONAL.items():
        section, _, field = name.rpartition(".")
        holder = fields[section] if section else fields
        if holder[field] is None:
            holder[field] = empty
    del fields["host_metrics"], fields["data"]["max_depth"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    claim_workdir(config, tmp_path, write=False)
    config.data.depth_scale = 10.0
    with pytest.raises(UserError, match="config.data.depth_scale was None and is now 10.0. Choose"):
        claim_workdir(config, tmp_path, write=False)


def test_what_the_defaults_name_is_what_there_is():
    assert config_lib.default().orthogonal_parts == ORTHOGONAL_PARTS


def test_flat_fields_name_a_config_as_on_the_command_line():
    flat = config_lib.flat_fields({"a": 1, "b": {"c": [2]}})
    assert flat == {"config.a": 1, "config.b.c": [2]}


def test_an_augmentation_that_cannot_be_is_refused_before_data_is_read(config):
    config.augment.noise = -0.1
    config.data.path = "nowhere"
    with pytest.raises(UserError, match="config.augment.noise is -0.1"):
        prepare(config)


def test_a_kernel_of_another_machine_is_refused_before_data_is_read(config):
    config.model.attention = "splash"
    config.data.path = "nowhere"
    with pytest.raises(UserError, match="attention=splash needs a TPU, but the devices are cpu"):
        prepare(config)


@pytest.mark.parametrize(
    ("field", "told"),
    [("model.weights", "no base at none.safetensors"), ("adapter.extend", "none.safetensors")],
)
def test_a_missing_file_is_told_before_data_is_read(config, micro, field, told):
    config.data.path = "nowhere"
    config.update_from_flattened_dict({field: "none.safetensors"})
    with pytest.raises(UserError, match=told):
        prepare(config)


def test_blocks_that_the_model_does_not_have(config):
    config.adapter.blocks = (1, 3)
    config_checks.check(config)  # which does not read the base
    with pytest.raises(UserError, match=r"adapter.blocks is \(1, 3\), and the encoder has 2 bl"):
        sizes(config)
    config.adapter.kind = "full"
    with pytest.raises(UserError, match=r"adapter.blocks is \(1, 3\), but adapter.kind=full has"):
        config_checks.check(config)


def test_ranks_that_the_model_does_not_have(config):
    config.adapter.ranks = (16, 97, 3)
    with pytest.raises(
        UserError, match="config.adapter.ranks: q is 97, expected at least 1 and at most 96"
    ):
        sizes(config)


def nyuv2(config):
    height, width = config.data.image_size
    tasks = tuple(make_task(name, class_names=CLASSES) for name in config.tasks)
    dataset = Dataset(
        "nyuv2_mtan", config.tasks, CLASSES, (height, width), {"train": [0] * 795, "val": []}
    )
    shapes = {"semantic": ((), jnp.int32), "depth": ((1,), jnp.float32)}
    shapes |= {name: ((3,), jnp.float32) for name in ("image", "normals")}
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, height, width, *channels), dtype)
        for name, (channels, dtype) in shapes.items()
    }
    return sharding.make_mesh(**config.mesh), dataset, tasks, batch


@pytest.mark.slow
def test_the_nyuv2_recipe_traces_at_full_size_without_allocating():
    config = load_config("nyuv2:vit_l")
    mesh, _, tasks, batch = nyuv2(config)
    run = abstract(config, mesh, tasks, SIZES["vit_l"]())
    state = abstract_state(run)
    with jax.set_mesh(mesh):
        after, scalars = jax.eval_shape(make_train_step(run), state, run.frozen, batch)
    assert scalars["objective"].shape == ()
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(run.trainable)) == 15_521_996


@pytest.mark.parametrize(("size", "count"), [("vit_b", 13_445_180), ("vit_h", 17_717_548)])
def test_the_other_sizes_of_the_nyuv2_recipe_train_as_many_parameters_as_said(size, count):
    config, recipe = load_config(f"nyuv2:{size}"), load_config("nyuv2:vit_l")
    assert config.model.size == size
    recipe.model.size = size
    assert config == recipe
    mesh, _, tasks, _ = nyuv2(config)
    learnt = abstract(config, mesh, tasks, SIZES[size]()).trainable
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(learnt)) == count


def small(config, base, published, tmp_path):
    """The config with a small model, on a few samples in the published layout."""
    write = published.WRITE[config.data.name]
    config.data.image_size = (24, 32)
    config.data.path = str(write(tmp_path / "download", size=(24, 32)))
    config.data.dir = str(tmp_path / "records")
    config.model.size = "nano"
    config.model.weights = str(base)
    config.model.remat = "none"
    config.batch_size = config.eval_batch_size = 2
    config.steps = 3
    config.log_every = 1
    config.num_pictures = 0
    config.optimizer.warmup = 0.0
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("nyuv2", {"semantic/miou", "depth/pooled/abs_err", "normals/per_image/mean"}),
        ("cityscapes_vit_l", {"semantic/miou", "disparity/pooled/abs_err"}),
    ],
)
def test_published_layouts_train_and_evaluate(name, metrics, nano_base, published, tmp_path):
    config = small(load_config(name), nano_base, published, tmp_path)
    found = train(config, tmp_path / "run")
    assert metrics <= found.keys()
    assert {key.partition("/")[0] for key in found} == set(config.tasks)
    assert all(np.isfinite(value) for value in found.values())
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert sum('"split": "train"' in row for row in rows) == 3


@pytest.mark.parametrize(
    ("name", "field", "value", "told"),
    [
        ("rooms", "max_depth", 5.0, "only folder, nyuv2_mtan: leave it out, or set it to None"),
        ("rooms", "depth_scale", 1000.0, "only folder, nyuv2_mtan: leave"),
        (
            "rooms",
            "path",
            "here",
            "only cityscapes_mtan, folder, mix, nyuv2_mtan, pascal_context",
        ),
        ("folder", "train_frames", 50, "only rooms: leave it out, or set it to 1000"),
        ("rooms", "val_fraction", 0.0, "only folder: leave it out, or set it to 0.2"),
        ("folder", "seed", 3, "only rooms: leave it out, or set it to 0"),
        ("cityscapes_mtan", "depth_scale", 2.0, "only folder, nyuv2_mtan"),
        ("nyuv2_mtan", "class_names", ("a", "b"), "only folder: leave it out"),
        ("pascal_context", "intrinsics", (1.0, 1.0, 0.0, 0.0), "only folder: leave it out"),
    ],
)
def test_fields_that_a_data_set_does_not_read_are_refused(name, field, value, told):
    config = config_lib.default()
    config.data.name = name
    config.data[field] = value
    with pytest.raises(UserError) as error:
        config_checks.check_read(config)
    message = str(error.value)
    assert message.startswith(f"config.data.{field} is {value!r}, which {name} does not read, ")
    assert told in message


def test_what_a_run_began_with_is_forgotten_and_no_more():
    began, config = config_lib.default(), config_lib.default()
    began.data.max_depth = config.data.max_depth = 5.0
    config.data.class_names = ("a", "b")
    assert config_checks.forget_unread(config, began).data.to_dict() == {
        **config_lib.default().data.to_dict(),
        "class_names": ("a", "b"),
    }
    assert config.data.max_depth == 5.0
