"""PyTorch files through the command: round trips bit for bit, the MTSAM release, bad files."""

import dataclasses
import json
import pickle
import zipfile

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks.torchvision_stub import torchvision_or_stub
from talora_jax import config as config_lib
from talora_jax.data.dataset import Dataset
from talora_jax.errors import run_command
from talora_jax.inference.prompts import SamPredictor
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import MSam
from talora_jax.training.prompted import setup as prompted
from talora_jax.training.setup import start
from talora_jax.weights.base_file import read_base
from talora_jax.weights.build import build, load_sam
from weights_convert.__main__ import main
from weights_convert.names import HUGGINGFACE_ALIAS

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", autouse=True)
def import_torch():
    """Not at the top: the tests must be collected where there is no PyTorch."""
    global torch
    import torch


@pytest.fixture(scope="module")
def small_sam(official_sam):
    """A `segment_anything` model of four narrow blocks, and its state dict."""
    return official_sam(64, 4, 4, (1, 3))


@pytest.fixture
def checkpoint(tmp_path, small_sam):
    path = tmp_path / "sam.pth"
    torch.save(small_sam.state_dict(), path)
    return path


def run(*args):
    main([str(a) for a in args])


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def test_pth_to_base_and_back(checkpoint, small_sam, tmp_path):
    run(checkpoint, tmp_path / "base.safetensors")
    run(tmp_path / "base.safetensors", tmp_path / "back.pth")
    back = load(tmp_path / "back.pth")
    assert_same(back, small_sam.state_dict())
    assert all(x.is_contiguous() for x in back.values())
    # The official code takes it as it takes its own.
    small_sam.load_state_dict(back, strict=True)


def test_a_sam_trained_from_prompts_answers_alike_in_segment_anything(
    checkpoint, official_sam, tmp_path
):
    """LoRA and decoder moved as by training, merged, and taken away as .pth."""
    run(checkpoint, tmp_path / "base.safetensors")
    config = config_lib.default()
    config.trains = "prompts"
    config.model.weights = str(tmp_path / "base.safetensors")
    config.adapter.kind, config.adapter.ranks = "lora_shared", (4, 4, 1)
    data = Dataset("none", ("instance",), (), (48, 64), {})
    trained = prompted.assemble(config, start(config), data)
    rng = np.random.default_rng(1)
    learnt = jax.tree.map(lambda x: x + rng.normal(0, 0.05, x.shape), trained.trainable)
    (tmp_path / "run").mkdir()
    prompted.write_learnt(trained, learnt, tmp_path / "run")
    run(tmp_path / "run" / "base.safetensors", tmp_path / "mine.pth")

    theirs = official_sam(64, 4, 4, (1, 3))
    before = theirs.state_dict()
    after = load(tmp_path / "mine.pth")
    moved = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert {"image_encoder.blocks.0.attn.qkv.weight", "mask_decoder.iou_token.weight"} <= moved
    assert not any(name.startswith("prompt_encoder.") for name in moved)
    theirs.load_state_dict(after, strict=True)
    with torchvision_or_stub():
        from segment_anything import SamPredictor as OfficialPredictor

    official = OfficialPredictor(theirs)
    ours = SamPredictor(load_sam(tmp_path / "run" / "base.safetensors"))
    image = rng.integers(0, 256, (300, 400, 3), np.uint8)
    official.set_image(image)
    ours.set_image(image)
    for prompt in ({"points": [[[120.5, 80.0]]], "labels": [[1]]}, {"boxes": [[30, 40, 280, 250]]}):
        found = ours.predict(**prompt)
        points, labels, box = (
            None if x is None else np.array(x[0])
            for x in (prompt.get("points"), prompt.get("labels"), prompt.get("boxes"))
        )
        _, iou, low_res = official.predict(points, labels, box)
        scale = np.abs(low_res).max()
        np.testing.assert_allclose(found.low_res[0] / scale, low_res / scale, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.iou[0], iou, rtol=1e-5, atol=1e-5)


def test_bfloat16_pth_to_base_and_back(small_sam, tmp_path):
    state = {name: x.to(torch.bfloat16) for name, x in small_sam.state_dict().items()}
    torch.save({"model": state}, tmp_path / "sam.pth")
    run(tmp_path / "sam.pth", tmp_path / "base.safetensors")
    run(tmp_path / "base.safetensors", tmp_path / "back.pth")
    assert_same(load(tmp_path / "back.pth"), state)


def test_a_pth_does_not_keep_the_decoders_heads(checkpoint, tmp_path, capsys):
    run(checkpoint, tmp_path / "base.safetensors", "--decoder-heads=2")
    run(tmp_path / "base.safetensors", tmp_path / "back.pth")
    told = capsys.readouterr().out
    assert "its mask decoder has 2 attention heads" in told and "--decoder-heads=2" in told


