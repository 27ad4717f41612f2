"""What lies in folders of data beside what one would wish: nothing of it is a wrong guess without a
word, or ends in more than a sentence."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from talora_jax.commands import main
from talora_jax.data.folder import guess_table, streams
from talora_jax.errors import UserError
from tests import trees

ROTATED = 6  # EXIF's orientation


def labelled(root, image="images/x{}.png", label="labels/x{}.png", count=4, label_of=np.uint8):
    for i in range(count):
        photo, classes, _ = trees.scene(i)
        trees.save(root / image.format(i), photo)
        trees.save(root / label.format(i), label_of(classes))


def with_depth(root, image, depth, stored):
    for i in range(4):
        photo, _, metres = trees.scene(i)
        trees.save(root / image.format(i), photo)
        trees.save(root / depth.format(i), stored(metres))


def broken(root):
    labelled(root)
    with_depth(root, "images/x{}.png", "depth/x{}.png", lambda x: np.uint16(x * 1000))
    for name in ("images/x0.png", "labels/x1.png", "depth/x2.png"):
        (root / name).write_bytes((root / name).read_bytes()[:80])


def leads_nowhere(root):
    labelled(root)
    (root / "images/gone.png").symlink_to(root / "nowhere.png")


def any_suffix(root):
    labelled(root, "images/x{}.png")
    for i in (1, 3):
        (root / f"images/x{i}.png").rename(root / f"images/x{i}.PNG")
    photo, classes, _ = trees.scene(4)
    Image.fromarray(photo).convert("CMYK").save(root / "images/x4.jpg")
    trees.save(root / "labels/x4.png", np.uint8(classes))
    photo, classes, _ = trees.scene(5)
    trees.save(root / "images/x5.tif", photo[..., 0].astype(np.uint16) * 257)
    trees.save(root / "labels/x5.tif", np.uint8(classes))


def kitti(root):
    def sparse(metres):
        stored = np.uint16(metres * 256 * 5)
        stored[np.random.default_rng(0).random(stored.shape) < 0.7] = 0
        return stored

    for split in ("train", "val"):
        drive = f"{split}/2011_09_26_drive_000{{0}}_sync"
        with_depth(
            root,
            f"{drive}/image_02/data/000{{0}}.png",
            f"{drive}/proj_depth/groundtruth/image_02/000{{0}}.png",
            sparse,
        )


def turned(root):
    labelled(root)
    for path in sorted((root / "images").iterdir()):
        with Image.open(path) as image:
            exif = image.getexif()
            exif[0x112] = ROTATED
            image.convert("RGB").save(path.with_suffix(".jpg"), exif=exif)
        path.unlink()


def of_other_sizes(root):
    labelled(root, label_of=lambda classes: np.uint8(classes[:, :20]))


def two_cameras(root):
    labelled(root, "training/image_2/00{}_10.png", "training/semantic/00{}_10.png")
    labelled(root, "training/image_3/00{}_10.png", "training/semantic/00{}_10.png")


def heads_by_folder(root):
    labelled(root, "images/x{}.jpg", "labels_objects/x{}.png")
    labelled(root, "images/x{}.jpg", "labels_rooms/x{}.png", label_of=lambda x: np.uint8(x[::-1]))


def not_as_called(root):
    """Depth in three channels, masks of other names than the images', arrays that are not read."""
    labelled(root)
    labelled(root, "images/x{}.png", "instances/y{}.png")
    with_depth(
        root, "images/x{}.png", "depth/x{}.png", lambda x: np.stack([np.uint8(x * 9)] * 3, -1)
    )
    for path in (root / "depth").iterdir():
        noise = np.random.default_rng(0).integers(0, 256, (*trees.SIZE, 3))
        trees.save(path, np.uint8(noise))
    (root / "normals").mkdir()
    (root / "normals/x0.mat").write_bytes(b"0")


def uavid(root):
    for split, count in (("train", 4), ("val", 2)):
        for folder, made in (("Images", lambda x: x[0]), ("Labels", lambda x: np.uint8(x[1]))):
            for i in range(count):
                trees.save(
                    root / f"uavid_{split}/seq{i // 2}/{folder}/0{i}.png", made(trees.scene(i))
                )


