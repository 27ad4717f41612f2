"""The command `talora_jax masks`: what it writes, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from talora_jax.errors import UserError
from talora_jax.masks import main

EVERYTHING = "--pred-iou-thresh 0 --stability-score-thresh 0 --points-per-side 2".split()


def test_masks_of_an_album(shelf, tmp_path, capsys):
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    Image.open(shelf / "photo.jpg").save(album / "a.png")
    Image.open(shelf / "photo.jpg").rotate(90, expand=True).save(album / "b.png")
    (album / "c.png").write_text("no image")
    base = str(shelf / "sam_nano.safetensors")
    main(["--images", str(album), "--out", str(out), "--base", base, *EVERYTHING])
    told = json.loads((out / "masks.json").read_text())
    assert [(i["width"], i["height"]) for i in told["images"]] == [(80, 60), (60, 80)]
    assert told["categories"] == [{"id": 1, "name": "object"}]
    assert [row["image"] for row in told["unreadable"]] == [str(album / "c.png")]
    assert f"{len(told['annotations'])} masks in 2 of 3 images" in capsys.readouterr().out
    assert [a["id"] for a in told["annotations"]] == [*range(1, len(told["annotations"]) + 1)]
    for image in told["images"]:
        numbers = np.asarray(Image.open(out / image["numbers"]))
        assert numbers.shape == (image["height"], image["width"])
        annotations = [a for a in told["annotations"] if a["image_id"] == image["id"]]
        assert [a["number"] for a in annotations] == [*range(1, len(annotations) + 1)]
        for one in annotations:
            counts = one["segmentation"]["counts"]
            on = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
            mask = on.reshape(image["width"], image["height"]).T
            assert one["area"] == mask.sum() and one["category_id"] == 1
            # The smallest mask is the one on top.
            assert (numbers[mask] > 0).all()
            if mask.any():
                y, x = np.nonzero(mask)
                x0, y0 = x.min(), y.min()
                assert one["bbox"] == [x0, y0, x.max() + 1 - x0, y.max() + 1 - y0]
    assert Image.open(out / "panels" / "a.png").size[0] == 2 * 640 + 3 * 12
    with pytest.raises(UserError, match=r"exists \(5 such files\): choose another --out"):
        main(["--images", str(album), "--out", str(out), "--base", base, *EVERYTHING])


def test_an_image_that_cannot_be_named_does_not_end_an_album(shelf, tmp_path):
    Image.new("RGB", (80, 2)).save(tmp_path / "stripe.png")
    Image.open(shelf / "photo.jpg").save(tmp_path / "z.png")
    model = ["--adapter", str(shelf / "adapter.safetensors")]
    main(["--images", str(tmp_path), "--out", str(tmp_path / "out"), *model, *EVERYTHING])
    told = json.loads((tmp_path / "out" / "masks.json").read_text())
    assert [image["width"] for image in told["images"]] == [80]
    [(path, reason)] = [row.values() for row in told["unreadable"]]
    assert path.endswith("stripe.png") and "an image of 80×2 pixels" in reason


def test_named_masks(shelf, tmp_path, monkeypatch):
    monkeypatch.chdir(shelf)
    out = tmp_path / "out"
    model = ["--adapter", "adapter.safetensors", "--base", "sam_nano.safetensors"]
    main(["--images", "photo.jpg", "--out", str(out), *model, *EVERYTHING])
    told = json.loads((out / "masks.json").read_text())
    names = {row["id"]: row["name"] for row in told["categories"]}
    assert names == {1: "red", 2: "green", 3: "blue"}
    assert told["annotations"]
    for one in told["annotations"]:
        assert one["category"] == names[one["category_id"]]
        assert 1 / 3 <= one["category_probability"] <= 1 and np.isfinite(one["depth"])
        assert np.linalg.norm(one["normal"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--out o", "--images is missing"),
        ("--images nowhere.jpg --out o", "--images: 'nowhere.jpg' is no file and no folder"),
        ("--images photo.jpg --out o --base lost.safetensors", "lost.safetensors"),
        ("--images photo.jpg --out photo.jpg", "--out: .*photo.jpg is a file, expected a dir"),
        ("--images photo.jpg --out o --workdir a --adapter b", "give one of them"),
        ("--images photo.jpg --out o --workdir run", "run started from random numbers"),
        (
            "--images photo.jpg --out o --base sam_nano.safetensors --pred-iou-thresh 88",
            "pred_iou_thresh: 88.0; expected a number from 0 to 1",
        ),
    ],
)
def test_refusals(arguments, message, shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    with pytest.raises(UserError, match=message) as refusal:
        main(arguments.split())
    assert len(str(refusal.value)) < 600
    assert not (shelf / "o").exists()
