"""All that is wrong is expected at once."""

import numpy as np


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
        "image/0.png: cannot be decoded as PNG or JPEG",
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
    assert message in planes.refused(root)
    # Intrinsics are of one size, even where samples are resized to one.
    assert message in planes.refused(root, image_size=(12, 16))
    planes.write_json(root, {"intrinsics": None})
    assert message in planes.refused(root, ("depth",))
    assert planes.open_root(root, ("depth",), image_size=(12, 16)).image_size == (12, 16)


def test_no_labelled_pixel_is_refused(planes, root):
    for index in range(5):
        planes.save(root / f"semantic/{index}.png", np.full(planes.SIZE, 255, np.uint8))
    assert "no file has a labelled pixel" in planes.refused(root)
