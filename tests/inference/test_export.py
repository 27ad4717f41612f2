"""A trained model in forms that need no talora_jax."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from talora_jax import config as config_lib
from talora_jax import export
from talora_jax.errors import run_command
from talora_jax.inference import run_exported
from talora_jax.models import attention
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import MSam, trainable
from talora_jax.tasks import make_task
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.assemble import save_adapter
from talora_jax.weights.base_file import read_base
from talora_jax.weights.build import build, load_msam, merged
from weights_convert.checkpoint import check_finite, open_checkpoint

CLASSES = ("red", "green", "blue")
SIZE = (24, 32)


@pytest.fixture(scope="module")
def config(nano_base):
    """Of a run that starts from a base, as random as everything else here."""
    config = config_lib.default()
    config.model.size = "nano"
    config.model.weights = str(nano_base)
    config.adapter.ranks = (4, 4, 2)
    config.adapter.qkv = (True, False, True)
    config.data.image_size = SIZE
    return config


@pytest.fixture(scope="module")
def tasks(config):
    return tuple(make_task(name, class_names=CLASSES) for name in config.tasks)


@pytest.fixture(scope="module")
def finished(config, tasks, tmp_path_factory):
    """A model whose every trained parameter has moved, and the workdir of the run that did it."""
    model = model_of(config, tasks)
    graphdef, learnt, frozen = nnx.split(model, trainable(model.adapter), ...)
    rng = np.random.default_rng(0)
    learnt = jax.tree.map(lambda x: np.asarray(x) + np.float32(rng.normal(0, 0.1, x.shape)), learnt)
    workdir = tmp_path_factory.mktemp("finished")
    model = nnx.merge(graphdef, learnt, frozen)
    save(model, workdir, config)
    return model, workdir


def model_of(config, tasks):
    """The model at the start of a config's training."""
    channels = {task.name: task.channels for task in tasks}
    how = {
        "pixel_normalisation": config.model.pixel_normalisation,
        "native_aspect": config.model.native_aspect,
    }
    return load_msam(config.model.weights, AdapterConfig.of(config.adapter), channels, **how)


def save(model, workdir, config):
    save_adapter(
        model,
        workdir / "adapter.safetensors",
        config.model.weights,
        class_names={"semantic": CLASSES},
        config=json.loads(json.dumps(config.to_dict())),
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (2, *SIZE, 3), np.uint8)


def maps_of(model, images):
    return jax.device_get(nnx.jit(lambda m, x: m(x))(model, jnp.asarray(images, jnp.float32) / 255))


def assert_outputs(found, maps, tasks):
    """Compares with what `maps` stand for."""
    for task in tasks:
        for name, x in jax.device_get(task.outputs(maps[task.name])).items():
            assert found[name].dtype == x.dtype, name
            # A direction is as exact as the vector is long that it was made of.
            length = np.linalg.norm(maps[task.name], axis=-1, keepdims=True)
            scale = np.minimum(1, length) if task.name == "normals" else np.ones_like(x)
            np.testing.assert_allclose(
                scale * found[name], scale * x, rtol=1e-5, atol=1e-5, err_msg=name
            )


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.png", None, "none.png cannot be read .*No such file"),
        ("text.png", b"text", "cannot identify image file"),
        ("deep.png", np.full(SIZE, 300, np.uint16), "mode I;16, more than 8 bits"),
        ("broken.npy", b"\x93NUMPY", "broken.npy cannot be read"),
        ("half.npy", np.zeros((*SIZE, 3)), "is float64 .* exported for uint8"),
    ],
)
def test_pictures_that_the_exported_program_refuses(name, content, told, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content) if path.suffix == ".npy" else Image.fromarray(content).save(path)
    with pytest.raises(SystemExit, match=told) as error:
        run_exported.read_image(str(path), SIZE)
    assert len(str(error.value).splitlines()) == 1


