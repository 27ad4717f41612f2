"""The base that comes with the package: found by its name, and worth asking."""

import numpy as np
import pytest

import talora_jax
from talora_jax.data.rooms.render import render
from talora_jax.data.rooms.scene import random_scene
from talora_jax.errors import UserError
from talora_jax.models.sam import SamConfig
from talora_jax.prompting import measure
from talora_jax.weights.base_file import SHIPPED, base_path, read_base, read_description
from weights_convert.__main__ import main as convert

# Rooms of a seed that it was not trained on.
SEED = 12


def test_a_name_stands_for_its_file(tmp_path, monkeypatch):
    assert base_path("sam_small") == SHIPPED["sam_small"]
    assert SHIPPED["sam_small"].stat().st_size < 12e6
    description = read_description("sam_small")
    assert description.config == SamConfig.small() and description.source["on"] == "rooms"
    # A file of that name is the user's own.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sam_small").touch()
    assert str(base_path("sam_small")) == "sam_small"


def test_no_base_names_those_there_are():
    with pytest.raises(
        UserError,
        match="no base at sam_smal; the package has sam_small, .*weights_convert CHECKPOINT",
    ):
        read_description("sam_smal")


@pytest.mark.slow
def test_answers_are_better_than_none():
    """Clicks: than the best fixed disc. Boxes: than the box filled."""
    predictor = talora_jax.SamPredictor(talora_jax.load_sam("sam_small"))
    told = {"box": [], "filled": [], "click": [], "disc": []}
    for index in range(6):
        frame = render(random_scene(SEED, "val", index), (192, 256))
        predictor.set_image(frame["image"])
        numbers = [n for n in np.unique(frame["instance"]) if n >= 0]
        masks = [frame["instance"] == n for n in numbers]
        masks = [mask for mask in masks if mask.sum() >= 64]
        centres = [measure.centre(mask)[0] for mask in masks]
        clicks = [[(x + 0.5, y + 0.5)] for x, y in centres]
        for name, prompts in (
            ("box", {"boxes": [measure.box_around(mask) for mask in masks]}),
            ("click", {"points": clicks, "labels": [[1]] * len(masks)}),
        ):
            found = predictor.predict(**prompts)
            answers = found.masks()[np.arange(len(masks)), found.iou.argmax(-1)]
            for answer, mask in zip(answers, masks, strict=True):
                told[name].append((answer & mask).sum() / (answer | mask).sum())
        for mask, centre in zip(masks, centres, strict=True):
            told["filled"].append(measure.box_filled(mask))
            told["disc"].append(measure.discs(mask, centre, 256))
    assert len(told["box"]) > 80
    assert np.mean(told["box"]) > np.mean(told["filled"]) + 0.05
    assert np.mean(told["click"]) > np.mean(told["disc"], axis=0).max() + 0.3


def test_it_converts_by_its_name(tmp_path, capsys):
    convert(["sam_small", str(tmp_path / "sam.safetensors")])
    assert "288 pixels" in capsys.readouterr().out
    kept, description = read_base(tmp_path / "sam.safetensors")
    assert description.source == read_description("sam_small").source
    for name, x in read_base("sam_small")[0].items():
        np.testing.assert_array_equal(kept[name], x, err_msg=name)
