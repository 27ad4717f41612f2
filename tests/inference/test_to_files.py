"""--mode predict: files that mean what they say, nothing overwritten, no bad file fatal."""

import json
import shutil
import socket

import numpy as np
import pytest
from PIL import Image

import talora_jax
from talora_jax.data.folder.decode import read
from talora_jax.data.folder.settings import Settings
from talora_jax.errors import UserError
from talora_jax.inference.pictures import picture
from talora_jax.inference.to_files import find_images, predict, write_all
from talora_jax.tasks import make_task


@pytest.fixture(scope="module")
def model(shelf):
    return talora_jax.load(shelf / "adapter.safetensors", base=shelf / "sam_nano.safetensors")


@pytest.fixture
def album(shelf, tmp_path):
    """Images of several kinds, and files that are none."""
    album = tmp_path / "album"
    (album / "trip").mkdir(parents=True)
    shutil.copy(shelf / "photo.jpg", album / "photo.jpg")
    photo = Image.open(shelf / "photo.jpg")
    photo.save(album / "trip" / "photo.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # was held upright
    photo.save(album / "turned.jpg", exif=exif)
    (album / "notes.txt").write_text("not an image, and not named like one")
    (album / "empty.png").write_bytes(b"")
    (album / "text.jpg").write_text("not an image, but named like one")
    (album / "short.jpg").write_bytes((shelf / "photo.jpg").read_bytes()[:600])
    Image.new("L", (50_000, 3)).save(album / "long.png")
    return album


def test_an_album(model, album, tmp_path, capsys):
    out = tmp_path / "out"
    summary = predict(model, find_images([str(album)], out), out, npy=True)

    assert [row["image"].removeprefix(f"{album}/") for row in summary["images"]] == [
        "photo.jpg",
        "trip/photo.png",
        "turned.jpg",
    ]
    reasons = {
        row["image"].removeprefix(f"{album}/"): row["reason"] for row in summary["unreadable"]
    }
    assert reasons.keys() == {"empty.png", "text.jpg", "short.jpg", "long.png"}
    assert "0 bytes" in reasons["empty.png"] and "50000×3" in reasons["long.png"]
    assert "not an image" in reasons["text.jpg"] and "truncated" in reasons["short.jpg"].lower()
    told = capsys.readouterr().out
    assert f"not read: {album}/empty.png: the file is empty" in told
    assert "3 of 7 images predicted" in told
    assert json.loads((out / "summary.json").read_text()) == summary

    kinds = [*(task.name for task in model.tasks), "panels"]
    names = ["photo", "trip/photo", "turned"]
    arrays = [*(task.name for task in model.tasks), "semantic_probabilities"]
    assert {str(p.relative_to(out)) for p in out.rglob("*.*")} == {
        "summary.json",
        *(f"{kind}/{name}.png" for kind in kinds for name in names),
        *(f"{array}/{name}.npy" for array in arrays for name in names),
    }

    image = Image.open(album / "photo.jpg")
    prediction = {name: np.load(out / name / "photo.npy") for name in arrays}
    # Alone, not beside the others.
    for name, array in model.predict(image).items():
        assert prediction[name].dtype == array.dtype
        # To a unit vector, a short one's rounding is stretched.
        atol = 1e-4 if name == "normals" else 1e-5
        np.testing.assert_allclose(prediction[name], array, rtol=0, atol=atol)
    assert Image.open(out / "depth" / "turned.png").size == (60, 80)

    labels = Image.open(out / "semantic" / "photo.png")
    assert labels.mode == "P" and json.loads(labels.text["class_names"]) == ["red", "green", "blue"]
    np.testing.assert_array_equal(np.asarray(labels), prediction["semantic"])
    colours = model.tasks[0].show(prediction["semantic"])
    np.testing.assert_array_equal(np.asarray(labels.convert("RGB")), colours)

    depth = Image.open(out / "depth" / "photo.png")
    assert np.asarray(depth).dtype == np.uint16 and depth.text["unit"] == "m"
    metres = np.asarray(depth) / float(depth.text["scale"])
    expected = np.maximum(prediction["depth"], 0)
    np.testing.assert_allclose(metres, expected, rtol=0, atol=0.5 / 1000 + 1e-6)
    assert len(np.unique(depth)) > 1

    normals = np.asarray(Image.open(out / "normals" / "photo.png")) * (2 / 255) - 1
    np.testing.assert_allclose(normals, prediction["normals"], rtol=0, atol=1 / 255 + 1e-6)

    panel = Image.open(out / "panels" / "photo.png")
    np.testing.assert_array_equal(
        np.asarray(panel), np.asarray(picture(image, prediction, model.tasks))
    )
    with pytest.raises(UserError, match="exists .* --overwrite"):
        predict(model, find_images([str(album)], out), out)
    changed = (out / "depth" / "photo.png").read_bytes()
    (out / "depth" / "photo.png").write_bytes(b"old")
    predict(model, find_images([str(album)], out), out, overwrite=True)
    assert (out / "depth" / "photo.png").read_bytes() == changed


def test_what_is_written_is_a_folder_of_data(model, shelf, tmp_path):
    predict(model, find_images([str(shelf / "photo.jpg")], tmp_path), tmp_path)
    prediction = model.predict(Image.open(shelf / "photo.jpg"))
    labels = read("semantic", tmp_path / "semantic" / "photo.png", Settings())
    np.testing.assert_array_equal(labels, prediction["semantic"])
    metres = read("depth", tmp_path / "depth" / "photo.png", Settings(depth_scale=1000.0))
    expected = np.maximum(prediction["depth"], 0)
    np.testing.assert_allclose(metres[..., 0], expected, rtol=0, atol=0.5 / 1000 + 1e-6)


def test_files_folders_and_globs(album, tmp_path):
    def names(*patterns):
        return [given.name for given in find_images(patterns, tmp_path / "out")]

    assert names(f"{album}/photo.jpg", f"{album}/notes.txt") == ["photo", "notes"]
    assert names(f"{album}/t*.jpg") == ["text", "turned"]
    assert names(f"{album}/**/photo.*") == ["photo", "photo-2"]
    assert names(f"{album}/trip", str(album))[:2] == ["photo", "empty"]
    (album / "out").mkdir()
    shutil.copy(album / "photo.jpg", album / "out")
    found = find_images([str(album)], album / "out")
    assert not any("out" in given.path.parts for given in found)
    (tmp_path / "nothing").mkdir()
    for pattern, told in (
        ("", "--images: '' names nothing"),
        ("no*.png", "'no.*png' is no file and no folder"),
        (f"{tmp_path}/nothing", "holds no images"),
        (f"{tmp_path}/noth*", "holds no images"),
    ):
        with pytest.raises(UserError, match=told):
            find_images([pattern], tmp_path / "out")


def test_a_folder_called_like_an_output_is_in_nobodys_way(tmp_path):
    for name in ("a.jpg", "a.png/1.jpg", "a.npy/b.MP4/1.jpg", "a_png/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    names = [given.name for given in find_images([str(tmp_path)], tmp_path / "out")]
    assert names == ["a", "a_npy/b_MP4/1", "a_png/1", "a_png/1-2"]


def test_the_longest_names_have_room_for_a_number_and_an_ending(tmp_path):
    long = ("n" * 255, "ä" * 127, "n" * 251 + ".jpg", "n" * 251 + ".png")
    for name in long:
        (tmp_path / name).touch()
    found = find_images([str(tmp_path / name) for name in long], tmp_path / "out")
    assert [given.name for given in found] == [
        *("n" * 240, "ä" * 120, "n" * 240 + "-2", "n" * 240 + "-3")
    ]


def test_when_nothing_can_be_read(model, album, tmp_path):
    for names, told in (
        (["text.jpg"], "text.jpg: not an image that Pillow can read"),
        (["text.jpg", "empty.png"], "none of 2 images could be read"),
    ):
        with pytest.raises(UserError, match=told):
            inputs = find_images([str(album / name) for name in names], tmp_path / "out")
            predict(model, inputs, tmp_path / "out")
    with pytest.raises(UserError, match="no task flow; this model has semantic, depth, normals"):
        inputs = find_images([str(album / "photo.jpg")], tmp_path / "out")
        predict(model, inputs, tmp_path / "out", tasks=["flow"])
    assert not (tmp_path / "out").exists()
    for out in (album / "notes.txt", album / "notes.txt" / "sub"):
        with pytest.raises(UserError, match="notes.txt is a file, expected a directory"):
            predict(model, inputs, out)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "depth").touch()
    with pytest.raises(UserError, match="depth could not be made: File exists"):
        write_all({tmp_path / "depth" / "photo.npy": np.zeros(1)})


def test_a_file_name_reaches_no_terminal_as_it_is(model, shelf, album, tmp_path):
    bad = album / "\x1b[31mred.jpg"
    bad.write_bytes(b"no image")
    told = []
    summary = predict(
        model,
        find_images([str(shelf / "photo.jpg"), str(bad)], tmp_path / "out"),
        tmp_path / "out",
        tasks=["depth"],
        print_line=told.append,
    )
    bad.unlink()
    assert told[0].endswith("\\x1b[31mred.jpg: not an image that Pillow can read")
    assert summary["unreadable"] == [
        {"image": str(bad), "reason": "not an image that Pillow can read"}
    ]


def test_a_picture_is_of_the_image_that_was_predicted_on():
    depth, image = {"depth": np.zeros((4, 6), np.float32)}, np.zeros((4, 6), np.uint8)
    assert picture(image, depth, [make_task("depth", class_names=())]).size[0] > 0
    with pytest.raises(UserError, match=r"depth has the shape \[4, 6\], and the image \[6, 4, 3\]"):
        picture(image.T, depth, [make_task("depth", class_names=())])
    with pytest.raises(UserError, match="a prediction: a list; expected the arrays by name"):
        picture(image, [depth], [make_task("depth", class_names=())])


@pytest.mark.slow
def test_the_command_gives_what_the_api_gives(start_main, shelf, album, tmp_path):
    """As a stranger would: the adapter and its base in a folder of their own."""
    for name in ("adapter.safetensors", "sam_nano.safetensors"):
        shutil.copy(shelf / name, tmp_path)
    adapter, base = tmp_path / "adapter.safetensors", tmp_path / "sam_nano.safetensors"
    common = ["--mode", "predict", "--adapter", str(adapter), "--base", str(base)]
    images = ["--images", str(album / "photo.jpg"), str(album / "trip"), str(album / "empty.png")]
    good = start_main(*common, *images, "--npy", "--tasks=depth", "--out", str(tmp_path / "out"))
    bad = start_main(*common, "--images", str(album / "text.jpg"), "--out", str(tmp_path / "out2"))
    alone = start_main("--mode=predict", "--images=x.png", "--out=y")
    printed, errors = good.communicate()
    assert good.returncode == 0, errors
    assert "empty.png: the file is empty" in printed and "2 of 3 images predicted" in printed
    depth = talora_jax.load(adapter, base=base).predict(Image.open(album / "photo.jpg"))["depth"]
    found = np.load(tmp_path / "out" / "depth" / "photo.npy")
    np.testing.assert_allclose(found, depth, rtol=0, atol=1e-5)
    assert not (tmp_path / "out" / "normals").exists()
    for process, told in ((bad, "not an image"), (alone, "--workdir or --adapter")):
        _, errors = process.communicate()
        assert process.returncode == 2
        assert told in errors and len(errors.strip().splitlines()) == 1, errors


@pytest.mark.slow
def test_processes_share_the_images_out(start_main, shelf, album, tmp_path):
    ours, theirs = tmp_path / "one", tmp_path / "two"
    common = ["--mode=predict", "--adapter", str(shelf / "adapter.safetensors"), "--tasks=depth"]
    common += ["--images", str(album), "--out", str(theirs)]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    given = [f"--config.hosts.coordinator=localhost:{port}", "--config.hosts.num_processes=2"]
    both = [start_main(*common, *given, f"--config.hosts.process_id={i}") for i in range(2)]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    model = talora_jax.load(shelf / "adapter.safetensors")
    inputs, lines = find_images([str(album)], ours), []
    summary = predict(model, inputs, ours, tasks=["depth"], print_line=lines.append)
    found = json.loads((theirs / "summary.json").read_text())
    assert found | {"seconds": 0} == summary | {"seconds": 0} and len(found["images"]) > 1
    assert told[0][0].splitlines()[:-1] == lines[:-1] and not told[1][0]
    for path in ours.rglob("*.png"):
        one, two = (np.asarray(Image.open(x), int) for x in (path, theirs / path.relative_to(ours)))
        # Other images beside: rounding, which a picture's scale stretches.
        assert abs(one - two).max() <= (2 if "panels" in path.parts else 1)