def python_without_talora_jax(folder, code_or_file, *arguments):
    """Runs Python in the folder, isolated from this project; gives what it printed."""
    blocker = (
        "import sys, importlib.abc\n"
        "class Blocker(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] in ('talora_jax', 'flax', 'weights_convert'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "try:\n"
        "    import talora_jax\n"
        "except ImportError:\n"
        "    pass\n"
        "else:\n"
        "    sys.exit('talora_jax is here')\n"
        "sys.argv = sys.argv[1:]\n"
        "import runpy\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", blocker, code_or_file, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
@pytest.mark.process
def test_the_program_runs_without_talora_jax(finished, tasks, images, tmp_path, capsys):
    model, workdir = finished
    out = tmp_path / "out"
    export.main([str(workdir), str(out), "--platforms", "cpu", "--parts", "program"])
    told = capsys.readouterr().out
    assert "model_cpu" in told and "weights.safetensors" in told
    assert "loads in" in told and "largest difference from the model" in told
    maps = maps_of(model, images)

    # By the file that lies there, for one picture.
    Image.fromarray(images[0]).save(out / "photo.png")
    ran = python_without_talora_jax(out, "run.py", "photo.png", "photo.npz")
    assert ran.returncode == 0, ran.stderr
    with np.load(out / "photo.npz") as found:
        assert_outputs(found, {name: x[0] for name, x in maps.items()}, tasks)

    # By the README's lines, for all images at once.
    np.save(out / "images.npy", images)
    snippet = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    load, save = "images = np.load('images.npy')\n", "np.savez('found.npz', **arrays)\n"
    (out / "snippet.py").write_text("import numpy as np\n" + load + snippet + save)
    ran = python_without_talora_jax(out, "snippet.py")
    assert ran.returncode == 0, ran.stderr
    with np.load(out / "found.npz") as found:
        assert_outputs(found, maps, tasks)

    for wrong, what in ((images / 255, "float64"), (images[0], "uint8"), (None, "NoneType")):
        with pytest.raises(ValueError, match=rf"{what}.* exported for uint8 \[batch, 24, 32, 3\]"):
            run_exported.load(out, "cpu")(wrong)

    described = json.loads((out / "model.json").read_text())
    assert described["image_size"] == list(SIZE)
    semantic = described["tasks"]["semantic"]
    assert semantic["class_names"] == list(CLASSES)
    assert semantic["arrays"]["semantic_probabilities"]["shape"] == [*SIZE, 3]

    # A picture of another size is refused, in one line.
    Image.fromarray(images[0, :, :16]).save(out / "narrow.png")
    ran = python_without_talora_jax(out, "run.py", "narrow.png", "narrow.npz")
    assert ran.returncode and "export again with --size" in ran.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_merged_task_is_a_base_that_gives_its_maps(finished, images, tmp_path):
    model, workdir = finished
    out = tmp_path / "out"
    export.main([str(workdir), str(out), "--parts", "merged", "--tasks", "normals"])
    path = out / "merged" / "normals.safetensors"
    assert [p for p in out.rglob("*") if p.is_file()] == [path]
    tensors, description = read_base(path)
    assert description.tasks == ("normals",)
    assert not any("adapter" in name for name in tensors)
    alone = build(
        lambda: MSam(description.config, AdapterConfig("none"), {"normals": 3}, rngs=nnx.Rngs(0)),
        tensors,
    )
    expected = maps_of(model, images)["normals"]
    assert expected.std() > 0.01
    np.testing.assert_allclose(maps_of(alone, images)["normals"], expected, rtol=1e-5, atol=1e-5)

    # It has all that the official code's names are made from.
    checkpoint = open_checkpoint(path)
    check_finite(checkpoint)
    assert "mask_decoder.0.iou_token.weight" in {e.official for e in checkpoint.entries}


@pytest.mark.slow
def test_a_model_whose_last_blocks_are_adapted(config, tasks, images, tmp_path, capsys):
    """Its program and its merged files give its maps, or exporting it had said so."""
    config = config.copy_and_resolve_references()
    config.adapter.blocks = (-1,)
    model = model_of(config, tasks)
    graphdef, learnt, frozen = nnx.split(model, trainable(model.adapter), ...)
    rng = np.random.default_rng(0)
    learnt = jax.tree.map(lambda x: np.asarray(x) + np.float32(rng.normal(0, 0.1, x.shape)), learnt)
    model = nnx.merge(graphdef, learnt, frozen)
    save(model, tmp_path, config)
    out = tmp_path / "out"
    export.main([str(tmp_path), str(out), "--platforms", "cpu", "--tasks", "depth"])
    assert "largest difference" in capsys.readouterr().out
    tensors, description = read_base(out / "merged" / "depth.safetensors")
    alone = build(
        lambda: MSam(description.config, AdapterConfig("none"), {"depth": 1}, rngs=nnx.Rngs(0)),
        tensors,
    )
    expected = maps_of(model, images)["depth"]
    assert expected.std() > 0.01
    np.testing.assert_allclose(maps_of(alone, images)["depth"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora_shared", "lora_per_task", "none"])
def test_merging_other_kinds(config, tasks, kind):
    config = config.copy_and_resolve_references()
    config.adapter.kind = kind
    model = model_of(config, tasks)
    for adapter in model.image_encoder.adapters().values():
        adapter.B[...] = jax.random.normal(jax.random.key(0), adapter.B.shape)
    for number, task in enumerate(tasks):
        tensors = merged(model, task.name)
        for name in ("window_blocks", "global_blocks"):
            attn = getattr(model.image_encoder, name).attn
            expected = attn.qkv.kernel[...]
            if attn.adapter is not None:
                expected += attn.adapter.merge()[..., 0 if kind == "lora_shared" else number, :, :]
            np.testing.assert_allclose(
                tensors[f"image_encoder.{name}.attn.qkv.kernel"], expected, rtol=1e-5, atol=1e-5
            )


@pytest.mark.slow
def test_every_platform_lowers_tiled_attention_at_a_fixed_batch(finished, tmp_path, monkeypatch):
    """With few logits allowed at once, attention takes a path of its own on every platform."""
    monkeypatch.setitem(inspect.unwrap(attention.attend).__kwdefaults__, "max_logits", 4096)
    out = tmp_path / "out"
    export.main(
        [str(finished[1]), str(out), "--parts", "program", "--batch-size", "2"]
        + ["--size", "20", "30", "--no-check", "--tasks", "normals", "depth", "--platforms"]
        + list(export.PLATFORMS)
    )
    programs = {
        path.stem: jax.export.deserialize(path.read_bytes()) for path in out.glob("*.jaxexport")
    }
    assert set(programs) == {f"model_{platform}" for platform in export.PLATFORMS}
    for name, program in programs.items():
        assert program.platforms == (name.removeprefix("model_"),)
        assert program.in_avals[-1].shape == (2, 20, 30, 3)
    assert list(json.loads((out / "model.json").read_text())["tasks"]) == ["normals", "depth"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--platforms", "gpu"],
            "--platforms: unknown 'gpu', expected one of cpu, cuda, rocm, tpu",
        ),
        (["--parts", "onnx"], "--parts: unknown 'onnx', expected one of program, merged"),
        (["--tasks", "edges"], "unknown 'edges', this model has semantic, depth, normals"),
        (["--batch-size", "0"], "--batch-size is 0, expected at least 1"),
        (["--size", "0", "32"], "--size is 0 32, expected two positive numbers"),
        (["--base", "nowhere.safetensors"], "there is no base nowhere.safetensors"),
    ],
)
def test_mistakes_are_told_in_one_line(finished, tmp_path, capsys, arguments, told):
    refused([str(finished[1]), str(tmp_path / "out"), *arguments], told, capsys)
    assert not (tmp_path / "out").exists()


def refused(arguments, told, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: export.main(arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert told in error and len(error.strip().splitlines()) == 1, error


def test_an_out_folder_with_something_in_it_stays_as_it_is(finished, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").touch()
    refused([str(finished[1]), str(out)], "out exists and is not empty", capsys)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


def test_workdirs_without_a_finished_run(finished, config, tmp_path, capsys):
    out = str(tmp_path / "out")
    refused([str(tmp_path / "none"), out], "no adapter at", capsys)
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text("{}")
    refused([str(half), out], "is not finished", capsys)
    adapter = half / "adapter.safetensors"
    adapter.write_bytes((finished[1] / "adapter.safetensors").read_bytes()[:1000])
    refused([str(half), out], "is cut short or no adapter", capsys)

    model, workdir = finished
    file = AdapterFile.read(workdir / "adapter.safetensors")
    dataclasses.replace(file, base_fingerprint="of another").write(adapter)
    refused([str(half), out], "belongs to another base than", capsys)
    refused([str(half), out], "--force of --mode predict and of export does", capsys)
    export.main([str(half), str(tmp_path / "forced"), "--force", "--parts", "merged"])
    assert (tmp_path / "forced" / "merged").is_dir()
    config = config.copy_and_resolve_references()
    config.data.image_size = None
    save(model, half, config)
    refused([str(half), out], "--size is missing", capsys)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.slow
def test_a_platform_that_jax_cannot_lower(finished, tmp_path, capsys, monkeypatch):
    def no_lowering(*args, **kwargs):
        raise NotImplementedError("no rule for 'dot' on tpu\nand a long story")

    monkeypatch.setattr(jax.export, "export", no_lowering)
    refused(
        [str(finished[1]), str(tmp_path / "out"), "--platforms", "tpu"],
        f"jax {jax.__version__} cannot lower this model for tpu: no rule for 'dot' on tpu",
        capsys,
    )
    assert not list(tmp_path.glob("*out*"))