def duts(root):
    """Masks of white on black, smoothed, in folders whose names hold a short word of a split."""
    for split, count in (("TR", 4), ("TE", 2)):
        for i in range(count):
            photo = trees.scene(i, (96, 128))[0]
            y, x = np.mgrid[-48:48, -64:64]
            mask = np.clip((30 - np.hypot(y, x + i)) * 64 + 128, 0, 255).astype(np.uint8)
            trees.save(root / f"DUTS-{split}/DUTS-{split}-Image/x{i}.jpg", photo)
            trees.save(root / f"DUTS-{split}/DUTS-{split}-Mask/x{i}.png", mask)


def taskonomy(root):
    for i in range(4):
        photo, classes, metres = trees.scene(i)
        for domain, values in (
            ("rgb", photo),
            ("depth_euclidean", np.uint16(metres * 512)),
            ("depth_zbuffer", np.uint16(metres * 512)),
            ("segment_semantic", np.uint8(classes)),
        ):
            trees.save(root / f"{domain}/here/point_{i}_view_0_domain_{domain}.png", values)
        name = f"point_{i}_view_0_domain_depth_zbuffer.png"
        trees.save(root / f"mask_valid/here/{name}", np.uint8(classes > 0) * 255)


def drawn_twice(root):
    """BDD100K: two kinds of classes, and a drawing of each."""
    colours = np.uint8([[128, 64, 128], [70, 130, 180], [0, 128, 0], [9, 9, 9]])
    labelled(root, "images/{}.jpg", "labels/sem_seg/masks/{}.png")
    labelled(
        root, "images/{}.jpg", "labels/sem_seg/colormaps/{}.png", label_of=lambda x: colours[x]
    )
    labelled(
        root, "images/{}.jpg", "labels/drivable/masks/{}.png", label_of=lambda x: np.uint8(x[::-1])
    )
    labelled(
        root,
        "images/{}.jpg",
        "labels/drivable/colormaps/{}.png",
        label_of=lambda x: colours[x[::-1]],
    )


def none_can_be_read(root):
    colours = np.uint8([[128, 64, 128], [70, 130, 180], [0, 128, 0], [9, 9, 9]])
    labelled(root)
    labelled(root, label="parts/x{}.png", label_of=lambda x: colours[x])


def pairs_in_a_csv(root):
    """Names that have nothing in common, whole paths, and columns called otherwise."""
    labelled(root, "shots/a{}.png", "truth/b{}.png")
    lines = [
        f"{root}/shots/a{i}.png,{root}/truth/b{i}.png,{'valid' if i == 3 else 'train'},1\n"
        for i in range(4)
    ]
    (root / "pairs.csv").write_text("photo,truth,fold,weight\n" + "".join(lines))


def lists_of_pairs(root):
    """PASCAL VOC's for DeepLab, with a slash before each."""
    labelled(root, "JPEGImages/x{}.jpg", "SegmentationClassAug/x{}.png")
    for name, numbers in (("train_aug", (0, 1)), ("val", (2, 3))):
        lines = [f"/JPEGImages/x{i}.jpg /SegmentationClassAug/x{i}.png\n" for i in numbers]
        (root / f"{name}.txt").write_text("".join(lines))


def lists_of_names(root):
    labelled(root, "JPEGImages/x{}.jpg", "SegmentationClassAug/x{}.png")
    for name, stems in (("train_aug", "x0\nx1\n"), ("val_id", "x2\n"), ("trainval", "x0\nx2\n")):
        (root / f"{name}.txt").write_text(stems)


def times_of_a_sensor(root):
    """TUM's sequences, whose images and depth have times of their own for names."""
    with_depth(root, "rgb/{}.10.png", "depth/{}.25.png", lambda x: np.uint16(x * 1000))
    lines = [f"{i}.10 rgb/{i}.10.png {i}.25 depth/{i}.25.png\n" for i in range(4)]
    (root / "associations.txt").write_text("".join(lines))


def diode(root):
    """Masks of 0 and 1 that say where depth is measured, and are no classes."""
    with_depth(root, "val/scan_{0}/{0}.png", "val/scan_{0}/{0}_depth.npy", lambda x: x[..., None])
    for i in range(4):
        mask = trees.scene(i)[1] > 0
        trees.save(root / f"val/scan_{i}/{i}_depth_mask.npy", mask)


