"""Which files it takes, and which are missing."""

import numpy as np
import pytest

from talora_jax.data.pascal_context.layout import list_splits


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_no_folder_at_all(voc, tmp_path, path):
    message = voc.refused(path and tmp_path / path, tmp_path)
    assert message.endswith("expected the unpacked PASCAL_MT, which holds JPEGImages.")
    assert len(message.splitlines()) == 1


def test_a_missing_split_file(voc, download, tmp_path):
    (download / "ImageSets/Context/val.txt").unlink()
    message = voc.refused(download, tmp_path)
    assert message.endswith("(PASCAL_MT): it lacks ImageSets/Context/val.txt.")


def test_nyuv2_given_as_pascal(voc, tmp_path):
    for split in ("train", "val"):
        for kind in ("image", "label", "depth", "normal"):
            (tmp_path / "nyuv2" / split / kind).mkdir(parents=True)
            np.save(tmp_path / "nyuv2" / split / kind / "0.npy", np.zeros((2, 2)))
    message = voc.refused(tmp_path / "nyuv2", tmp_path)
    assert "nyuv2 is not PASCAL-Context as ASTMT packs it (PASCAL_MT): it lacks" in message
    for lacking in ("JPEGImages", "human_parts", "semseg", "ImageSets/Context/train.txt"):
        assert lacking in message
    assert len(message.splitlines()) == 1


def test_the_folder_above(voc, download, tmp_path):
    assert voc.refused(download.parent, tmp_path).endswith(f"Is it {download}?")


def test_missing_files_are_listed(voc, download, tmp_path):
    (download / "JPEGImages/2008_000003.jpg").unlink()
    (download / "human_parts/2009_000001.mat").unlink()
    (download / "semseg/pascal-context/2008_000003.png").unlink()
    assert voc.refused(download, tmp_path).splitlines() == [
        f"{download} lacks files that its splits name:",
        "  JPEGImages/2008_000003.jpg",
        "  semseg/VOC12/2008_000003.png or semseg/pascal-context/2008_000003.png",
        "  human_parts/2009_000001.mat",
    ]


def test_very_many_missing_files_are_counted(voc, download, tmp_path):
    (download / "ImageSets/Context/val.txt").write_text("\n".join(f"x{i}" for i in range(10)))
    lines = voc.refused(download, tmp_path).splitlines()
    assert len(lines) == 22 and lines[-1] == "  … and 40 more"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "val.txt names no image; expected one in each line."),
        ("2009_000001\n2009_000001\n", "val.txt names 2009_000001 twice."),
        ("2008_000002\n", "2008_000002 stands in both train.txt and val.txt"),
        ("\xff\xd8", "val.txt is not text"),
        ("2009_000001.jpg\n", "val.txt names 2009_000001.jpg; expected names without .jpg"),
    ],
)
def test_odd_split_files(voc, download, tmp_path, text, expected):
    (download / "ImageSets/Context/val.txt").write_text(text, encoding="latin-1")
    assert expected in voc.refused(download, tmp_path)


def test_split_files_of_other_systems_are_read(voc, download, tmp_path):
    path = download / "ImageSets/Context/val.txt"
    expected = [sample.stem for sample in list_splits(str(download), ("edges",))["val"]]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    found = list_splits(str(download), ("edges",))["val"]
    assert [sample.stem for sample in found] == expected
