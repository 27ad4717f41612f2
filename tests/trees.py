"""Small data sets in the layouts that people have them in: scenes of blocks, whose classes and
depths go with the colours of the image."""

import numpy as np
from PIL import Image

SIZE = (24, 32)
VOID = 255


def scene(seed, size=SIZE, classes=4):
    """An image, class indices and depth in metres."""
    rng = np.random.default_rng(seed)
    height, width = size
    blocks = (np.arange(height) * 3 // height)[:, None] * 4 + np.arange(width) * 4 // width
    label = rng.permuted(np.arange(12) % classes)[blocks]
    colour = np.random.default_rng(0).integers(30, 226, (64, 3))[label]
    image = (colour + rng.integers(-25, 26, (*size, 3))).astype(np.uint8)
    depth = 1 + label + rng.uniform(0, 0.5, size)
    return image, label, depth.astype(np.float32)


def save(path, values, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        return np.save(path, values)
    if path.suffix == ".npz":
        return np.savez_compressed(path, depth=values)
    if path.suffix == ".exr":
        import OpenEXR

        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        return OpenEXR.File(header, {"Z": np.ascontiguousarray(values)}).write(str(path))
    image = Image.fromarray(values)
    if palette is not None:
        image = Image.fromarray(values, "P")
        image.putpalette(palette.tobytes())
    return image.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def camvid(root):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(count):
            image, label, _ = scene(i, classes=12)
            save(root / f"{split}/{split[0]}0001TP_00{i}690.png", image)
            save(root / f"{split}annot/{split[0]}0001TP_00{i}690.png", label.astype(np.uint8))


def cityscapes(root):
    ids = np.uint8([7, 8, 11, 4])
    for split, cities in (("train", ("aachen", "ulm")), ("val", ("lindau",)), ("test", ("bonn",))):
        for city in cities:
            for i in range(2):
                image, label, depth = scene(i)
                name = f"{split}/{city}/{city}_{i:06}_000019"
                save(root / f"leftImg8bit/{name}_leftImg8bit.png", image)
                colour = np.uint8([[128, 64, 128], [244, 35, 232], [70, 70, 70], [0, 0, 0]])
                save(root / f"gtFine/{name}_gtFine_color.png", colour[label])
                save(root / f"gtFine/{name}_gtFine_labelIds.png", ids[label])
                save(root / f"gtFine/{name}_gtFine_instanceIds.png", ids[label].astype(np.uint16))
                (root / f"gtFine/{name}_gtFine_polygons.json").write_text("{}")
                pixels = (256 * 30 / depth + 1).astype(np.uint16)
                save(root / f"disparity/{name}_disparity.png", pixels)


def colour_masks(root):
    colour = np.uint8([[128, 64, 128], [70, 130, 180], [0, 128, 0], [0, 0, 0]])
    for i in range(4):
        image, label, _ = scene(i)
        save(root / f"photos/site_{i:02}.jpg", image)
        save(root / f"masks/site_{i:02}_mask.png", colour[label])
    (root / "classes.csv").write_text(
        "name,r,g,b\nroad,128,64,128\nsky,70,130,180\ntree,0,128,0\nvoid,0,0,0\n"
    )


def hypersim(root, suffix):
    for number in (1, 2):
        for camera in ("cam_00", "cam_01"):
            for i in range(2):
                image, label, depth = scene(10 * number + i)
                place = root / f"ai_001_00{number}/images/scene_{camera}"
                save(root / f"{place}_final_preview/frame.{i:04}.color.jpg", image)
                save(root / f"{place}_geometry_hdf5/frame.{i:04}.depth_meters{suffix}", depth)
    (root / "ai_001_001/_detail").mkdir()
    (root / "ai_001_001/_detail/metadata_scene.csv").write_text("a,b\n1,2\n")


def ade20k(root):
    for split, count in (("training", 3), ("validation", 2)):
        for i in range(count):
            image, label, _ = scene(i)
            save(root / f"images/{split}/ADE_{split[:5]}_0000000{i}.jpg", image)
            save(
                root / f"annotations/{split}/ADE_{split[:5]}_0000000{i}.png", label.astype(np.uint8)
            )


def voc(root):
    palette = np.zeros((256, 3), np.uint8)
    palette[:4] = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    for i in range(6):
        image, label, _ = scene(i)
        save(root / f"JPEGImages/2007_00003{i}.jpg", image)
        if i < 5:
            label[:2] = VOID
            for kind in ("Class", "Object"):
                path = root / f"Segmentation{kind}/2007_00003{i}.png"
                save(path, label.astype(np.uint8), palette)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000030\n2007_000031\n2007_000032\n")
    (lists / "val.txt").write_text("2007_000033\n2007_000034\n")
    (root / "ImageSets/Main").mkdir()
    (root / "ImageSets/Main/train.txt").write_text("2007_000035\n")
    (root / "ImageSets/Main/val.txt").write_text("2007_000035\n")


def sun_rgbd(root):
    for i in range(4):
        image, _, depth = scene(i)
        place = root / f"kv1/NYUdata/NYU000{i}"
        save(place / f"image/NYU000{i}.jpg", image)
        for folder in ("depth", "depth_bfx"):
            save(place / f"{folder}/NYU000{i}_abc.png", (depth * 1000).astype(np.uint16))
        (place / "intrinsics.txt").write_text("518 0 325\n0 519 253\n0 0 1\n")


def scannet(root):
    ids = np.uint16([0, 4, 40, 1163])
    for number in (0, 1):
        for i in range(2):
            image, label, _ = scene(10 * number + i, (48, 64))
            place = root / f"scene0000_0{number}"
            save(place / f"color/{i}.jpg", image)
            _, _, depth = scene(10 * number + i)
            save(place / f"depth/{i}.png", (depth * 1000).astype(np.uint16))
            save(place / f"label/{i}.png", ids[label])
            (place / "pose").mkdir(exist_ok=True)
            (place / f"pose/{i}.txt").write_text("1 0 0 0\n")


TREES = {
    "camvid": camvid,
    "cityscapes": cityscapes,
    "colour_masks": colour_masks,
    "hypersim_exr": lambda root: hypersim(root, ".exr"),
    "hypersim_npz": lambda root: hypersim(root, ".npz"),
    "hypersim_npy": lambda root: hypersim(root, ".npy"),
    "ade20k": ade20k,
    "voc": voc,
    "sun_rgbd": sun_rgbd,
    "scannet": scannet,
}
