"""A trained model and a promptable SAM as ONNX files."""

import importlib
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from talora_jax import export
from talora_jax.errors import run_command
from talora_jax.inference.model import load
from talora_jax.inference.onnx import export as onnx_export
from talora_jax.inference.prompts import SamPredictor
from talora_jax.models.sam import Sam
from talora_jax.weights.build import load_sam


@pytest.fixture(scope="module")
def onnxruntime():
    pytest.importorskip("onnx")
    return pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def image(shelf):
    with Image.open(shelf / "photo.jpg") as photo:
        return np.asarray(photo)


@pytest.fixture(scope="module")
def sam_files(onnxruntime, shelf, tmp_path_factory):
    """Of the base, for the photo's size; weights in files beside the files."""
    out = tmp_path_factory.mktemp("exported") / "sam"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "LARGEST", 0)
        base = str(shelf / "sam_nano.safetensors")
        export.main([base, str(out), "--format", "onnx", "--size", "60", "80"])
    return out


def run_example(folder, monkeypatch, *arguments):
    """Runs `run_onnx.py` as a command would."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["run_onnx.py", *map(str, arguments)])
    exec(
        compile((folder / "run_onnx.py").read_text(), "run_onnx.py", "exec"),
        {"__name__": "__main__"},
    )


def test_a_sam_outlines_what_the_predictor_outlines(sam_files, shelf, image, monkeypatch, tmp_path):
    names = {path.name for path in sam_files.iterdir()}
    programs = {f"{part}.onnx{data}" for part in ("encoder", "decoder") for data in ("", ".data")}
    assert names == {*programs, "model.json", "README.md", "run_onnx.py"}

    predictor = SamPredictor(load_sam(shelf / "sam_nano.safetensors"))
    predictor.set_image(image)
    expected = predictor.predict(points=[[[40, 30]]], labels=[[1]])
    np.save(tmp_path / "image.npy", image)
    masks = tmp_path / "masks.npy"
    run_example(sam_files, monkeypatch, tmp_path / "image.npy", 40, 30, masks)
    # The predictor resizes to 8 bits, as SAM does, and the encoder in floating point.
    found = np.load(masks)
    assert found.shape == (3, 60, 80) and found.dtype == bool
    certain = np.abs(expected.logits()[0]) > 0.05 * np.abs(expected.logits()[0]).max()
    assert (found == expected.masks()[0])[certain].all()


def test_prompts_with_masks_beside_prompts_without(onnxruntime, sam_files, shelf, image):
    encoder, decoder = (
        onnxruntime.InferenceSession(sam_files / f"{name}.onnx") for name in ("encoder", "decoder")
    )
    (embeddings,) = encoder.run(None, {"image": image})
    random = np.random.default_rng(0)
    points = random.uniform(0, 60, (2, 3, 2)).astype(np.float32)
    labels = np.array([[1, 0, -1], [2, 3, -2]], np.int32)
    masks = random.normal(0, 5, (2, *decoder.get_inputs()[3].shape[1:])).astype(np.float32)
    given = {"embeddings": embeddings, "points": points, "labels": labels, "masks": masks}
    names = ["low_res", "iou"]
    found = decoder.run(names, given | {"has_mask": np.array([False, True])})
    sam = load_sam(shelf / "sam_nano.safetensors")
    decode = nnx.jit(Sam.decode, static_argnames="multimask")
    square = jnp.asarray(sam.geometry((60, 80)).points_to_square(points), jnp.float32)
    for row, mask in enumerate((None, masks[None, 1:])):
        part = slice(row, row + 1)
        expected = decode(
            sam,
            jnp.asarray(embeddings),
            square[None, part],
            jnp.asarray(labels[None, part]),
            None if mask is None else jnp.asarray(mask),
            multimask=None,
        )
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours[row], theirs[0, 0], rtol=1e-4, atol=1e-4)


def test_what_is_told_of_the_files(sam_files):
    told = json.loads((sam_files / "model.json").read_text())
    assert told["opset"] == 20 and told["image_size"] == [60, 80]
    decoder = told["files"]["decoder.onnx"]
    assert decoder["inputs"][1] == {"name": "points", "dtype": "float32", "shape": ["P", "n", 2]}
    assert [x["name"] for x in decoder["outputs"]] == ["iou", "logits", "low_res"]
    text = (sam_files / "README.md").read_text()
    assert "opset 20" in text and "python run_onnx.py image.npy X Y masks.npy" in text
    assert "| `encoder.onnx` | input | `image` | uint8 [60, 80, 3] |" in text


def test_a_trained_model_gives_what_it_predicts(
    onnxruntime, shelf, image, monkeypatch, tmp_path, capsys
):
    out = tmp_path / "out"
    arguments = [str(shelf / "adapter.safetensors"), str(out), "--format", "onnx"]
    base = str(shelf / "sam_nano.safetensors")
    export.main([*arguments, "--size", "60", "80", "--batch-size", "2", "--base", base])
    assert "largest difference" in capsys.readouterr().out
    np.save(tmp_path / "image.npy", image)
    run_example(out, monkeypatch, tmp_path / "image.npy", tmp_path / "seen.npz")
    expected = load(shelf / "adapter.safetensors", base=base).predict(image)
    with np.load(tmp_path / "seen.npz") as found:
        assert set(found) == set(expected)
        found = {name: found[name][None] for name in found}
    name, distance, allowed = onnx_export.farthest(
        found, {name: np.asarray(x)[None] for name, x in expected.items()}
    )
    assert distance <= allowed, name
    told = json.loads((out / "model.json").read_text())
    assert told["batch_size"] == 2 and told["tasks"]["depth"]["arrays"]["depth"]["shape"] == [
        60,
        80,
    ]
    assert told["files"]["model.onnx"]["inputs"][0]["shape"] == [2, 60, 80, 3]
    assert "| `depth` | float32 [60, 80] |" in (out / "README.md").read_text()


def test_how_far_apart_arrays_are():
    probabilities = np.array([[[[0.5, 0.49995], [0.9, 0.1]]]], np.float32)
    expected = {"semantic": np.zeros((1, 1, 2), np.int32), "semantic_probabilities": probabilities}
    doubtful, wrong = np.array([[[1, 0]]], np.int32), np.array([[[0, 1]]], np.int32)
    name, distance, allowed = onnx_export.farthest(expected | {"semantic": doubtful}, expected)
    assert name == "semantic" and distance == pytest.approx(5e-5, rel=1e-2) and distance < allowed
    name, distance, allowed = onnx_export.farthest(expected | {"semantic": wrong}, expected)
    assert name == "semantic" and distance == pytest.approx(0.8) and distance > allowed
    depth = {"depth": np.array([[[1.0, 20.0]]]), "normals": np.ones((1, 1, 1, 3))}
    found = depth | {"depth": depth["depth"] * 1.00009, "normals": depth["normals"] + 5e-4}
    assert onnx_export.farthest(found, depth) == (
        "depth",
        pytest.approx(9e-5, rel=1e-3),
        onnx_export.TOLERANCE_OF_ONE,
    )
    found["normals"] = found["normals"] * np.nan
    name, distance, allowed = onnx_export.farthest(found, depth)
    assert name == "normals" and not distance <= allowed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tasks", "depth"], "--tasks is for a trained run, and "),
        (["--batch-size", "2"], "--batch-size is for a trained run, and "),
        (["--platforms", "cpu"], "--platforms is for --format jaxexport; ONNX files run everywh"),
        (["--parts", "merged"], "--parts is for --format jaxexport; ONNX files run everywhere"),
    ],
)
def test_what_a_base_has_no_use_for(onnxruntime, shelf, tmp_path, capsys, arguments, told):
    refused(shelf, tmp_path, arguments, told, capsys)


def test_without_onnxruntime(shelf, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", importlib.import_module("json"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    told = "needs onnxruntime, which is not installed: pip install 'talora_jax[onnx]'"
    refused(shelf, tmp_path, [], told, capsys)


def test_nothing_is_written_that_is_not_as_jax_has_it(
    onnxruntime, shelf, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    told = "encoder.onnx: what onnxruntime"
    refused(shelf, tmp_path, ["--size", "24", "32"], told, capsys)


def refused(shelf, tmp_path, arguments, told, capsys):
    out = tmp_path / "out"
    command = [str(shelf / "sam_nano.safetensors"), str(out), "--format", "onnx", *arguments]
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: export.main(command))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert told in error and len(error.strip().splitlines()) == 1, error
    assert not list(tmp_path.glob("*out*"))
