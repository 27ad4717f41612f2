"""Automatic masks: what is found is what the predictor says at the grid; grids, crops, refusals."""

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy.ndimage import label

import talora_jax
from talora_jax.errors import UserError
from talora_jax.inference.masks.automatic import AutomaticMasks
from talora_jax.inference.masks.crops import crops_of, point_grid
from talora_jax.inference.prompts import SamPredictor

RNG = np.random.default_rng(0)
IMAGE = np.kron(RNG.integers(0, 256, (6, 9, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # 48×72
# No mask is left out. (Logits of random weights are small.)
ALL = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 1}
ALL |= {"stability_score_offset": 0.02}


@pytest.fixture(scope="module")
def sam(nano_base):
    return talora_jax.load_sam(nano_base)


def test_masks_are_the_predictors_at_every_point(sam):
    found = AutomaticMasks(sam, points_per_side=3, points_per_batch=5, **ALL).generate(IMAGE)
    points = (point_grid(3) * [72, 48]).tolist()
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    prediction = predictor.predict([[point] for point in points], [[1]] * 9)
    logits, iou = prediction.logits(), prediction.iou
    assert len(found) == iou.size == 27
    order = np.argsort(-iou.ravel(), kind="stable")
    for one, i in zip(found, order, strict=True):
        expected = logits.reshape(-1, 48, 72)[i]
        assert one.predicted_iou == pytest.approx(iou.ravel()[i], abs=1e-5)
        assert one.point.tolist() == points[i // 3]
        # But for pixels whose logits are zero within rounding.
        sure = np.abs(expected) > 1e-4
        np.testing.assert_array_equal(one.mask()[sure], (expected > 0)[sure])
        assert one.area == one.mask().sum()
        stability = (expected > 0.02).sum() / max((expected > -0.02).sum(), 1)
        assert one.stability_score == pytest.approx(stability, abs=2e-3)
        assert one.crop_box.tolist() == [0, 0, 72, 48]


def test_thresholds_leave_out_what_they_say(sam):
    every = AutomaticMasks(sam, points_per_side=3, **ALL).generate(IMAGE)
    # Between two values, so that rounding does not matter.
    iou = np.sort([one.predicted_iou for one in every])[12:14].mean()
    stability = np.sort([one.stability_score for one in every])[8:10].mean()
    assert 0 < iou < 1 and 0 < stability < 1
    options = ALL | {"pred_iou_thresh": iou, "stability_score_thresh": stability}
    found = AutomaticMasks(sam, points_per_side=3, **options).generate(IMAGE)
    wanted = [o for o in every if o.predicted_iou > iou and o.stability_score >= stability]
    assert 0 < len(wanted) < 18
    assert [one.runs.counts.tolist() for one in found] == [
        one.runs.counts.tolist() for one in wanted
    ]


def test_batches_do_not_matter(sam):
    by = [
        AutomaticMasks(sam, points_per_side=3, points_per_batch=n, **ALL).generate(IMAGE)
        for n in (2, 64)
    ]
    for a, b in zip(*by, strict=True):
        assert a.predicted_iou == pytest.approx(b.predicted_iou, abs=1e-5)
        assert (a.mask() != b.mask()).sum() <= 2


def test_crops_are_images_of_their_own(sam, monkeypatch):
    options = ALL | {"crop_nms_thresh": 1, "crop_n_points_downscale_factor": 2}
    # Masks of random weights fill a crop to its edges.
    monkeypatch.setattr("talora_jax.inference.masks.automatic.is_cut_off", lambda *_: False)
    found = AutomaticMasks(sam, points_per_side=4, crop_n_layers=1, **options).generate(IMAGE)
    crops = {tuple(one.crop_box.tolist()) for one in found}
    boxes = [tuple(crop.box.tolist()) for crop in crops_of((48, 72), 1, 512 / 1500)]
    assert crops <= set(boxes) and len(boxes) == 5
    # Smaller crops first.
    sizes = [np.prod(one.crop_box[2:] - one.crop_box[:2]) for one in found]
    assert sizes == sorted(sizes)
    assert len(crops) == 5 and len(found) == 48 + 4 * 12
    for one in found:
        x0, y0, x1, y1 = one.crop_box
        outside = one.mask().copy()
        outside[y0:y1, x0:x1] = False
        assert not outside.any()
        if one.area:
            rows, columns = np.nonzero(one.mask())
            ends = [columns.min(), rows.min(), columns.max(), rows.max()]
            assert one.box.tolist() == ends
        assert x0 <= one.point[0] <= x1 and y0 <= one.point[1] <= y1


def test_small_regions_go(sam):
    options = {"points_per_side": 3, **ALL, "crop_nms_thresh": 1}
    before = AutomaticMasks(sam, **options).generate(IMAGE)
    after = AutomaticMasks(sam, min_mask_region_area=30, **options).generate(IMAGE)

    def smallest(mask):
        return min(np.bincount(label(mask, np.ones((3, 3)))[0].ravel())[1:], default=99)

    assert min(smallest(one.mask()) for one in before) < 30
    for one in after:
        islands = label(one.mask(), np.ones((3, 3)))[1]
        assert islands == 1 or smallest(one.mask()) >= 30
        rows, columns = np.nonzero(one.mask())
        assert one.box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_records_are_segment_anythings(sam):
    one = AutomaticMasks(sam, points_per_side=1, **ALL).generate(Image.fromarray(IMAGE))[0]
    record = one.record()
    assert list(record) == [
        *("segmentation", "area", "bbox", "predicted_iou"),
        *("point_coords", "stability_score", "crop_box"),
    ]
    x0, y0, x1, y1 = one.box
    assert record["bbox"] == [x0, y0, x1 - x0, y1 - y0] and record["crop_box"] == [0, 0, 72, 48]
    assert record["point_coords"] == [[36, 24]]
    assert record["segmentation"] == {"size": [48, 72], "counts": one.runs.counts.tolist()}


def test_images_of_many_sizes_share_a_program(sam):
    masks = AutomaticMasks(sam, points_per_side=2, **ALL)
    for size in ((48, 72), (20, 64), (100, 30)):
        for one in masks.generate(np.full((*size, 3), 90, np.uint8)):
            assert one.mask().shape == size
    assert masks._decode.func._cache_size() == 1


def test_native_aspect(nano_base):
    sam = talora_jax.load_sam(nano_base)
    sam = nnx.merge(*nnx.split(sam))
    sam.native_aspect = True
    found = AutomaticMasks(sam, points_per_side=2, **ALL).generate(IMAGE)
    assert len(found) == 12 and all(one.mask().shape == (48, 72) for one in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": 0}, "points_per_side: 0; expected a whole number at least 1"),
        ({"points_per_side": 2.5}, "points_per_side: 2.5; expected a whole number"),
        ({"points_per_side": None}, "points_per_side or point_grids, one of them"),
        ({"point_grids": [[[0.5, 0.5]]]}, "points_per_side or point_grids, one of them"),
        (
            {"points_per_side": None, "point_grids": [[[320, 200]]]},
            "point_grids.0. with values from 200.0 to 320.0; .* divide pixels",
        ),
        (
            {"points_per_side": None, "point_grids": [[0.5, 0.5]]},
            r"point_grids.0. of shape \[2\]; expected an array \[n, 2\]",
        ),
        (
            {"points_per_side": None, "point_grids": 5},
            r"point_grids: an int; expected a list with one grid a layer, each an array \[n, 2\]",
        ),
        (
            {"points_per_side": None, "point_grids": [[[0.5, 0.5]]], "crop_n_layers": 1},
            "point_grids: 1 of them; expected 2",
        ),
        ({"pred_iou_thresh": 88}, "pred_iou_thresh: 88; expected a number from 0 to 1"),
        ({"stability_score_thresh": None}, "stability_score_thresh: None; expected a number"),
        ({"stability_score_offset": np.nan}, "stability_score_offset: nan; expected a number"),
        ({"crop_n_layers": 9}, "crop_n_layers: 9; expected a whole number from 0 to 4"),
        ({"crop_overlap_ratio": 1}, "crop_overlap_ratio: 1; expected a number from 0 to 0.99"),
        ({"min_mask_region_area": "5"}, "min_mask_region_area: a str; expected a number"),
        (
            {"points_per_side": 3, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
            "points_per_side=3 divided by .*=2 once a layer leaves no point for layer 2 of 2",
        ),
    ],
)
def test_refusals(sam, options, message):
    with pytest.raises(UserError, match=message):
        AutomaticMasks(sam, **options)


def test_no_sam(nano_base):
    with pytest.raises(UserError, match="AutomaticMasks: a str; expected a Sam"):
        AutomaticMasks(str(nano_base))
    with pytest.raises(UserError, match="expected"):
        AutomaticMasks(talora_jax.load_sam(nano_base)).generate([1, 2])
