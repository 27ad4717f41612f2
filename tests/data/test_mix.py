"""Several data sets in one run."""

import itertools
import json

import ml_collections
import numpy as np
import pytest
from PIL import Image

from talora_jax import config as config_lib
from talora_jax.data import class_names, open_dataset
from talora_jax.data.mix import _KINDS
from talora_jax.data.mixed import Mixed
from talora_jax.data.pipeline import eval_batches, train_iterator
from talora_jax.data.survey import survey
from talora_jax.errors import UserError
from talora_jax.tasks import TARGETS

NAMES = ["floor", "wall", "chair"]
CITY = {"path": "city", "tasks": ["semantic"], "class_names": NAMES}
FLAT = {"path": "flat", "tasks": ["depth"]}


def write(root, target, count, size):
    rng = np.random.default_rng(count)
    for folder in ("image", target):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        values = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(values).save(root / f"image/{i}.png")
        if target == "semantic":
            Image.fromarray(values[..., 0] % 3).save(root / f"semantic/{i}.png")
        else:
            np.save(root / f"depth/{i}.npy", 1 + i + values[..., 0] / np.float32(999))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Ten images with classes, 24×32, and five with depth, 20×28."""
    home = tmp_path_factory.mktemp("home")
    write(home / "city", "semantic", 10, (24, 32))
    write(home / "flat", "depth", 5, (20, 28))
    return home


@pytest.fixture
def data(home):
    """Makes the `config.data` of a mix of parts."""

    def make(parts, **fields):
        (home / "mix.json").write_text(json.dumps({"parts": parts}))
        data = config_lib.default().data
        data.update(name="mix", path=str(home / "mix.json"), dir=str(home / "records"))
        data.update({"image_size": (24, 32), **fields})
        return data

    return make


def refused(data, tasks=("semantic", "depth")):
    with pytest.raises(UserError) as error:
        open_dataset(data, tasks)
    return str(error.value)


def test_what_a_part_lacks_is_unlabelled_and_left_out(data):
    mixed = data({"city": CITY | {"weight": 3}, "flat": FLAT})
    dataset = open_dataset(mixed, ("semantic", "depth"))
    assert dataset.class_names == class_names(mixed, ("semantic",)) == tuple(NAMES)
    assert dataset.tasks == ("semantic", "depth") and dataset.image_size == (24, 32)
    for split, counts in (("train", (8, 4)), ("val", (2, 1))):
        source = dataset.splits[split]
        having = [[*dataset.with_target(split, name)] for name in ("semantic", "depth")]
        assert tuple(map(len, having)) == counts and len(source) == sum(counts)
        for i in range(len(source)):
            sample = source[i]
            assert list(sample) in (["image", "semantic", "depth"], ["image", "depth", "semantic"])
            for name, indices in zip(("semantic", "depth"), having, strict=True):
                target = sample[name]
                assert target.dtype == TARGETS[name].target_dtype
                assert target.shape[:2] == sample["image"].shape[:2]
                assert (target != TARGETS[name].unlabelled).any() == (i in indices)
    # Neither part fills the beginning, which is what pictures are of.
    assert [part for part, _ in dataset.splits["train"].order[:6]] == [0, 1, 0, 0, 1, 0]
    lines = survey(dataset, ("semantic", "depth")).lines()
    assert lines[:2] == [
        "part city: semantic; 8 training and 2 validation images, 75% of what is drawn",
        "part flat: depth; 4 training and 1 validation images, 25% of what is drawn",
    ]
    assert lines[-1] == "depth: 4 of 12 training and 1 of 3 validation images have it"


def test_a_part_without_the_tasks_is_left_out(data):
    dataset = open_dataset(data({"city": CITY, "flat": FLAT}, image_size=None), ("depth",))
    assert len(dataset.splits["train"]) == 4 and dataset.image_size == (20, 28)
    assert not any(dataset.having.values())
    told = refused(data({"city": CITY, "flat": FLAT}), ("normals",))
    assert told == "Dataset 'mix' has no targets for normals; it has semantic, depth."


def test_contents_tell_parts_apart_and_remember_them(data):
    contents = open_dataset(data({"a": CITY, "b": FLAT | {"weight": 2}}), ("depth",)).contents
    assert contents["settings"]["parts"] == ["b"]
    assert contents["settings"]["b/weight"] == 2 and contents["settings"]["b/tasks"] == ["depth"]
    assert len(contents["train"]) == 8 and all(file.startswith("b/") for file in contents["val"])
    other = data({"a": CITY, "b": FLAT}, part_weights=(1.0, 4.0))
    both = open_dataset(other, ("semantic", "depth"))
    assert both.contents["settings"]["b/weight"] == 4
    # A config that comes from a run says the same.
    again = open_dataset(other.copy_and_resolve_references(), ("semantic", "depth"))
    assert again.contents == both.contents
    assert both.splits["train"].weights == (1.0, 4.0)
    assert {file.partition("/")[0] for file in both.contents["train"]} == {"a", "b"}


def test_several_may_have_classes_if_they_are_the_same(data, home):
    twice = {"city": CITY, "town": CITY}
    assert open_dataset(data(twice), ("semantic",)).class_names == tuple(NAMES)
    other = {"city": CITY, "town": CITY | {"class_names": NAMES[::-1]}}
    assert refused(data(other), ("semantic",)).endswith(
        "semantic has 3 classes in city (floor, wall, chair) and 3 in town (chair, wall, floor); "
        "expected the same in all parts, by class_names or ids of their description, or semantic "
        "in the tasks of one."
    )
    # Where nobody has named them, one looks.
    counted = data({"city": {"path": "city", "tasks": ["semantic"]}, "flat": FLAT})
    assert class_names(counted, ("semantic",)) == ("class 0", "class 1", "class 2")


def test_mistakes_name_the_part(data, home):
    mine = data({"city": CITY, "flat": FLAT}, image_size=None)
    assert "images are 24×32 in city, 20×28 in flat (H×W): --config.data.image_size" in refused(
        mine
    )
    flat = f"{mine.path}, part 'flat': "
    for fields, told in (
        (
            {"path": "elsewhere"},
            f"config.data.path is '{home}/elsewhere', which is not a directory",
        ),
        ({"weight": 0}, "weight is 0, expected a number above 0."),
        ({"tasks": ["deep"]}, "tasks is ['deep'], expected a list of targets that it gives, of se"),
        ({"tasks": [["depth"]]}, "tasks is [['depth']], expected a list"),
        ({"tasks": ["depth", "normals"]}, f"{home}/flat has no folder 'normals', and to derive"),
        ({"max_depth": True}, "max_depth is True, expected a number."),
        ({"max_depth": -1}, "config.data.max_depth is -1; expected a positive number"),
        ({"image_size": 24}, "image_size is 24, expected a list."),
        ({"seed": 3}, "unknown field 'seed'; those of folder are name, image_size, path"),
        ({"name": "roms"}, "config.data.name: unknown 'roms', expected one of"),
        ({"name": "mix"}, "name is 'mix', expected another data set than a mix."),
        ({"max_depth": "far"}, "max_depth is 'far', expected a number."),
    ):
        with_normals = ("semantic", "depth", "normals")
        tasks = with_normals if "normals" in str(fields) else with_normals[:2]
        found = refused(data({"city": CITY, "flat": FLAT | fields}), tasks)
        assert found.startswith(flat + told), found
    for parts in ({}, [], None):
        assert 'mix.json: expected {"parts": {"NAME": ' in refused(data(parts))
    told = refused(data({"city": CITY}, part_weights=(1.0, 2.0)))
    assert "config.data.part_weights is (1.0, 2.0), expected one for each of the parts city" in told
    assert "none.json cannot be read: there is no such file" in refused(
        data({}, path=str(home / "none.json"))
    )


def test_fields_are_of_the_types_of_config():
    defaults = config_lib.default().data
    for field in set(defaults) - {"dir", "part_weights"}:
        kind = defaults.get_type(field)
        expected = {tuple: list, float: int | float}.get(kind, kind)
        assert _KINDS.get(field, (str,))[0] == expected, field


AUGMENT = ml_collections.ConfigDict(
    {
        "scales": (1.0, 1.5),
        "turn": 0.0,
        "scale_range": (1.0, 1.0),
        "flip": True,
        "colour_jitter": 0.2,
        "noise": 0.0,
        "shapes": 0,
    }
)


def numbered(first, count):
    """Samples whose depth says which they are."""
    shape = (8, 12)
    return [
        {"image": np.full((*shape, 3), i, np.uint8), "depth": np.full((*shape, 1), i, np.float32)}
        for i in range(first, first + count)
    ]


def batches(weights=(2.0, 1.0), *, lengths=(5, 3), augmented=False, **arguments):
    parts = [numbered(1, lengths[0]), numbered(101, lengths[1])]
    source = Mixed(parts, weights, ("depth", "edges"))
    augment = AUGMENT.copy_and_resolve_references()
    if not augmented:
        augment.update(scales=(1.0,), flip=False, colour_jitter=0.0)
    defaults = {"batch_size": 3, "seed": 7, "num_threads": 0, "augment": augment}
    sizes = {"tasks": ("depth", "edges"), "image_size": (8, 12)}
    return train_iterator(source, **(sizes | defaults | arguments))


def drawn(iterator, count):
    return [int(x) for b in itertools.islice(iterator, count) for x in b["depth"][:, 0, 0, 0]]


def test_parts_take_turns_by_their_weights_each_in_epochs_of_its_own():
    order = drawn(batches(), 10)
    for start in range(0, 30, 3):
        assert sum(x > 100 for x in order[start : start + 3]) == 1  # in every batch
    first, second = [x for x in order if x < 100], [x for x in order if x > 100]
    for stream, numbers in ((first, range(1, 6)), (second, range(101, 104))):
        epochs = [stream[i : i + len(numbers)] for i in range(0, len(stream), len(numbers))]
        assert all(sorted(epoch) == [*numbers] for epoch in epochs if len(epoch) == len(numbers))
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert drawn(batches(seed=8), 10) != order
    for weights in ((1.0, 1.0), (0.3, 0.7), (9.0, 2.0)):
        order = drawn(batches(weights, batch_size=20), 2)
        for count in range(1, 41):
            share = weights[0] / sum(weights) * count
            assert abs(sum(x < 100 for x in order[:count]) - share) <= 1


def test_parts_of_equal_length_are_in_orders_of_their_own():
    order = drawn(batches((1.0, 1.0), lengths=(9, 9)), 6)
    first, second = [x for x in order if x < 100], [x - 100 for x in order if x > 100]
    assert sorted(first) == sorted(second) and first != second


def test_position_alone_decides():
    whole = [*itertools.islice(batches(augmented=True), 6)]

    def same(found, rows=slice(None)):
        return all(
            a[name].tobytes() == b[name][rows].tobytes()
            for a, b in zip(found, whole, strict=True)
            for name in b
        )

    assert same([*itertools.islice(batches(augmented=True, num_threads=2), 6)])
    assert same([*itertools.islice(batches(augmented=True, rows=(0, 2)), 6)], [0, 2])
    resumed = batches(augmented=True)
    resumed.set_state({"next_index": 4})
    whole = whole[4:]
    assert same([*itertools.islice(resumed, 2)])


def test_validation_is_over_all_parts_once():
    source = Mixed([numbered(1, 5), numbered(101, 3)], (5.0, 1.0), ("depth", "edges"))
    found = [*eval_batches(source, tasks=("depth", "edges"), image_size=(8, 12), batch_size=3)]
    numbers = [int(x) for b in found for x in b["depth"][b["valid"], 0, 0, 0]]
    assert sorted(numbers) == [1, 2, 3, 4, 5, 101, 102, 103]
    assert all((b["edges"] == -1).all() for b in found)
