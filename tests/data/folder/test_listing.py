"""Which files belong together, and which split they are in."""

import os
import zipfile

import numpy as np

from talora_jax.data.folder.listing import list_samples
from talora_jax.data.folder.settings import Settings


def test_a_given_split_is_kept_in_order_of_stems(planes, root):
    planes.write_json(root, {"splits": {"train": ["3", "1"], "val": ["4"]}})
    dataset = planes.open_root(root, ("depth",))
    images = [sample["image"].tobytes() for sample in planes.samples(dataset)]
    rng = [np.random.default_rng(index) for index in (1, 3, 4)]
    assert images == [r.integers(0, 256, (*planes.SIZE, 3), dtype=np.uint8).tobytes() for r in rng]


def test_two_files_of_one_stem_are_refused(planes, root):
    planes.save(root / "depth/0.npy", planes.plane_depth())
    assert "depth/0.png: 0.npy has the same stem; expected one" in planes.refused(root)


def test_a_folder_without_images_is_refused(planes, root, tmp_path):
    assert "config.data.path is empty" in planes.refused(root, path="")
    assert "which is not a directory" in planes.refused(root, path=str(tmp_path / "nowhere"))
    assert "has no folder 'image'" in planes.refused(root, path=str(tmp_path))
    (tmp_path / "image").mkdir()
    assert "holds no image" in planes.refused(root, path=str(tmp_path))
    planes.save(tmp_path / "image/one.png", np.zeros((*planes.SIZE, 3), np.uint8))
    assert "holds one image; expected two or more" in planes.refused(root, (), path=str(tmp_path))


def test_what_is_there_in_place_of_images_is_told(planes, tmp_path):
    (tmp_path / "empty").mkdir()
    assert planes.refused(tmp_path / "empty").endswith("; it is empty.")
    (tmp_path / "all/data/image").mkdir(parents=True)
    assert f"Is {tmp_path / 'all/data'} the directory" in planes.refused(tmp_path / "all")
    (tmp_path / "capital/Images").mkdir(parents=True)
    (tmp_path / "capital/depth").mkdir()
    message = planes.refused(tmp_path / "capital")
    assert "it holds Images, depth. Is it Images? Then rename that." in message
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("image/0.png", b"")
    assert "it is a zip archive, unpack it" in planes.refused(tmp_path / "data.zip")


def test_a_folder_with_the_name_of_no_target_is_told(planes, root):
    (root / "depth").rename(root / "Depth")
    message = planes.refused(root, ("depth",))
    assert message.endswith("it has semantic, edges. Its folder Depth has the name of no target.")


def test_subfolders_are_part_of_the_stem(planes, root):
    for folder, suffix in (("image", "png"), ("semantic", "png"), ("depth", "png")):
        (root / folder / "a/b").mkdir(parents=True)
        for index in (0, 1):
            path = root / folder / f"{index}.{suffix}"
            path.rename(root / folder / "a/b" / path.name)
    dataset = planes.open_root(root, ("depth",))
    assert sum(map(len, dataset.splits.values())) == 5
    planes.write_json(root, {"splits": {"train": ["2", "a/b/0"], "val": ["a/b/1"]}})
    assert len(planes.open_root(root, ("depth",)).splits["train"]) == 2
    planes.write_json(root, {"splits": {"train": ["2", "0"], "val": ["a/b/1"]}})
    assert "splits name 0, of which there is no image; there is one of 'a/b/0'." in planes.refused(
        root, ("depth",)
    )
    (root / "depth/a/b/1.png").unlink()
    planes.write_json(root, {})
    assert "image/a/b/1.png: depth/ has no file of stem 'a/b/1'" in planes.refused(root, ("depth",))


def test_what_is_no_file_is_a_line_and_nothing_is_waited_for(planes, root):
    os.mkfifo(root / "depth/pipe.png")
    (root / "depth/zero.png").symlink_to("/dev/zero")
    (root / "depth/gone.png").symlink_to("nowhere\x1b[31m")
    (root / "depth/circle").symlink_to(".")
    (root / "depth/self.png").symlink_to("self.png")
    (root / "depth/folder.png").mkdir()
    (root / "depth" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    listing = list_samples(root, Settings())
    assert [line.removeprefix("depth/") for line in listing.problems] == [
        "caf\\udce9.png: its name is not UTF-8, rename it",
        "circle: a link to a folder that it lies in, expected no circle",
        "folder.png: a folder, expected a file",
        "gone.png: a link to nowhere\\x1b[31m, which leads nowhere",
        "pipe.png: a pipe, socket or device, expected a file",
        "self.png: a link to self.png, which leads nowhere",
        "zero.png: a pipe, socket or device, expected a file",
    ]
    assert planes.refused(root).count("\n") == 7
    # Nothing of it concerns a run on something else.
    assert len(planes.samples(planes.open_root(root, ("semantic",)))) == 5


def test_a_folder_that_is_none_stops_who_needs_it(planes, root):
    (root / "depth").rename(root.parent / "depth")
    (root / "depth").symlink_to(root / "gone")
    assert "depth/: a link to" in planes.refused(root, ("depth",))
    assert len(planes.samples(planes.open_root(root, ("semantic",)))) == 5
    (root / "depth").unlink()
    (root / "depth").symlink_to(root.parent / "depth")
    assert len(planes.samples(planes.open_root(root, ("depth",)))) == 5


def test_stems_that_only_look_alike_are_told(planes, root):
    (root / "image/0.png").rename(root / "image/A.png")
    (root / "semantic/0.png").rename(root / "semantic/a.png")
    (root / "depth/0.png").rename(root / "depth/A .png")
    problems = list_samples(root, Settings()).problems
    assert "depth/A .png: there is no image of this stem, but one of 'A': stems must be equal" in (
        problems
    )
    assert any(line.startswith("semantic/a.png: there is no image of this") for line in problems)


def test_unicode_spells_a_name_in_two_ways(planes, root):
    (root / "image/0.png").rename(root / "image/caf\u00e9.png")
    (root / "semantic/0.png").rename(root / "semantic/cafe\u0301.png")
    (root / "depth/0.png").rename(root / "depth/cafe\u0301.png")
    planes.write_json(root, {"splits": {"train": ["1", "2"], "val": ["cafe\u0301"]}})
    assert len(planes.open_root(root, ("depth", "semantic")).splits["val"]) == 1


def test_what_systems_leave_is_passed_over(planes, root):
    for name in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini"):
        (root / "image" / name).write_bytes(b"x")
    (root / "image/__MACOSX").mkdir()
    (root / "image/__MACOSX/0.png").write_bytes(b"x")
    assert not list_samples(root, Settings()).problems


def test_names_of_files_in_splits_are_told_to_be_stems(planes, root):
    planes.write_json(root, {"splits": {"train": ["0.png", "1.png"], "val": ["2.png"]}})
    message = planes.refused(root)
    assert (
        "splits name 0.png, 1.png, 2.png, of which there is no image: give stems, with" in message
    )


def test_a_home_that_is_nobodys_is_told(planes, root):
    path = "~nobody-at-all/data"
    assert f"is {path!r}, which is not a directory" in planes.refused(root, path=path)