def masks_of_three_values(root):
    with_depth(root, "photos/{}.jpg", "depth/{}.npy", lambda x: x)
    with_depth(root, "photos/{}.jpg", "masks/{}_depth_mask.png", lambda x: np.uint8(x) % 3)


def a_mask_in_a_csv(root):
    with_depth(root, "a/{}.jpg", "b/x{}_depth.npy", lambda x: x)
    with_depth(root, "a/{}.jpg", "b/y{}_depth_mask.png", lambda x: np.uint8(x >= 2) * 255)
    lines = [f"a/{i}.jpg,b/x{i}_depth.npy,b/y{i}_depth_mask.png\n" for i in range(4)]
    (root / "pairs.csv").write_text("".join(lines))


def rotated_bits(root):
    def stored(metres):
        millimetres = np.uint16(metres * 2200)
        return millimetres << 3 | millimetres >> 13

    with_depth(root, "kv2/{0}/image/{0}.jpg", "kv2/{0}/depth_bfx/{0}.png", stored)


def panoptic(root):
    """COCO's: colours that number what is seen in each image, in folders called so."""
    for split in ("train2017", "val2017"):
        labelled(
            root,
            f"images/{split}/{{}}.jpg",
            f"annotations/panoptic_{split}/{{}}.png",
            label_of=lambda x: np.stack([np.uint8(x) * 50, np.uint8(x + 3), np.uint8(x * 0)], -1),
        )


def versions(root):
    """Mapillary Vistas, whose classes come in two versions."""
    for split in ("training", "validation"):
        for version in (1, 2):
            labelled(
                root,
                f"{split}/images/{{}}.jpg",
                f"{split}/v{version}.0/labels/{{}}.png",
                label_of=lambda x, version=version: np.uint8(x[::-1] if version > 1 else x),
            )


def normals_of_cameras(root):
    """Hypersim's, which has them in coordinates of the scene, too."""
    for i in range(4):
        photo, classes, _ = trees.scene(i)
        normals = np.stack([0.1 * classes, 0.2 + 0 * classes, 1 + 0 * classes], -1)
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        trees.save(root / f"a/scene_final_preview/frame.000{i}.color.jpg", photo)
        for name in ("normal_bump_cam", "normal_cam", "normal_world"):
            trees.save(root / f"a/scene_geometry_hdf5/frame.000{i}.{name}.npy", normals)


def overlays(root):
    labelled(root, "all/{}.png", "all/{}_mask.png")
    labelled(root, "all/{}.png", "all/{}_overlay.png", label_of=lambda x: trees.scene(9)[0])


def in_three_channels(root):
    labelled(root, label_of=lambda x: np.stack([np.uint8(x)] * 3, -1))


def jpegs_not_as_called(root):
    """Saliency in colours, normals in grey."""
    labelled(root)
    labelled(root, "saliency/x{}.jpg")
    for i in range(4):
        trees.save(root / f"normals/x{i}.jpg", trees.scene(i)[0][..., 0])


