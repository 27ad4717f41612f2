"""Which files belong together, and which split they are in."""

import numpy as np


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
