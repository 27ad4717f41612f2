"""What becomes of its files, and what they may not be."""

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
from PIL import Image

from talora_jax.data.pascal_context.decode import edges_of

HDF5 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
HDF5 = HDF5.ljust(512) + b"\x89HDF\r\n\x1a\n"
NEWER, PARTS = "a MATLAB file of version 7.3 (HDF5), expected 7.2 or older", "human_parts/{}.mat"
CONTEXT, NORMALS = "pascal-context/trainval/{}.mat", "normals_distill/{}.png"
SEMANTIC, SALIENCY = "semseg/VOC12/{}.png", "sal_distill/{}.png"


def test_labels_come_from_voc_where_it_has_the_image(voc, samples):
    for stem in voc.SIZES:
        semantic = samples[stem]["semantic"]
        assert (semantic[8:20, 10:16] == 15).all()
        assert (semantic[8:20, [9, 16]] == -1).all()
        assert (semantic[12:18, 20:25] == (20 if stem == "2008_000003" else 0)).all()
        assert (semantic == -1).sum() == 24


def test_parts_of_people_are_merged_to_six(voc, samples):
    expected = np.zeros(voc.SIZES["2008_000002"], int)
    expected[12:18, 10:16] = 2
    expected[8:12, 11:15] = 1
    expected[12:15, 9] = 3
    expected[15:17, 16] = 4
    expected[18:20, 11:13] = 5
    expected[20:22, 11:13] = 6
    expected[12:14, 15:17] = 2  # the second person, over the first
    np.testing.assert_array_equal(samples["2008_000002"]["human_parts"], expected)


@pytest.mark.parametrize("stem", ["2008_000003", "2008_000007", "2009_000006"])
def test_an_image_without_parts_of_people_is_unlabelled(samples, stem):
    assert (samples[stem]["human_parts"] == -1).all()


def test_saliency_is_above_127(samples):
    saliency = samples["2008_000002"]["saliency"][..., 0]
    assert saliency[0, 0] == 0 and saliency[0, 1] == 1
    grey = np.linspace(0, 255, 40).astype(np.uint8)
    np.testing.assert_array_equal(saliency[5], (grey > 127).astype(np.float32))


def test_normals_are_kept_where_the_class_is_of_nyuv2(voc, samples):
    for stem, size in voc.SIZES.items():
        normals, context = samples[stem]["normals"], voc.context_of(size)
        expected = 2 / 255 * voc.normals_of(size).astype(np.float64) - 1
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
        expected[context == voc.SKY] = 0
        np.testing.assert_allclose(normals, expected, atol=1e-6)
        assert normals[context == voc.MONITOR].any(-1).all()


def test_edges_outline_the_classes_of_the_label_map(voc, samples):
    for stem, size in voc.SIZES.items():
        edges, context = samples[stem]["edges"][..., 0], voc.context_of(size).astype(float)
        outline = scipy.ndimage.laplace(context, mode="mirror") != 0
        assert set(np.unique(edges)) == {0, 1}
        assert not edges[~outline].any()
        # Every outline is still there, one pixel wide: as many pieces, and no 2×2 block of edges.
        eight = np.ones((3, 3))
        count = scipy.ndimage.label(outline, eight)[1]
        assert scipy.ndimage.label(edges, eight)[1] == count
        blocks = edges[1:, 1:] * edges[1:, :-1] * edges[:-1, 1:] * edges[:-1, :-1]
        assert not blocks.any()


def test_edges_where_the_laplacian_cancels_are_none_as_in_astmt():
    context = np.repeat(np.array([[4, 4, 5, 6, 6]], np.int32), 5, axis=0)
    np.testing.assert_array_equal(edges_of(context)[2], [0, 1, 0, 1, 0])


def test_targets_of_another_size_are_brought_to_the_images(voc, download, prepared):
    path = download / "sal_distill/2008_000002.png"
    grey = np.zeros((60, 80), np.uint8)
    grey[:30, :40] = 255
    Image.fromarray(grey).save(path)
    saliency = voc.open_root(download, prepared).splits["train"][0]["saliency"][..., 0]
    expected = np.zeros((30, 40))
    expected[:15, :20] = 1
    np.testing.assert_array_equal(saliency, expected)