DESCRIBED = {
    "jpegs_not_as_called": (
        jpegs_not_as_called,
        "note: saliency: saliency/{stem}.jpg hold three channels of many colours: left out",
        "note: normals: normals/{stem}.jpg hold few numbers: left out",
    ),
    "unicode_in_two_ways": (
        lambda root: labelled(
            root, "größe/é{}.png", unicodedata.normalize("NFD", "größe/é{}_L.png")
        ),
        "3 training and 1 validation samples",
        "semantic: class ids 0 to 3, 4 found, none missing, 0 % unlabelled, in 4 files",
    ),
    "floats_as_labels": (
        lambda root: labelled(
            root, label="labels/x{}.npy", label_of=lambda x: np.where(x == 3, np.nan, x)
        ),
        "class ids 0 to 2, 3 found, none missing, 25 % unlabelled",
    ),
    "labels_below_none": (
        lambda root: labelled(
            root, label="labels/x{}.npy", label_of=lambda x: np.where(x == 3, -100, x)
        ),
        '"ignore_label": -100',
        "class ids 0 to 2, 3 found, none missing, 25 % unlabelled",
    ),
    "labels_of_one_channel": (
        lambda root: labelled(root, label="labels/x{}.npy", label_of=lambda x: x[..., None]),
        '"semantic": {}',
        "class ids 0 to 3, 4 found",
    ),
    "labels_beside_alpha": (
        lambda root: labelled(
            root, label_of=lambda x: np.stack([np.uint8(x), np.full(x.shape, 255, np.uint8)], -1)
        ),
        '"semantic": {}',
        "class ids 0 to 3, 4 found",
    ),
    "depth_below_none": (
        lambda root: with_depth(
            root, "rgb/{}.jpg", "depth/{}.npy", lambda x: np.where(x < 2, np.float32(-1), x)
        ),
        '"ignore": [-1.0]',
        "75 % of the pixels measured",
    ),
    "panoptic": (
        panoptic,
        '"instance": "annotations/panoptic_{split}2017/{stem}.png"',
        '"each_colour": true',
        "4 training and 4 validation samples",
    ),
    "versions": (
        versions,
        '"train": "training/v1.0/labels/{stem}.png"',
        "--config.tasks=\"('semantic', 'semantic:v2')\"",
    ),
    "normals_of_cameras": (
        normals_of_cameras,
        '"normals": "a/scene_geometry_hdf5/frame.{stem}.normal_cam.npy"',
        "normal_{stem2}_cam.npy is of 4 images, too",
    ),
    "vkitti": (
        lambda root: with_depth(
            root,
            "vkitti_2.0.3_rgb/Scene01/frames/rgb/Camera_0/rgb_0000{}.jpg",
            "vkitti_2.0.3_depth/Scene01/frames/depth/Camera_0/depth_0000{}.png",
            lambda x: np.uint16(x * 100),
        ),
        '"scale": 100}',
    ),
    "overlays": (
        overlays,
        "3 training and 1 validation samples",
        '"leave_out": [\n    "all/{stem}_overlay.png"\n  ]',
        "--config.tasks=\"('semantic',)\"",
    ),
    "in_three_channels": (in_three_channels, '"semantic": {}', "class ids 0 to 3, 4 found"),
    "below_a_folder_of_images": (
        lambda root: labelled(
            root, "AerialImages/train/images/{}.tif", "AerialImages/train/gt/{}.tif"
        ),
        '"semantic": "AerialImages/train/gt/{stem}.tif"',
    ),
    "of_no_image": (
        lambda root: [
            with_depth(root, "Image{}.png", "Depth{}.npy", lambda x: x),
            labelled(root, "Image{}.png", "Index{}.png"),
        ],
        "note: semantic: {stem}.png belong to no image, by their names: left out",
    ),
    "diode": (
        diode,
        '"valid:depth": "val/**/{stem}_depth_mask.npy"',
        "75 % of the pixels measured",
        "note: depth: taken for not valid where val/**/{stem}_depth_mask.npy is 0",
        "--config.tasks=\"('depth',)\"",
    ),
    "masks_of_three_values": (
        masks_of_three_values,
        "note: depth: masks/{stem}_depth_mask.png may say where there is truth, and are not two",
        "100 % of the pixels measured",
    ),
    "a_mask_in_a_csv": (
        a_mask_in_a_csv,
        '"columns": ["image", "depth", "valid:depth"]',
        "75 % of the pixels measured",
    ),
    "rotated_bits": (rotated_bits, '"depth": {"rotated": 3, "scale": 1000}', "max 9.895 m"),
    "pairs_in_a_csv": (
        pairs_in_a_csv,
        "3 training and 1 validation samples\n",
        '"columns": {"image": "photo", "semantic": "truth", "split": "fold"}',
    ),
    "lists_of_pairs": (
        lists_of_pairs,
        "2 training and 2 validation samples\n",
        '"files": {"train": "train_aug.txt", "val": "val.txt"}',
    ),
    "lists_of_names": (lists_of_names, '"splits": {"train": "train_aug.txt", "val": "val_id.txt"}'),
    "times_of_a_sensor": (
        times_of_a_sensor,
        "3 training and 1 validation",
        '"columns": ["", "image", "", "depth"]',
        '"scale": 1000',
    ),
    "uavid": (
        uavid,
        '"image": "uavid_{split}/**/Images/{stem}.png"',
        "4 training and 2 validation",
    ),
    "duts": (
        duts,
        '"train": "DUTS-TR/DUTS-TR-Image/{stem}.jpg"',
        "saliency: 23 % salient",
        '"saliency": {"threshold": 127}',
        "what is called test is taken for it",
    ),
    "masks_in_jpegs": (
        lambda root: labelled(
            root, label="masks/x{}.jpg", label_of=lambda x: np.uint8(x == 1) * 255
        ),
        "saliency: 25 % salient",
    ),
    "white_is_the_last_class": (
        lambda root: labelled(root, label_of=lambda x: np.uint8([0, 128, 255, 0])[x]),
        '"ids": [0, 128, 255]',
    ),
    "taskonomy": (
        taskonomy,
        '"depth": "depth_zbuffer/here/{stem}_depth_{stem2}.png"',
        '"valid:depth": "mask_valid/here/{stem}_depth_{stem2}.png"',
        '"scale": 512',
        '"semantic": "segment_semantic/here/{stem}_segment_semantic.png"',
    ),
    "drawn_twice": (
        drawn_twice,
        "('semantic', 'semantic:drivable')",
        "semantic: labels/drivable/colormaps/{stem}.png says the same",
    ),
    "words_of_capitals": (
        lambda root: labelled(root, "cam/rgb/rgb_{}.jpg", "cam/classSegmentation/classgt_{}.png"),
        '"semantic": "cam/classSegmentation/classgt_{stem}.png"',
    ),
    "a_sequence": (
        lambda root: with_depth(
            root, "results/frame00{}.jpg", "results/depth00{}.png", lambda x: np.uint16(x * 1000)
        ),
        '"image": "results/frame{stem}.jpg"',
    ),
    "none_can_be_read": (
        none_can_be_read,
        "problem: human_parts: 4 of 4 files",
        "4 samples as pictures",
        "--config.tasks=\"('semantic',)\"",
    ),
    "not_as_called": (
        not_as_called,
        "note: depth: depth/{stem}.png hold three channels of many colours: left out",
        "note: instance: instances/{stem}.png belong to no image, by their names: left out",
        "note: Not read: 1 .mat (normals/x0.mat): save their arrays as npy",
    ),
    "broken": (
        broken,
        "problem: image: 1 of 4 files: images/x0.png: cannot be decoded",
        "problem: semantic: 1 of 4 files: labels/x1.png: cannot be decoded",
        "problem: depth: 1 of 4 files: depth/x2.png: cannot be decoded",
    ),
    "leads_nowhere": (
        leads_nowhere,
        "3 training and 1 validation",
        "images/gone.png",
        "leads nowhere",
    ),
    "named_as_the_camera_did": (
        lambda root: labelled(root, "Images/IMG{}.png", "Labels/IMG{}.png"),
        '"semantic": "Labels/IMG{stem}.png"',
    ),
    "any_suffix": (
        any_suffix,
        '"image": "images/{stem}.*"',
        "5 training and 1 validation",
        "in 6 files of 24×32",
    ),
    "grey": (
        lambda root: labelled(root, "images/x{}.tif", label_of=np.uint8),
        '"image": "images/{stem}.tif"',
    ),
    "grey_of_no_known_name": (
        lambda root: [
            trees.save(path, np.asarray(Image.open(path).convert("L")))
            for path in (labelled(root, "scans/x{}.png"), *sorted(root.glob("scans/*")))[1:]
        ],
        '"image": "scans/{stem}.png"',
    ),
    "kitti": (kitti, '"scale": 256', "proj_depth/groundtruth/image_02"),
    "depth_of_8_bits": (
        lambda root: with_depth(root, "rgb/{}.jpg", "depth/{}.png", lambda x: np.uint8(x * 25.5)),
        "note: depth: 8 bits, whose unit nothing tells",
        "depth: min 0.9804",
    ),
    "multiples": (
        lambda root: labelled(root, label_of=lambda classes: np.uint8(classes * 60)),
        '"ids": [0, 60, 120, 180]',
        "multiples of 60",
        "class ids 0 to 3, 4 found",
    ),
    "turned": (turned, "problem: semantic: 4 of 4 files: images/x0.jpg: its EXIF orientation (6)"),
    "of_other_sizes": (of_other_sizes, '"stretch": true', "of other proportions: stretched"),
    "two_cameras": (two_cameras, "training/image_3/{stem}.png, 4 files, are photos as well"),
    "heads_by_folder": (heads_by_folder, "('semantic', 'semantic:rooms')"),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_what_is_told_of(name, tmp_path, monkeypatch, capsys):
    make, *told = DESCRIBED[name]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    main(["describe-data", name])
    text = capsys.readouterr().out
    for line in told:
        assert line in text, text


def test_of_many_text_files_some_are_read(tmp_path, monkeypatch, capsys):
    """Boxes of each image, and tables: of those named alike all are read where some are tables."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    labelled(root, "shots/a{}.png", "truth/b{}.png")
    for i in range(300):
        for name in (f"boxes/{i:06}.txt", f"train_{i:06}.txt"):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text("0 0.5 0.5 0.1 0.2\n")
    (root / "list.txt").write_text("".join(f"shots/a{i}.png truth/b{i}.png\n" for i in range(4)))
    read = []
    rows_of = guess_table.rows_of
    monkeypatch.setattr(guess_table, "rows_of", lambda *x: read.append(x) or rows_of(*x))
    main(["describe-data", "data"])
    assert '"files": "list.txt",' in capsys.readouterr().out
    assert len(read) <= 2 * streams.SOME_ALIKE + 1
    read.clear()
    for i in range(300):
        (root / f"boxes/{i:06}.txt").write_text((root / "list.txt").read_text())
    main(["describe-data", "data"])
    assert len(read) > 300


def test_a_dataset_json_of_another_program(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    labelled(tmp_path / "data")
    (tmp_path / "data/dataset.json").write_text('{"numTraining": 4}')
    with pytest.raises(UserError, match="unknown field 'numTraining'"):
        main(["describe-data", "data"])
    main(["describe-data", "data", "--write", "mine.json"])
    assert "--config.data.description=mine.json" in capsys.readouterr().out
    assert json.loads(Path("mine.json").read_text())["files"]["image"] == "images/{stem}.png"


def nothing_but(name, content=b"0" * 99):
    def make(root):
        labelled(root, label="gone/{}.png")
        for path in (root / "gone").iterdir():
            path.unlink()
        for i in range(4):
            path = root / name.format(i)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)

    return make


def lossy(root):
    labelled(root, label="masks/x{}.jpg")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (nothing_but("depth/x{}.hdf5"), r"4 \.hdf5 \(depth/x0\.hdf5\): save their arrays as npy"),
        (nothing_but("instances_{}.json", b"{}"), r"4 \.json .*: draw their outlines into PNGs"),
        (nothing_but("labels/x{}.txt"), r"4 \.txt \(labels/x0\.txt\): lists, or outlines"),
        (
            lambda root: labelled(root, label="masks/x{}.gif"),
            "semantic: masks/{stem}.gif are of a kind that is read of images alone: save",
        ),
        (nothing_but("labels.zip"), r"1 \.zip \(labels\.zip\): unpack them"),
        (
            lambda root: labelled(
                root, label="labels/x{}.npy", label_of=lambda x: np.eye(4, dtype=np.uint8)[x]
            ),
            r"labels/{stem}\.npy are not read \(shape \(24, 32, 4\), expected \[H, W\]",
        ),
        (lossy, "semantic: masks/{stem}.jpg are JPEGs, which do not keep numbers of classes"),
    ],
)
def test_targets_that_are_not_read(make, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "data")
    with pytest.raises(UserError, match=told):
        main(["describe-data", "data"])


def test_a_description_is_held_against_the_sizes_of_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    of_other_sizes(tmp_path / "data")
    files = {"image": "images/{stem}.png", "semantic": "labels/{stem}.png"}
    (tmp_path / "data/dataset.json").write_text(json.dumps({"files": files}))
    main(["describe-data", "data"])
    text = capsys.readouterr().out
    assert "4 of 4 files: labels/x0.png: 24×20 (H×W), expected 24×32 (H×W) as its image" in text
