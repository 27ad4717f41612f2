"""Automatic masks against `segment_anything`'s generator: the same masks in the same order."""

import sys
import types

import numpy as np
import pytest
import scipy.ndimage

from benchmarks.our_masks import smooth_upscaling
from benchmarks.torchvision_stub import torchvision_or_stub
from talora_jax.inference.masks.automatic import AutomaticMasks
from talora_jax.weights.base_file import SHIPPED
from talora_jax.weights.build import load_sam
from weights_convert.__main__ import main

pytestmark = pytest.mark.torch

# No mask is left out.
EVERYTHING = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


@pytest.fixture(scope="module", autouse=True)
def import_torch():
    """Not at the top: the tests must be collected where there is no PyTorch."""
    global torch, SamAutomaticMaskGenerator
    import torch

    with torchvision_or_stub():
        from segment_anything import SamAutomaticMaskGenerator


@pytest.fixture(autouse=True)
def opencv(monkeypatch):
    """The one function that the generator wants of OpenCV."""

    def connected(mask, connectivity):
        assert connectivity == 8
        regions, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        areas = np.array([(regions == i).sum() for i in range(count + 1)])
        return count + 1, regions, areas[:, None], None

    stub = types.ModuleType("cv2")
    stub.connectedComponentsWithStats = connected
    monkeypatch.setitem(sys.modules, "cv2", stub)


@pytest.fixture(scope="module")
def vit_b(official_sam, tmp_path_factory):
    """Random weights of ViT-B's sizes at 1024 pixels, two blocks deep; theirs and ours."""
    folder = tmp_path_factory.mktemp("vit_b")
    official = official_sam(768, 12, 2, (1,))
    smooth_upscaling(official)
    torch.save(official.state_dict(), folder / "sam.pth")
    main([str(folder / "sam.pth"), str(folder / "base.safetensors")])
    return official, load_sam(folder / "base.safetensors")


@pytest.fixture(scope="module")
def small(official_sam, tmp_path_factory):
    """The SAM that comes along, written as a .pth and loaded there; theirs and ours."""
    path = tmp_path_factory.mktemp("small") / "sam.pth"
    main([str(SHIPPED["sam_small"]), str(path)])
    official = official_sam(128, 4, 4, (1, 3), grid=24, patch=12, window=6, decoder=(64, 2, 4, 256))
    official.load_state_dict(torch.load(path, weights_only=True))
    return official, load_sam("sam_small")


def room(size):
    """Things with edges: walls, a floor, a cupboard, a ball."""
    height, width = size
    y, x = np.mgrid[:height, :width] / max(size)
    image = np.stack([180 - 60 * x, 170 - 50 * x, 150 + 0 * x], axis=-1)
    image[y > 0.45] = [120, 80, 50]
    image[(x > 0.1) & (x < 0.35) & (y > 0.2) & (y < 0.55)] = [200, 60, 40]
    image[(x - 0.65) ** 2 + (y - 0.5) ** 2 < 0.012] = [40, 90, 200]
    image[(x - 0.85) ** 2 + (y - 0.2) ** 2 < 0.005] = [240, 230, 90]
    noise = np.random.default_rng(0).integers(-12, 13, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def assert_same_masks(models, image, **options):
    """Returns how many there are; 99 % of them must be equal in every pixel."""
    official, ours = models
    generator = SamAutomaticMaskGenerator(official, output_mode="uncompressed_rle", **options)
    theirs = generator.generate(image)
    found = [mask.record() for mask in AutomaticMasks(ours, **options).generate(image)]
    assert len(found) == len(theirs)
    other = 0
    for a, b in zip(found, theirs, strict=True):
        for key in ("bbox", "crop_box", "point_coords"):
            assert a[key] == b[key], key
        assert a["predicted_iou"] == pytest.approx(b["predicted_iou"], abs=1e-5)
        # A ratio of two numbers of pixels, of which one may lie on a threshold within rounding.
        assert a["stability_score"] == pytest.approx(b["stability_score"], abs=1e-3)
        if a["segmentation"] == b["segmentation"]:
            assert a["area"] == b["area"]
            continue
        other += 1
        x, y = (decoded(record["segmentation"]) for record in (a, b))
        assert (x & y).sum() >= 0.999 * (x | y).sum()
    assert other <= 0.01 * len(found)
    return len(found)


def decoded(runs):
    on = np.arange(len(runs["counts"])) % 2 == 1
    return np.repeat(on, runs["counts"])


def test_vit_b(vit_b):
    assert assert_same_masks(vit_b, room((60, 90)), points_per_side=3, **EVERYTHING) == 27


def test_every_mask_of_the_sam_that_comes_along(small):
    assert assert_same_masks(small, room((192, 256)), points_per_side=12, **EVERYTHING) == 432


def test_thresholds_and_suppression(small):
    options = {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.9, "box_nms_thresh": 0.8}
    assert assert_same_masks(small, room((192, 256)), points_per_side=12, **options) >= 5


def test_crops_and_small_regions(small):
    options = {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "pred_iou_thresh": 0.5}
    options |= {"crop_nms_thresh": 0.8, "stability_score_thresh": 0.7, "min_mask_region_area": 40}
    assert assert_same_masks(small, room((150, 200)), points_per_side=8, **options) > 5


def test_point_grids(small):
    grids = [np.array([[0.2, 0.4], [0.65, 0.5]]), np.array([[0.5, 0.5]])]
    options = {"points_per_side": None, "point_grids": grids, "crop_n_layers": 1}
    options |= {"pred_iou_thresh": 0.3, "stability_score_thresh": 0.3}
    assert assert_same_masks(small, room((100, 140)), **options) > 1
