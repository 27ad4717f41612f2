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
        for number in np.unique(frame["instance"]):
            mask = frame["instance"] == number
            if number < 0 or mask.sum() < 64:
                continue
            (x, y), _ = measure.centre(mask)
            for name, prompt in (
                ("box", {"boxes": [measure.box_around(mask)]}),
                ("click", {"points": [[(x + 0.5, y + 0.5)]], "labels": [[1]]}),
            ):
                found = predictor.predict(**prompt)
                answer = found.masks()[0, found.iou[0].argmax()]
                told[name].append((answer & mask).sum() / (answer | mask).sum())
            told["filled"].append(measure.box_filled(mask))
            told["disc"].append(measure.discs(mask, (x, y), 256))
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