def test_the_older_format_of_pth(small_sam, tmp_path):
    path = tmp_path / "sam.pth"
    torch.save(small_sam.state_dict(), path, _use_new_zipfile_serialization=False)
    run(path, tmp_path / "back.pth")
    assert_same(load(tmp_path / "back.pth"), small_sam.state_dict())


def test_pth_to_base_to_huggingface_loads_whole_and_comes_back(checkpoint, small_sam, tmp_path):
    from transformers import SamModel

    run(checkpoint, tmp_path / "base.safetensors")
    run(tmp_path / "base.safetensors", tmp_path / "huggingface")
    model, loading = SamModel.from_pretrained(tmp_path / "huggingface", output_loading_info=True)
    assert not any(loading.values()), loading
    run(tmp_path / "huggingface", tmp_path / "back.pth")
    assert_same(load(tmp_path / "back.pth"), small_sam.state_dict())

    # What transformers itself writes comes back under the same names, bit for bit.
    model.save_pretrained(tmp_path / "saved")
    run(tmp_path / "saved", tmp_path / "saved.safetensors")
    run(tmp_path / "saved.safetensors", tmp_path / "again")
    from safetensors.torch import load_file

    files = [load_file(tmp_path / d / "model.safetensors") for d in ("again", "saved")]
    assert_same(*files)


def test_huggingface_state_dict_saved_by_pytorch(checkpoint, small_sam, tmp_path):
    from transformers import SamModel

    run(checkpoint, tmp_path / "huggingface")
    state = SamModel.from_pretrained(tmp_path / "huggingface").state_dict()
    assert HUGGINGFACE_ALIAS in state
    torch.save(state, tmp_path / "pytorch_model.bin")
    run(tmp_path / "pytorch_model.bin", tmp_path / "back.pth")
    assert_same(load(tmp_path / "back.pth"), small_sam.state_dict())


@pytest.mark.parametrize("sharded", [False, True])
def test_a_huggingface_folder_of_bin_files(checkpoint, small_sam, tmp_path, sharded):
    run(checkpoint, tmp_path / "huggingface")
    file = tmp_path / "huggingface" / "model.safetensors"
    from safetensors.torch import load_file

    state = load_file(file)
    file.unlink()
    if sharded:
        names = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(state)}
        for shard in set(names.values()):
            part = {name: x for name, x in state.items() if names[name] == shard}
            torch.save(part, file.with_name(shard))
        index = file.with_name("pytorch_model.bin.index.json")
        index.write_text(json.dumps({"weight_map": names}))
    else:
        torch.save(state, file.with_name("pytorch_model.bin"))
    run(tmp_path / "huggingface", tmp_path / "back.pth")
    assert_same(load(tmp_path / "back.pth"), small_sam.state_dict())


def test_a_training_loops_pth_under_another_name(small_sam, tmp_path, capsys):
    """What DistributedDataParallel wraps, beside an optimizer, named as what it is not."""
    wrapped = {f"module.sam.{name}": x for name, x in small_sam.state_dict().items()}
    path = tmp_path / "sam.safetensors"
    torch.save({"state_dict": wrapped, "epoch": 3, "best": np.float64(0.5)}, path)
    run(path, tmp_path / "back.pth")
    told = capsys.readouterr().out
    assert "took what is under state_dict, and left epoch, best" in told
    assert "took the prefix module.sam. off every name" in told
    assert "it is a PyTorch file, whatever its name says" in told
    assert_same(load(tmp_path / "back.pth"), small_sam.state_dict())


def test_mtsam_checkpoint_reproduces_the_golden_outputs(golden, tmp_path):
    state = {name: torch.from_numpy(x) for name, x in golden.state_dict().items()}
    torch.save(state, tmp_path / "mtsam.pth")
    names = ",".join(golden.tasks)
    heads = golden.config["decoder_heads"]
    base = tmp_path / "mtsam.safetensors"
    run(tmp_path / "mtsam.pth", base, "--tasks", names, "--decoder-heads", heads)

    tensors, description = read_base(base)
    assert description.tasks == golden.tasks
    c = golden.config
    adapter = AdapterConfig("talora", tuple(c["ranks"]), c["scaling"], c["dropout"])
    channels = dict(zip(golden.tasks, c["channels"], strict=True))
    sam, off = description.config, {"pixel_normalisation": False}
    model = build(lambda: MSam(sam, adapter, channels, **off, rngs=nnx.Rngs(0)), tensors)
    graphdef, params = nnx.split(model)

    @jax.jit
    def forward(params, squares):
        model = nnx.merge(graphdef, params)
        return model.decode(model.embed(squares, golden.tasks), golden.tasks)

    low_res = forward(params, golden.squares())
    for t, task in enumerate(golden.tasks):
        ours = golden.geometry().from_padded(low_res[task])
        theirs = np.moveaxis(golden.arrays[f"output/task{t}"], 1, -1)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

    run(base, tmp_path / "back.pth")
    assert_same(load(tmp_path / "back.pth"), state)


