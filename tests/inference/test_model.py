"""A trained model in use: the numbers of the model itself, few compilations, clear refusals."""

import dataclasses
import doctest
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import talora_jax
from talora_jax.errors import UserError
from talora_jax.inference import model as trained
from talora_jax.inference import tiles
from talora_jax.models.msam import MSam
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.assemble import assemble, read_base_of

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, size, np.uint8) for size in ((48, 32, 3), (64, 64, 3), (20, 90))]


@pytest.fixture(scope="module")
def model(shelf):
    return talora_jax.load(shelf / "adapter.safetensors", base=shelf / "sam_nano.safetensors")


@pytest.fixture(scope="module")
def msam(shelf, model):
    """The model as training has it, all tasks in one pass."""
    path = shelf / "adapter.safetensors"
    base = read_base_of(model.file, path, shelf / "sam_nano.safetensors")
    return assemble(model.file, path, base)


@pytest.mark.slow
@pytest.mark.parametrize("name", talora_jax.__all__[1:])
def test_every_name_has_an_example_that_runs(name, hub, shelf, tmp_path, monkeypatch):
    folder = tmp_path / "shelf"
    shutil.copytree(shelf, folder)
    monkeypatch.chdir(folder)
    names = {"talora_jax": talora_jax, "Image": Image, "np": np, "jnp": jnp, "nnx": nnx}
    documented = getattr(talora_jax, name)
    tests = [t for t in doctest.DocTestFinder().find(documented, globs=names) if t.examples]
    methods = {talora_jax.TrainedModel: 6, talora_jax.SamPredictor: 3}
    assert len(tests) == methods.get(documented, 1)
    for test in tests:
        runner = doctest.DocTestRunner()
        told = []
        assert runner.run(test, out=told.append).failed == 0, "".join(told)


def test_importing_the_package_imports_nothing(start_python):
    process = start_python(
        "-c", "import sys, talora_jax; print({'jax', 'numpy', 'PIL'} & {*sys.modules})"
    )
    assert process.communicate()[0].strip() == "set()"
    assert set(talora_jax.__all__) <= set(dir(talora_jax))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        talora_jax.lod  # noqa: B018


def test_predictions_are_the_models_maps_activated(model, msam):
    for image, prediction in zip(IMAGES, model.predict(IMAGES), strict=True):
        rgb = np.broadcast_to(image[..., None], (*image.shape, 3)) if image.ndim == 2 else image
        maps = nnx.jit(MSam.__call__)(msam, jnp.asarray(rgb / 255, jnp.float32)[None])
        expected = {
            task.name: np.asarray(task.activate(maps[task.name])[0]) for task in model.tasks
        }
        close = {"rtol": 0, "atol": 1e-5}
        probabilities = np.exp(expected["semantic"])
        np.testing.assert_allclose(prediction["semantic_probabilities"], probabilities, **close)
        np.testing.assert_array_equal(
            prediction["semantic"], prediction["semantic_probabilities"].argmax(-1)
        )
        np.testing.assert_allclose(prediction["depth"], expected["depth"][..., 0], **close)
        # To a unit vector, a short one's rounding is stretched as much as the vector.
        length = np.linalg.norm(maps["normals"][0], axis=-1, keepdims=True)
        np.testing.assert_allclose(
            prediction["normals"] * length, expected["normals"] * length, **close
        )
        assert expected["depth"].std() > 0.01


def test_a_list_of_tasks_asks_for_these_alone(model):
    whole = model.predict(IMAGES[0])
    some = model.predict(IMAGES[0], ["normals", "semantic"], probabilities=False)
    assert list(some) == ["normals", "semantic"]
    assert (some["semantic"] == whole["semantic"]).mean() > 0.999
    np.testing.assert_allclose(some["normals"], whole["normals"], rtol=0, atol=1e-4)


def test_images_beside_change_nothing(model):
    alone = [model.predict(image) for image in IMAGES]
    for batch_size in (2, 3, None):
        for one, found in zip(alone, model.predict(IMAGES, batch_size=batch_size), strict=True):
            assert found.keys() == one.keys()
            for name in ("semantic_probabilities", "depth"):
                np.testing.assert_allclose(found[name], one[name], rtol=0, atol=1e-5)


# Runs in a process of its own: the number of devices is fixed when JAX starts.
PROGRAM = """
import json, sys
import numpy as np, talora_jax
from pathlib import Path
from talora_jax.inference import model as trained

shelf, embed, rooms = Path(sys.argv[1]), trained._embed, []

def recorded(model, values, padded, tasks):
    devices = 1 if isinstance(padded, np.ndarray) else len(padded.sharding.device_set)
    rooms.append([len(padded), devices])
    return embed(model, values, padded, tasks)

trained._embed = recorded
model = talora_jax.load(shelf / "adapter.safetensors", base=shelf / "sam_nano.safetensors")
images = [np.random.default_rng(i).integers(0, 256, (48, 32, 3), np.uint8) for i in range(10)]
alone = [model.predict(image, ["depth"])["depth"] for image in images]
for count, batch_size in json.loads(sys.argv[2]):
    rooms.clear()
    found = model.predict(images[:count], ["depth"], batch_size=batch_size)
    error = max(abs(x["depth"] - y).max() for x, y in zip(found, alone[:count], strict=True))
    print(json.dumps([rooms, float(error)]))
"""


