"""All that is wrong is expected at once."""

import numpy as np
import pytest
from PIL import ExifTags, Image


def test_all_bad_files_are_listed_at_once(planes, root):
    whole = (root / "image/0.png").read_bytes()
    (root / "image/0.png").write_bytes(whole[: len(whole) // 2])
    (root / "depth/1.png").unlink()
    planes.save(root / "semantic/2.png", np.zeros((5, 6), np.uint8))
    planes.save(root / "depth/3.png", np.full(planes.SIZE, 65535, np.uint16))
    (root / "semantic/4.png").write_text("not an image")
    (root / "depth/9.png").write_bytes((root / "depth/0.png").read_bytes())
    (root / "depth/notes.txt").write_text("hello")
    (root / "depth/.hidden").write_text("hello")
    lines = planes.refused(root).splitlines()
    assert lines[0].endswith("cannot be used:")
    for part in (
        "image/0.png: cannot be decoded as an image",
        "image/1.png: depth/ has no file of stem '1'",
        "semantic/2.png: 5×6 (H×W), expected 24×32 (H×W) as its image",
        "depth/3.png: value 65535, all ones",
        "semantic/4.png: cannot be decoded as PNG or JPEG",
        "depth/9.png: there is no image of this stem",
        "depth/notes.txt: expected a file of kind .png, .npy",
    ):
        assert sum(line.strip().startswith(part) for line in lines) == 1, (part, lines)
    assert len(lines) == 8
    # A folder that is refused is not prepared.
    assert not list((root.parent).glob("prepared/folder/*/1*"))


def test_a_long_list_is_capped(planes, root):
    for index in range(30):
        (root / f"depth/extra{index}.png").write_text("")
    lines = planes.refused(root).splitlines()
    assert len(lines) == 22
    assert lines[-1] == "  … and 10 more"


def test_images_of_mixed_sizes_are_refused_unless_resized(planes, root):
    for folder, values in (
        ("image", np.zeros((30, 32, 3), np.uint8)),
        ("semantic", np.zeros((30, 32), np.uint8)),
        ("depth", np.ones((30, 32), np.uint16)),
    ):
        planes.save(root / folder / "0.png", values)
    message = "image/0.png: 30×32 (H×W), expected 24×32 (H×W) as the other images"
    refused = planes.refused(root)
    assert message in refused and "config.data.image_size=(height, width)" in refused
    # Intrinsics are of one size, even where samples are resized to one.
    assert message in planes.refused(root, image_size=(12, 16))
    planes.write_json(root, {"intrinsics": None})
    assert message in planes.refused(root, ("depth",))
    assert planes.open_root(root, ("depth",), image_size=(12, 16)).image_size == (12, 16)


def test_no_labelled_pixel_is_refused(planes, root):
    for index in range(5):
        planes.save(root / f"semantic/{index}.png", np.full(planes.SIZE, 255, np.uint8))
    assert "no file has a labelled pixel" in planes.refused(root)


def test_problems_of_one_kind_are_told_once(planes, root):
    for index in range(5):
        planes.save(root / f"depth/{index}.png", np.full(planes.SIZE, 65535, np.uint16))
        planes.save(root / f"semantic/{index}.png", np.full(planes.SIZE, 7 + index, np.uint8))
    planes.write_json(root, {"class_names": ["a", "b"]})
    lines = planes.refused(root).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("  semantic/") and " and 4 more: label " in lines[1]
    assert lines[2].startswith("  depth/") and " and 4 more: value 65535, all ones" in lines[2]


@pytest.mark.parametrize("void", [255, 65535])
def test_a_void_label_that_nobody_named(planes, root, void):
    labels = planes.labels().astype(np.uint16)
    labels[labels == 255] = void
    for index in range(5):
        planes.save(root / f"semantic/{index}.png", labels)
    message = planes.refused(root)
    assert f"semantic: 3 class ids occur, {void} and not the one before it" in message
    assert f"set config.data.ignore_label={void}, or" in message
    assert planes.open_root(root, ignore_label=void).class_names == ("class 0", "class 1")


def test_a_highest_id_that_has_a_name_is_a_class(planes, root):
    labels = planes.labels().astype(np.uint16)  # 255 is no void of 16 bits
    for index in range(5):
        planes.save(root / f"semantic/{index}.png", labels)
    names = tuple(map(str, range(256)))
    assert planes.open_root(root, ("semantic",), class_names=names).class_names == names


def with_palette(values, colours):
    image = Image.fromarray(values).convert("P")
    image.putdata(values.ravel().tolist())
    # Of fewer colours, Pillow would keep fewer bits than a void takes.
    colours = [*colours, *[(0, 0, 0)] * (256 - len(colours))]
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def test_palettes_that_differ(planes, root):
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    for index in range(5):
        # What no pixel uses may differ.
        colours = [red, green, blue if index else red]
        with_palette(planes.labels(), colours).save(root / f"semantic/{index}.png")
    assert planes.open_root(root, ("semantic",)).class_names == ("class 0", "class 1")
    with_palette(planes.labels(), [green, red]).save(root / "semantic/3.png")
    message = planes.refused(root, ("semantic",))
    assert "has colour (0, 255, 0), and (255, 0, 0) in semantic/" in message
    assert "expected one palette in all files, or grey PNGs of class indices" in message


def test_what_the_run_does_not_use_may_be_broken(planes, root, capfd):
    (root / "depth/3.png").write_text("not an image")
    (root / "depth/2.png").unlink()
    (root / "depth/notes.txt").write_text("hello")
    assert "depth/3.png: cannot be decoded" in planes.refused(root, ("depth",))
    assert "depth/3.png: cannot be decoded" in planes.refused(root, ("semantic", "normals"))
    capfd.readouterr()
    dataset = planes.open_root(root, ("semantic", "edges"))
    err = capfd.readouterr().err
    assert "only what this run needs is prepared, without depth: " in err
    assert set(dataset.splits["train"][0]) == {"image", "semantic", "edges"}
    assert dataset.class_names == ("class 0", "class 1")
    # The next run finds it, one that wants less or more prepares its own.
    planes.open_root(root, ("edges", "semantic"))
    assert capfd.readouterr().err == ""
    assert set(planes.open_root(root, ("edges",)).splits["val"][0]) == {"image", "edges"}


def test_a_blank_depth_map_is_unlabelled(planes, root):
    for index, blank in ((0, np.zeros(planes.SIZE, np.uint16)), (1, np.full(planes.SIZE, np.nan))):
        (root / f"depth/{index}.png").unlink()
        planes.save(root / f"depth/{index}.{'npy' if index else 'png'}", blank)
    depths = [sample["depth"] for sample in planes.samples(planes.open_root(root, ("depth",)))]
    assert sorted(bool(depth.any()) for depth in depths) == [False, False, True, True, True]


def test_a_void_number_of_objects(planes, root):
    numbers = planes.labels() + np.uint8(1)
    numbers[numbers == 0] = 255  # what was 255
    for index in range(5):
        planes.save(root / f"instance/{index}.png", numbers)
    message = planes.refused(root, ("edges",))
    assert "instance: in 5 of 5 images the highest number is all ones (such as 255)" in message
    assert "store 0 for that" in message
    for index in range(3):
        planes.save(root / f"instance/{index}.png", np.where(numbers == 255, 0, numbers))
    assert set(planes.open_root(root, ("instance",)).splits["val"][0]) == {"image", "instance"}


def exif(path, orientation):
    """Stores an image as one that its orientation turns."""
    with Image.open(path) as image:
        image.load()
    tags = image.getexif()
    tags[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=tags)


@pytest.mark.parametrize("turn, is_not", [(3, "may not be"), (6, "is not")])
def test_an_image_that_exif_turns_beside_targets_of_stored_pixels_is_refused(
    planes, root, turn, is_not
):
    exif(root / "image/0.png", turn)
    lines = [line for line in planes.refused(root, ("depth",)).splitlines() if "EXIF" in line]
    assert lines == [
        f"  image/0.png: its EXIF orientation ({turn}) turns it, and depth/0.png {is_not} turned; "
        "save both upright, without EXIF"
    ]


def test_an_image_that_exif_turns_to_the_size_of_its_targets_is_read_upright(planes, root):
    with Image.open(root / "image/0.png") as image:
        upright = np.asarray(image)
        image.transpose(Image.Transpose.ROTATE_90).save(root / "image/0.png")
    exif(root / "image/0.png", 6)
    images = [sample["image"] for sample in planes.samples(planes.open_root(root, ("depth",)))]
    assert sum(np.array_equal(image, upright) for image in images) == 1


def test_a_target_with_an_orientation_is_refused(planes, root):
    exif(root / "depth/0.png", 6)
    assert "depth/0.png: has an EXIF orientation" in planes.refused(root, ("depth",))
