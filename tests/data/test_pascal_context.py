"""PASCAL-Context as ASTMT packs it: small files in the published layout, read, refused, trained."""

import json
import runpy
import shutil
from pathlib import Path

import ml_collections
import numpy as np
import pytest
import scipy.io
import scipy.ndimage
from PIL import Image

from talora_jax.data import open_dataset
from talora_jax.data.pascal_context.decode import edges_of
from talora_jax.data.pascal_context.thin import thin
from talora_jax.data.pipeline import eval_batches, train_iterator
from talora_jax.errors import UserError
from talora_jax.training.loop import train

CONFIG = Path(__file__).parents[2] / "configs" / "pascal_context_vit_l.py"
TASKS = ("semantic", "human_parts", "saliency", "normals", "edges")
TRAIN = ("2008_000002", "2008_000003", "2008_000007")
VAL = ("2009_000001", "2009_000006")
SIZES = dict(zip(TRAIN + VAL, ((30, 40), (36, 28), (24, 40), (33, 40), (40, 27)), strict=True))
# PASCAL-Context's numbers: sky has no NYUv2 name, wall and person have, the screen is an addition.
SKY, WALL, PERSON, MONITOR = 360, 440, 284, 427

# VOC's palette: bit i of a label stands in bit 7 - i // 3 of red, green or blue by i % 3.
PALETTE = [
    sum((label >> (3 * i + channel) & 1) << (7 - i) for i in range(3))
    for label in range(256)
    for channel in range(3)
]


def save_labels(path, values):
    image = Image.fromarray(values.astype(np.uint8), mode="P")
    image.putpalette(PALETTE)
    image.save(path)


def struct(fields, rows):
    """A 1×n MATLAB struct array; 0×0 and of no fields where MATLAB writes [] for no rows."""
    if not rows:
        return np.zeros((0, 0))
    values = np.zeros((1, len(rows)), [(field, object) for field in fields])
    for i, row in enumerate(rows):
        values[0, i] = row
    return values


def save_anno(path, things):
    """PASCAL-Part's `anno` of [(class, class_ind, mask, [(part_name, mask), …]), …]."""
    rows = [
        (name, index, mask.astype(np.uint8), struct(("part_name", "mask"), parts))
        for name, index, mask, parts in things
    ]
    objects = struct(("class", "class_ind", "mask", "parts"), rows)
    anno = {"imname": path.stem, "objects": objects}
    scipy.io.savemat(path, {"anno": anno}, do_compression=True)