def test_all_devices_take_as_many_images(start_python, shelf):
    expected = {
        (1, None): [[1, 1]],
        (3, None): [[4, 4]],
        (7, None): [[8, 4]],
        (10, 8): [[8, 4], [8, 4]],
        (7, 6): [[4, 4], [4, 4]],  # 6 of them could not be shared out
        (6, 3): [[4, 4], [4, 4]],
        (2, 1): [[1, 1], [1, 1]],
    }
    process = start_python("-c", PROGRAM, str(shelf), json.dumps([*expected]), devices=4)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    rooms, differences = zip(*map(json.loads, out.splitlines()), strict=True)
    assert list(rooms) == list(expected.values())
    assert max(differences) < 1e-5


def test_an_iterator_is_taken_as_it_is_asked_for(model):
    taken = []

    def frames():
        for i in range(30):
            taken.append(i)
            yield np.full((48, 32, 3), i, np.uint8)

    found = model.predict(frames(), ["depth"], batch_size=2)
    first = next(found)
    assert list(first) == ["depth"] and len(taken) < 20
    expected = model.predict(np.zeros((48, 32, 3), np.uint8), ["depth"])
    np.testing.assert_allclose(first["depth"], expected["depth"], rtol=0, atol=1e-5)
    assert len(list(found)) == 29
    # Before the first is asked for.
    with pytest.raises(UserError, match="no task flow"):
        model.predict(frames(), ["flow"])
    with pytest.raises(UserError, match="image 1 of those given"):
        list(model.predict(iter([IMAGES[0], None]), ["depth"]))


def test_channels_in_turn_are_channels_at_once(model, monkeypatch):
    expected = model.predict(IMAGES[0])
    monkeypatch.setattr(trained, "_channels_at_once", lambda images, grid, channels: 2)
    found = model.predict(IMAGES[0])
    for name in ("semantic_probabilities", "depth"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (0, "batch_size is 0, expected 1"),
        (1.5, "is 1.5, expected a whole"),
        (True, "is True, expected a whole"),
    ],
)
def test_a_batch_size_that_is_none(model, asked, told):
    with pytest.raises(UserError, match=told):
        model.predict(IMAGES, batch_size=asked)


def test_whole_numbers_may_be_numpys(model):
    # Of 8 bits and without a sign, which arithmetic with it would overflow.
    assert len(model.predict(IMAGES, ["depth"], batch_size=np.uint8(2))) == 3
    model.warm_up(np.array([60, 80]), batch_size=np.int64(1))


@pytest.mark.parametrize("size", [(480,), (60, 0), (60.5, 80), (True, 80), "ab", 5, None])
def test_a_size_to_warm_up_for_that_is_none(model, size):
    with pytest.raises(UserError) as told:
        model.warm_up(size)
    assert str(told.value) == f"size is {size!r}, expected a height and a width in pixels"


def test_programs_are_compiled_once_for_all_sizes(model):
    model.predict(IMAGES[0])
    programs = [trained._embed, trained._maps, trained._image]
    programs += [x for x in vars(tiles).values() if hasattr(x, "_cache_size")]
    assert len(programs) == 5
    before = [program._cache_size() for program in programs]
    sizes = (5, 7), (256, 40), (99, 256), (257, 300), (600, 90)
    model.predict([np.zeros(size, np.uint8) for size in sizes], batch_size=1)
    assert [program._cache_size() for program in programs] == before


@pytest.mark.parametrize("normalised", [True, False])
def test_tiles_are_the_whole(model, normalised, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 16)
    geometry = model._geometry(50, 35)
    image = RNG.integers(0, 256, (50, 35, 3), np.uint8)
    whole = geometry.to_padded(image / np.float32(255), normalise=normalised)
    found = tiles.to_padded(image, geometry, normalised=normalised)
    np.testing.assert_allclose(found[0], whole, rtol=0, atol=1e-5)
    maps = RNG.normal(size=(1, 32, 32, 7)).astype(np.float32)
    planes = jnp.asarray(np.moveaxis(maps[0], -1, 0))
    together = tiles.outputs(model.tasks, planes, geometry, probabilities=True)
    assert [task.name for task in model.tasks] == ["semantic", "depth", "normals"]
    for task, channels in zip(model.tasks, (slice(3), slice(3, 4), slice(4, 7)), strict=True):
        expected = task.outputs(geometry.from_padded(maps[..., channels]))
        found = {name: together[name] for name in expected}
        for name, x in expected.items():
            assert found[name].dtype == x.dtype
            np.testing.assert_allclose(found[name], x[0], rtol=0, atol=1e-5)