def test_a_matlab_4_label_map_is_read(voc, download, prepared):
    path = download / "pascal-context/trainval/2008_000002.mat"
    before = voc.open_root(download, prepared).splits["train"][0]
    scipy.io.savemat(
        path, {"LabelMap": voc.context_of(voc.SIZES["2008_000002"]).astype(float)}, format="4"
    )
    after = voc.open_root(download, prepared).splits["train"][0]
    np.testing.assert_array_equal(after["edges"], before["edges"])


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("JPEGImages/2008_000003.jpg", "cannot be decoded as PNG or JPEG"),
        ("semseg/VOC12/2008_000007.png", "cannot be decoded as PNG or JPEG"),
        ("normals_distill/2009_000001.png", "cannot be decoded as PNG or JPEG"),
        ("sal_distill/2009_000006.png", "cannot be decoded as PNG or JPEG"),
        ("human_parts/2008_000002.mat", "cannot be read as a MATLAB file"),
        ("pascal-context/trainval/2009_000001.mat", "cannot be read as a MATLAB file"),
    ],
)
def test_a_truncated_file(voc, download, tmp_path, file, expected):
    voc.truncate(download / file)
    message = voc.refused(download, tmp_path)
    assert message.startswith(f"{download / file}: {expected}")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "content", [b"", b"no MATLAB file", HDF5.ljust(512) + b"\x89HDF\r\n\x1a\n"]
)
@pytest.mark.parametrize("pattern", [PARTS, CONTEXT])
def test_a_foreign_mat_file(voc, download, tmp_path, content, pattern):
    file = download / pattern.format("2008_000002")
    file.write_bytes(content)
    expected = NEWER if content.startswith(b"MATLAB") else "cannot be read as a MATLAB file"
    message = voc.refused(download, tmp_path)
    assert message.startswith(f"{file}: {expected}")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("pattern", "variables", "expected"),
    [
        (CONTEXT, {"label": np.ones((3, 3))}, "expected a variable 'LabelMap' in it"),
        (CONTEXT, {"LabelMap": np.full((30, 40), 460)}, "460 to 460, expected 0 to 459"),
        (CONTEXT, {"LabelMap": np.full((30, 40), 1.5)}, "the class of every pixel"),
        (CONTEXT, {"LabelMap": "wall"}, "expected LabelMap to be a matrix of numbers"),
        (CONTEXT, {"LabelMap": np.ones((9, 8))}, "30x40 pixels, expected 9x8 as the LabelMap"),
        (PARTS, {"annotation": 1}, "expected a variable 'anno' in it"),
        (PARTS, {"anno": np.ones((3, 3))}, "expected anno.objects(i) with class_ind"),
        (PARTS, {"anno": {"objects": np.ones((3, 3))}}, "expected anno.objects(i) with class_ind"),
    ],
)
def test_mat_files_that_hold_something_else(voc, download, tmp_path, pattern, variables, expected):
    scipy.io.savemat(download / pattern.format("2008_000002"), variables)
    message = voc.refused(download, tmp_path)
    assert expected in message and len(message.splitlines()) == 1


def test_a_part_that_no_person_has(voc, download, tmp_path):
    size = voc.SIZES["2008_000002"]
    mask = voc.box(size, 0, 0, 4, 4)
    path = download / PARTS.format("2008_000002")
    voc.save_anno(path, [("person", 15, mask, [("tail", mask)])])
    assert f"{path}: part 'tail' of a person, expected one of head, hair" in voc.refused(
        download, tmp_path
    )


def test_masks_of_two_sizes(voc, download, tmp_path):
    parts = [("head", np.ones((4, 4))), ("torso", np.ones((5, 4)))]
    path = download / PARTS.format("2008_000002")
    voc.save_anno(path, [("person", 15, np.ones((4, 4)), parts)])
    assert voc.refused(download, tmp_path).startswith(f"{path}: expected anno.objects(i)")


@pytest.mark.parametrize(
    ("pattern", "image", "expected"),
    [
        (SEMANTIC, np.full((30, 40), 21, np.uint8), "label 21, expected 0 to 20, or 255 for no"),
        (SEMANTIC, np.zeros((30, 40, 3), np.uint8), "mode RGB, expected one channel of 8 bits"),
        (SALIENCY, np.zeros((30, 40), np.uint16), "mode I;16, expected one channel of 8 bits"),
        (NORMALS, np.zeros((30, 40), np.uint8), "mode L, expected RGB of 8 bits"),
    ],
)
def test_images_that_hold_something_else(voc, download, tmp_path, pattern, image, expected):
    file = download / pattern.format("2008_000002")
    Image.fromarray(image).save(file)
    assert voc.refused(download, tmp_path).startswith(f"{file}: {expected}")