@dataclasses.dataclass
class Bomb:
    """A pickle that would write a file when read."""

    target: str

    def __reduce__(self):
        return (open, (self.target, "w"))


def refuse(capsys, tmp_path, path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main([str(path), str(tmp_path / "out.safetensors")]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    return error


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_does_not_run(capsys, tmp_path, small_sam, zipped):
    state = {**small_sam.state_dict(), "bomb": Bomb(str(tmp_path / "ran"))}
    torch.save(state, tmp_path / "sam.pth", _use_new_zipfile_serialization=zipped)
    error = refuse(capsys, tmp_path, tmp_path / "sam.pth")
    assert "open" in error and "nothing of it has run" in error
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(str(tmp_path / "ran"))))
    assert "plain.pth" in refuse(capsys, tmp_path, tmp_path / "plain.pth")


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.01])
def test_a_pth_cut_short(capsys, tmp_path, checkpoint, keep):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(keep * len(content))])
    assert "cut short" in refuse(capsys, tmp_path, checkpoint)


def test_a_pth_of_the_older_format_cut_short(capsys, tmp_path, small_sam):
    path = tmp_path / "sam.pth"
    torch.save(small_sam.state_dict(), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "not a PyTorch file of tensors" in refuse(capsys, tmp_path, path)


def test_pth_files_of_something_else(capsys, tmp_path):
    path = tmp_path / "sam.pth"
    torch.save([torch.zeros(3)], path)
    assert "no state dict" in refuse(capsys, tmp_path, path)
    torch.save({"image_encoder.neck.3.bias": torch.zeros(3, dtype=torch.int8)}, path)
    assert "torch.int8" in refuse(capsys, tmp_path, path)
    torch.save({"model": {"image_encoder.trunk.pos_embed": torch.zeros(3)}}, path)
    assert "SAM 2" in refuse(capsys, tmp_path, path)
    path.write_bytes(b"neither this nor that")
    assert "is text (it begins 'neither" in refuse(capsys, tmp_path, path)
    torch.save({"image_encoder.neck.3.bias": np.zeros(3)}, path)
    assert "found no tensor under image_encoder.neck.3.bias" in refuse(capsys, tmp_path, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sam_vit_b.pth", "")
    assert "is a zip archive of sam_vit_b.pth" in refuse(capsys, tmp_path, path)


def test_a_disk_that_fills_up_under_a_pth(tmp_path, checkpoint, converter):
    half = checkpoint.stat().st_size // 2
    before = sorted(tmp_path.rglob("*"))
    done = converter(checkpoint, tmp_path / "out.pth", max_file_size=half)
    assert done.returncode == 2 and "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_interpolated_positions_are_those_of_pytorch(checkpoint, small_sam, tmp_path):
    from segment_anything.modeling.image_encoder import get_rel_pos
    from torch.nn.functional import interpolate

    # In float32 PyTorch rounds the sample points; ours are exact.
    before = {name: x.double() for name, x in small_sam.state_dict().items()}
    for size, grid in ((512, 32), (1536, 96), (720, 45)):
        run(checkpoint, tmp_path / f"{size}.pth", "--image-size", size)
        after = {name: x.double() for name, x in load(tmp_path / f"{size}.pth").items()}
        assert set(after) == set(before)
        positions = before["image_encoder.pos_embed"].permute(0, 3, 1, 2)
        expected = interpolate(positions, (grid, grid), mode="bilinear", align_corners=False)
        torch.testing.assert_close(
            after["image_encoder.pos_embed"], expected.permute(0, 2, 3, 1), rtol=0, atol=1e-6
        )
        name = "image_encoder.blocks.1.attn.rel_pos_h"
        # SAM's own look-up gives the same offsets from its table and from ours.
        torch.testing.assert_close(
            get_rel_pos(grid, grid, after[name]),
            get_rel_pos(grid, grid, before[name]),
            rtol=0,
            atol=1e-6,
        )
        assert torch.equal(
            after["image_encoder.blocks.0.attn.rel_pos_h"],
            before["image_encoder.blocks.0.attn.rel_pos_h"],
        )