def test_switching_adapters_neither_loads_nor_compiles(model, shelf):
    expected = talora_jax.load(
        shelf / "other.safetensors", base=shelf / "sam_nano.safetensors"
    ).predict(IMAGES[0])
    first = model.predict(IMAGES[0])
    programs = (trained._embed, trained._maps)
    compiled = [program._cache_size() for program in programs]
    other = model.with_adapter(shelf / "other.safetensors")
    assert other._base is model._base
    switched = other.predict(IMAGES[0])
    assert [program._cache_size() for program in programs] == compiled
    for name, array in expected.items():
        np.testing.assert_array_equal(switched[name], array)
    assert (switched["depth"] != first["depth"]).any()
    np.testing.assert_array_equal(model.predict(IMAGES[0])["depth"], first["depth"])


def test_another_base_is_refused_and_can_be_forced(model, shelf):
    base, run = shelf / "sam_nano.safetensors", shelf / "run"
    for load in (
        lambda **how: talora_jax.load(run, base=base, **how),
        lambda **how: model.with_adapter(run, **how),
    ):
        with pytest.raises(UserError, match="another base than .*random numbers of seed 0") as told:
            load()
        assert len(str(told.value).splitlines()) == 1
        assert load(force=True).predict(IMAGES[0])["depth"].shape == (48, 32)


@pytest.mark.slow
def test_a_merged_encoder_is_the_tasks_own(model, msam):
    squares = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    embeddings = nnx.jit(MSam.embed, static_argnames="tasks")(msam, squares, tasks=msam.tasks)
    for task, expected in zip(msam.tasks, embeddings, strict=True):
        encoder = model.merge(task)
        assert not any("adapter" in path for path, _ in nnx.to_flat_state(nnx.state(encoder)))
        found = nnx.jit(lambda encoder, x: encoder(x, (0,)))(encoder, squares)[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert float(jnp.abs(embeddings[0] - embeddings[1]).max()) > 0.1


def test_a_saved_adapter_is_the_same_file(model, shelf, tmp_path):
    model.save(tmp_path / "copy.safetensors")
    copy, original = map(
        AdapterFile.read, (tmp_path / "copy.safetensors", shelf / "adapter.safetensors")
    )
    for name, x in original.tensors.items():
        np.testing.assert_array_equal(copy.tensors[name], x)
    assert dataclasses.replace(copy, tensors={}) == dataclasses.replace(original, tensors={})


def test_what_is_refused(model, shelf, tmp_path):
    def refuses(*arguments, **named):
        with pytest.raises(UserError) as told:
            talora_jax.load(*arguments, **named)
        assert len(str(told.value).splitlines()) == 1
        return str(told.value)

    adapter = shelf / "adapter.safetensors"
    assert "no adapter at nowhere" in refuses("nowhere")
    assert "holds no run" in refuses(tmp_path)
    shutil.copy(shelf / "run" / "config.json", tmp_path)
    assert "is not finished" in refuses(tmp_path)
    content = adapter.read_bytes()
    broken = tmp_path / "broken.safetensors"
    for damaged, told in (
        (b"", "cut short"),
        (b"hello, world", "cut short"),
        (content[:-100], "cut short"),
        (content[:-1] + bytes([content[-1] ^ 1]), "is damaged"),
    ):
        broken.write_bytes(damaged)
        assert told in refuses(broken)
    assert "is a base and no adapter" in refuses(shelf / "sam_nano.safetensors")
    for missing in ("sam_b.safetensors", tmp_path):
        told = refuses(adapter, base=missing)
        assert "there is no base" in told and "python -m weights_convert CHECKPOINT" in told
    assert "is an adapter and no base" in refuses(adapter, base=adapter)
    file = AdapterFile.read(adapter)
    short = {name: x for name, x in file.tensors.items() if "U3" not in name}
    dataclasses.replace(file, tensors=short).write(broken)
    assert "does not fit its own config in image_encoder.global_blocks.attn.adapter.U3" in refuses(
        broken, base=shelf / "sam_nano.safetensors"
    )

    for image, told in (
        (np.zeros((3, 50_000), np.uint8), "50000×3 pixels"),
        (np.zeros((4, 4, 4, 4)), "shape"),
        (str(shelf / "none.jpg"), "none.jpg: No such file"),
        ([IMAGES[0], None], "image 1 of those given: an image: None; expected a path"),
        (IMAGES[0].tolist(), r"48 images of shape \[32, 3\], as the rows of one are"),
        ({"photo": IMAGES[0]}, "an image: a dict"),
    ):
        with pytest.raises(UserError, match=told):
            model.predict(image)
    with pytest.raises(UserError, match="no task flow; this model has semantic, depth, normals"):
        model.predict(IMAGES[0], ["flow"])
    with pytest.raises(UserError, match="probabilities: a str; expected True or False"):
        model.predict(IMAGES[0], probabilities="no")
    with pytest.raises(UserError, match="tasks: an int; expected names, of semantic, depth"):
        model.predict(IMAGES[0], 5)
    with pytest.raises(UserError, match="no task flow"):
        model.merge("flow")