def box(size, top, left, bottom, right):
    mask = np.zeros(size, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def context_of(size):
    """Sky above, wall below, a person in the middle and a monitor to the right."""
    labels = np.full(size, WALL, np.uint16)
    labels[: size[0] // 3] = SKY
    labels[8:20, 10:16] = PERSON
    labels[12:18, 20:25] = MONITOR
    return labels


def things_of(stem, size):
    def part(name, *corners):
        return name, box(size, *corners)

    if stem == "2008_000003":  # nobody: a chair, which has no parts, and a dog's
        dog = [part("head", 20, 2, 24, 8), part("lfleg", 24, 2, 30, 4)]
        return [
            ("chair", 9, box(size, 5, 5, 10, 10), []),
            ("dog", 12, box(size, 20, 2, 30, 9), dog),
        ]
    if stem == "2008_000007":  # a person, but too small for parts
        return [("person", 15, box(size, 2, 2, 5, 4), [])]
    if stem == "2009_000006":  # no object at all
        return []
    body = [part("torso", 12, 10, 18, 16), part("head", 8, 11, 12, 15), part("hair", 8, 11, 9, 15)]
    limbs = [part("ruarm", 12, 9, 15, 10), part("lhand", 15, 16, 17, 17)]
    legs = [part("luleg", 18, 11, 20, 13), part("rfoot", 20, 11, 22, 13)]
    second = [part("neck", 12, 15, 14, 17)]
    return [
        ("person", 15, box(size, 8, 9, 22, 17), body + limbs + legs),
        ("dog", 12, box(size, 0, 0, 4, 4), [part("head", 0, 0, 4, 4)]),
        ("person", 15, box(size, 12, 15, 14, 17), second),
    ]


def normals_of(size):
    values = np.zeros((*size, 3), np.uint8)
    values[...] = (128, 40, 220)
    values[:, 22:] = (10, 128, 150)
    return values


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Five images in exactly the published layout."""
    root = tmp_path_factory.mktemp("download") / "PASCAL_MT"
    for folder in (
        "ImageSets/Context",
        "JPEGImages",
        "semseg/VOC12",
        "semseg/pascal-context",
        "human_parts",
        "normals_distill",
        "sal_distill",
        "pascal-context/trainval",
    ):
        (root / folder).mkdir(parents=True)
    for name, stems in (("train", TRAIN), ("val", VAL)):
        (root / f"ImageSets/Context/{name}.txt").write_text("".join(f"{s}\n" for s in stems))
    for index, (stem, size) in enumerate(SIZES.items()):
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, 256, (-(-size[0] // 8), -(-size[1] // 8), 3), np.uint8)
        image = coarse.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
        Image.fromarray(image).save(root / f"JPEGImages/{stem}.jpg")
        labels = np.zeros(size, np.uint8)
        labels[8:20, 10:16] = 15
        labels[8:20, 9] = labels[8:20, 16] = 255
        if stem != "2008_000003":  # VOC 2012 lacks this image
            save_labels(root / f"semseg/VOC12/{stem}.png", labels)
        labels[12:18, 20:25] = 20
        save_labels(root / f"semseg/pascal-context/{stem}.png", labels)
        save_anno(root / f"human_parts/{stem}.mat", things_of(stem, size))
        Image.fromarray(normals_of(size)).save(root / f"normals_distill/{stem}.png")
        grey = np.tile(np.linspace(0, 255, size[1]).astype(np.uint8), (size[0], 1))
        grey[0, :2] = 127, 128
        Image.fromarray(grey).save(root / f"sal_distill/{stem}.png")
        scipy.io.savemat(
            root / f"pascal-context/trainval/{stem}.mat",
            {"LabelMap": context_of(size)},
            do_compression=True,
        )
    return root


@pytest.fixture
def download(published, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(published, tmp_path / "PASCAL_MT"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


def open_root(root, data_dir, tasks=TASKS, **changes):
    data = {"name": "pascal_context", "path": str(root), "dir": str(data_dir)}
    data |= {"image_size": (32, 32)} | changes
    return open_dataset(ml_collections.ConfigDict(data), tasks)


@pytest.fixture(scope="session")
def samples(published, prepared):
    dataset = open_root(published, prepared)
    return {
        stem: dataset.splits[split][i]
        for split, stems in (("train", TRAIN), ("val", VAL))
        for i, stem in enumerate(stems)
    }


# What it gives.


def test_the_dataset_says_what_it_holds(published, prepared):
    dataset = open_root(published, prepared)
    assert dataset.tasks == TASKS
    assert len(dataset.class_names) == 21 and dataset.class_names[15] == "person"
    assert dataset.image_size == (32, 32)
    assert {split: len(source) for split, source in dataset.splits.items()} == {
        "train": 3,
        "val": 2,
    }
    assert set(open_root(published, prepared, ("edges",)).splits["val"][0]) == {"image", "edges"}


def test_samples_are_what_the_contract_says(samples, published):
    for stem, size in SIZES.items():
        shapes = {name: (x.shape, x.dtype) for name, x in samples[stem].items()}
        assert shapes == {
            "image": ((*size, 3), np.uint8),
            "semantic": (size, np.int32),
            "human_parts": (size, np.int32),
            "saliency": ((*size, 1), np.float32),
            "normals": ((*size, 3), np.float32),
            "edges": ((*size, 1), np.float32),
        }
        stored = np.asarray(Image.open(published / f"JPEGImages/{stem}.jpg"))
        np.testing.assert_array_equal(samples[stem]["image"], stored)


def test_labels_come_from_voc_where_it_has_the_image(samples):
    for stem in SIZES:
        semantic = samples[stem]["semantic"]
        assert (semantic[8:20, 10:16] == 15).all()
        assert (semantic[8:20, [9, 16]] == -1).all()
        assert (semantic[12:18, 20:25] == (20 if stem == "2008_000003" else 0)).all()
        assert (semantic == -1).sum() == 24


def test_parts_of_people_are_merged_to_six(samples):
    expected = np.zeros(SIZES["2008_000002"], int)
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


def test_normals_are_kept_where_the_class_is_of_nyuv2(samples):
    for stem, size in SIZES.items():
        normals, context = samples[stem]["normals"], context_of(size)
        expected = 2 / 255 * normals_of(size).astype(np.float64) - 1
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
        expected[context == SKY] = 0
        np.testing.assert_allclose(normals, expected, atol=1e-6)
        assert normals[context == MONITOR].any(-1).all()


def test_edges_outline_the_classes_of_the_label_map(samples):
    for stem, size in SIZES.items():
        edges, context = samples[stem]["edges"][..., 0], context_of(size).astype(float)
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


# A mask ('o' and '#') and what scikit-image 0.26's `thin` leaves of it ('#').
THINNED = """
ooooooo......oo##....oooo##ooooooo.....#
oooo##o......o#o.....####o.###oooo....#o
oo##oo.......#oo......#o.....o#ooo...o#o
ooo#oo......#..........#.....oo#ooooo#oo
ooo#oo....o#o..........#o....ooo#oooo#oo
...o#oo..oo#oo..........#o...ooo#####ooo
...oo#oooo#oo......oo....#o..oo#oooo#ooo
....oo####oo......o#o.....#o..o#oo.oo#oo
......ooo#o.......ooo.....#o..#o....o#oo
##......o#oo.......o......#o........o#oo
....oo...o#o........................o#oo
....o#o..o#o.......................oo#oo
....o#oo..#.........ooo...........oo#ooo
....o#o...#o........ooooo.........oo#ooo
....#o....#o........o###o.........o#oooo
....#o....#o.........ooo...........oo...
"""

# The example in scikit-image's documentation.
DOCUMENTED = """
.#.....
..#oo..
..o#o..
..o#o..
..o#o..
..ooo..
.......
"""


@pytest.mark.parametrize("drawing", [THINNED, DOCUMENTED])
def test_thin_is_scikit_images(drawing):
    pixels = np.array([list(line) for line in drawing.split()])
    np.testing.assert_array_equal(thin(pixels != "."), pixels == "#")


def test_thin_of_nothing_is_nothing():
    assert not thin(np.zeros((3, 4), bool)).any()


def test_targets_of_another_size_are_brought_to_the_images(download, prepared):
    path = download / "sal_distill/2008_000002.png"
    grey = np.zeros((60, 80), np.uint8)
    grey[:30, :40] = 255
    Image.fromarray(grey).save(path)
    saliency = open_root(download, prepared).splits["train"][0]["saliency"][..., 0]
    expected = np.zeros((30, 40))
    expected[:15, :20] = 1
    np.testing.assert_array_equal(saliency, expected)


def test_a_matlab_4_label_map_is_read(download, prepared):
    path = download / "pascal-context/trainval/2008_000002.mat"
    before = open_root(download, prepared).splits["train"][0]
    scipy.io.savemat(path, {"LabelMap": context_of(SIZES["2008_000002"]).astype(float)}, format="4")
    after = open_root(download, prepared).splits["train"][0]
    np.testing.assert_array_equal(after["edges"], before["edges"])


def test_it_is_prepared_once_and_again_after_a_change(published, download, tmp_path):
    directory = tmp_path / "records"
    open_root(download, directory)
    records = sorted(directory.rglob("*.array_record*"))
    times = [path.stat().st_mtime_ns for path in records]
    open_root(download, directory, ("semantic",))
    assert records and sorted(directory.rglob("*.array_record*")) == records
    assert [path.stat().st_mtime_ns for path in records] == times
    (download / "ImageSets/Context/val.txt").write_text(VAL[1])
    assert len(open_root(download, directory).splits["val"]) == 1
    assert len(open_root(published, directory).splits["val"]) == 2


# Batches.


def batches_of(dataset, split, **changes):
    arguments = {
        "tasks": TASKS,
        "image_size": dataset.image_size,
        "batch_size": 2,
        "process_index": 0,
        "process_count": 1,
    }
    return eval_batches(dataset.splits[split], **arguments | changes)


SHAPES = {
    "image": (2, 32, 32, 3),
    "semantic": (2, 32, 32),
    "human_parts": (2, 32, 32),
    "saliency": (2, 32, 32, 1),
    "normals": (2, 32, 32, 3),
    "edges": (2, 32, 32, 1),
}


def test_batches_of_images_of_many_sizes_have_one(published, prepared):
    dataset = open_root(published, prepared)
    seen = list(batches_of(dataset, "train"))
    assert [batch["valid"].tolist() for batch in seen] == [[True, True], [True, False]]
    augment = {"scales": (1.0,), "turn": 20.0, "scale_range": (0.75, 1.25)}
    augment |= {"flip": True, "colour_jitter": 0.0}
    iterator = train_iterator(
        dataset.splits["train"],
        tasks=TASKS,
        image_size=dataset.image_size,
        batch_size=2,
        seed=0,
        augment=ml_collections.ConfigDict(augment),
        process_index=0,
        process_count=1,
        num_threads=0,
    )
    seen += [next(iterator) for _ in range(4)]
    for batch in seen:
        batch.pop("valid", None)
        assert {name: x.shape for name, x in batch.items()} == SHAPES
        length = np.linalg.norm(batch["normals"], axis=-1)
        np.testing.assert_allclose(length[length > 0], 1, atol=1e-5)
        assert batch["semantic"].min() >= -1 and batch["semantic"].max() <= 20
        assert np.isin(batch["edges"], (-1, 0, 1)).all()


def test_evaluation_stretches_to_the_batchs_size(published, prepared, samples):
    batch = next(iter(batches_of(open_root(published, prepared), "val")))
    for i, stem in enumerate(VAL):
        height, width = SIZES[stem]
        rows = ((np.arange(32) + 0.5) * height / 32).astype(int)
        columns = ((np.arange(32) + 0.5) * width / 32).astype(int)
        for task in TASKS:
            expected = samples[stem][task][rows][:, columns]
            np.testing.assert_array_equal(batch[task][i], expected)


def test_the_config_trains_and_evaluates(published, prepared, micro, tmp_path):
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.data.path, config.data.dir = str(published), str(prepared)
    config.data.image_size = (32, 32)
    config.model.size = "micro"
    config.model.remat = "none"
    config.adapter.ranks = (4, 4, 2)
    config.batch_size = config.eval_batch_size = 2
    config.steps = 2
    config.num_pictures = 0
    metrics = train(config, tmp_path / "run")
    tasks = {name.split("/")[0] for name in metrics}
    assert tasks == set(config.tasks)
    assert all(np.isfinite(value) for value in metrics.values())
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if line["split"] == "train"]
    assert steps[-1]["step"] == 2


# What it refuses.


def refused(root, tmp_path, **changes):
    directory = tmp_path / "nothing"
    with pytest.raises(UserError) as error:
        open_root(root, directory, **changes)
    assert not list(directory.rglob("*.array_record*"))
    return str(error.value)


def truncate(path, share=2):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // share])


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_no_folder_at_all(tmp_path, path):
    message = refused(path and tmp_path / path, tmp_path)
    assert message.endswith("expected the unpacked PASCAL_MT, which holds JPEGImages.")
    assert len(message.splitlines()) == 1


def test_a_missing_split_file(download, tmp_path):
    (download / "ImageSets/Context/val.txt").unlink()
    message = refused(download, tmp_path)
    assert message.endswith("(PASCAL_MT): it lacks ImageSets/Context/val.txt.")


def test_nyuv2_given_as_pascal(tmp_path):
    for split in ("train", "val"):
        for kind in ("image", "label", "depth", "normal"):
            (tmp_path / "nyuv2" / split / kind).mkdir(parents=True)
            np.save(tmp_path / "nyuv2" / split / kind / "0.npy", np.zeros((2, 2)))
    message = refused(tmp_path / "nyuv2", tmp_path)
    assert "nyuv2 is not PASCAL-Context as ASTMT packs it (PASCAL_MT): it lacks" in message
    for lacking in ("JPEGImages", "human_parts", "semseg", "ImageSets/Context/train.txt"):
        assert lacking in message
    assert len(message.splitlines()) == 1


def test_the_folder_above(download, tmp_path):
    assert refused(download.parent, tmp_path).endswith(f"Is it {download}?")


def test_missing_files_are_listed(download, tmp_path):
    (download / "JPEGImages/2008_000003.jpg").unlink()
    (download / "human_parts/2009_000001.mat").unlink()
    (download / "semseg/pascal-context/2008_000003.png").unlink()
    assert refused(download, tmp_path).splitlines() == [
        f"{download} lacks files that its splits name:",
        "  JPEGImages/2008_000003.jpg",
        "  semseg/VOC12/2008_000003.png or semseg/pascal-context/2008_000003.png",
        "  human_parts/2009_000001.mat",
    ]


def test_very_many_missing_files_are_counted(download, tmp_path):
    (download / "ImageSets/Context/val.txt").write_text("\n".join(f"x{i}" for i in range(10)))
    lines = refused(download, tmp_path).splitlines()
    assert len(lines) == 22 and lines[-1] == "  … and 40 more"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "val.txt names no image; expected one in each line."),
        ("2009_000001\n2009_000001\n", "val.txt names 2009_000001 twice."),
        ("2008_000002\n", "2008_000002 stands in both train.txt and val.txt"),
        ("\xff\xd8", "val.txt is not text"),
    ],
)
def test_odd_split_files(download, tmp_path, text, told):
    (download / "ImageSets/Context/val.txt").write_text(text, encoding="latin-1")
    assert told in refused(download, tmp_path)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("JPEGImages/2008_000003.jpg", "cannot be decoded as PNG or JPEG"),
        ("semseg/VOC12/2008_000007.png", "cannot be decoded as PNG or JPEG"),
        ("normals_distill/2009_000001.png", "cannot be decoded as PNG or JPEG"),
        ("sal_distill/2009_000006.png", "cannot be decoded as PNG or JPEG"),
        ("human_parts/2008_000002.mat", "cannot be read as a MATLAB file"),
        ("pascal-context/trainval/2009_000001.mat", "cannot be read as a MATLAB file"),
    ],
)
def test_a_truncated_file(download, tmp_path, file, told):
    truncate(download / file)
    message = refused(download, tmp_path)
    assert message.startswith(f"{download / file}: {told}")
    assert len(message.splitlines()) == 1


HDF5 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
HDF5 = HDF5.ljust(512) + b"\x89HDF\r\n\x1a\n"
NEWER, PARTS = "a MATLAB file of version 7.3 (HDF5), expected 7.2 or older", "human_parts/{}.mat"
CONTEXT, NORMALS = "pascal-context/trainval/{}.mat", "normals_distill/{}.png"
SEMANTIC, SALIENCY = "semseg/VOC12/{}.png", "sal_distill/{}.png"


@pytest.mark.parametrize(
    "content", [b"", b"no MATLAB file", HDF5.ljust(512) + b"\x89HDF\r\n\x1a\n"]
)
@pytest.mark.parametrize("pattern", [PARTS, CONTEXT])
def test_a_foreign_mat_file(download, tmp_path, content, pattern):
    file = download / pattern.format("2008_000002")
    file.write_bytes(content)
    told = NEWER if content.startswith(b"MATLAB") else "cannot be read as a MATLAB file"
    message = refused(download, tmp_path)
    assert message.startswith(f"{file}: {told}")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("pattern", "variables", "told"),
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
def test_mat_files_that_hold_something_else(download, tmp_path, pattern, variables, told):
    scipy.io.savemat(download / pattern.format("2008_000002"), variables)
    message = refused(download, tmp_path)
    assert told in message and len(message.splitlines()) == 1


def test_a_part_that_no_person_has(download, tmp_path):
    size = SIZES["2008_000002"]
    mask = box(size, 0, 0, 4, 4)
    path = download / PARTS.format("2008_000002")
    save_anno(path, [("person", 15, mask, [("tail", mask)])])
    assert f"{path}: part 'tail' of a person, expected one of head, hair" in refused(
        download, tmp_path
    )


def test_masks_of_two_sizes(download, tmp_path):
    parts = [("head", np.ones((4, 4))), ("torso", np.ones((5, 4)))]
    path = download / PARTS.format("2008_000002")
    save_anno(path, [("person", 15, np.ones((4, 4)), parts)])
    assert refused(download, tmp_path).startswith(f"{path}: expected anno.objects(i)")


@pytest.mark.parametrize(
    ("pattern", "image", "told"),
    [
        (SEMANTIC, np.full((30, 40), 21, np.uint8), "label 21, expected 0 to 20, or 255 for no"),
        (SEMANTIC, np.zeros((30, 40, 3), np.uint8), "mode RGB, expected one channel of 8 bits"),
        (SALIENCY, np.zeros((30, 40), np.uint16), "mode I;16, expected one channel of 8 bits"),
        (NORMALS, np.zeros((30, 40), np.uint8), "mode L, expected RGB of 8 bits"),
    ],
)
def test_images_that_hold_something_else(download, tmp_path, pattern, image, told):
    file = download / pattern.format("2008_000002")
    Image.fromarray(image).save(file)
    assert refused(download, tmp_path).startswith(f"{file}: {told}")


@pytest.mark.parametrize("size", [(), (512,), (0, 512)])
def test_batches_need_a_size(published, tmp_path, size):
    assert "pascal_context needs (height, width)" in refused(published, tmp_path, image_size=size)


def test_a_task_it_has_not(published, tmp_path):
    assert "has no targets for depth; it has semantic" in refused(
        published, tmp_path, tasks=("depth",)
    )
