"""From numbers in an image to masks that can be asked about."""

import dataclasses

import numpy as np
import pytest

from talora_jax.data.masks import AskedMasks, masks_of, numbers_of


@pytest.fixture
def sample():
    """48×64; object 3 fills the left half, 5 a corner of the right one, 7 nearly nothing."""
    instance = np.full((48, 64), -1, np.int32)
    instance[:, :32], instance[:16, 40:], instance[40, 60] = 3, 5, 7
    part = np.where(instance == 3, np.arange(48)[:, None] // 24, -1).astype(np.int32)
    image = np.random.default_rng(0).integers(1, 256, (48, 64, 3), np.uint8)
    depth = np.ones((48, 64, 1), np.float32)
    return {"image": image, "instance": instance, "part": part, "depth": depth}


@pytest.fixture
def asked():
    return AskedMasks(("instance", "part"), 4, 16, (32, 32))


def test_what_labels_too_little_is_no_mask(sample):
    assert numbers_of(sample["instance"], 16).tolist() == [3, 5]
    assert numbers_of(sample["instance"], 1).tolist() == [3, 5, 7]
    sample["instance"][40, 60] = 2**31 - 1
    assert numbers_of(sample["instance"], 1).tolist() == [3, 5, 2**31 - 1]


def test_all_masks_in_the_order_of_their_numbers(sample, asked):
    found = asked.all(sample)
    assert found["asked"].shape == (2, 32, 32) and found["asked"].dtype == np.uint8
    assert found["size"].tolist() == [24, 32]
    assert found["image"].shape == (32, 32, 3) and not found["image"][24:].any()
    assert found["image"].dtype == np.uint8
    instance, part = masks_of(found["asked"], 4)
    assert instance.sum((1, 2)).tolist() == [24 * 16, 8 * 12, 0, 0]
    assert instance[0, :24, :16].all() and instance[1, :8, 20:].all()
    assert part.sum((1, 2)).tolist() == [12 * 16, 12 * 16, 0, 0]
    assert found.keys() == {"image", "size", "asked"}


def test_masks_are_drawn_evenly(sample, asked):
    one = dataclasses.replace(asked, domains=("instance",), count=1)
    rng = np.random.default_rng(0)
    left = [one.draw(sample, rng)["asked"][0, 12, 4] for _ in range(400)]
    assert set(left) == {0, 1} and 150 < sum(map(int, left)) < 250
    assert not dataclasses.replace(one, min_pixels=10_000).draw(sample, rng)["asked"].any()


def test_other_targets_go_along_and_are_unlabelled_in_the_padding(sample, asked):
    sample["semantic"] = np.full((48, 64), 2, np.int32)
    others = dataclasses.replace(asked, others=("depth", "semantic"))
    found = others.draw(sample, np.random.default_rng(0))
    assert found["depth"].shape == (32, 32, 1) and found["semantic"].shape == (32, 32)
    assert (found["depth"][:24] == 1).all() and not found["depth"][24:].any()
    assert (found["semantic"][:24] == 2).all() and (found["semantic"][24:] == -1).all()


@pytest.mark.parametrize(
    ("aspect", "size", "places"), [(0.5, [32, 64], (17, 1)), (2.0, [48, 24], (1, 41))]
)
def test_a_window_is_as_high_and_wide_as_asked_and_lies_anywhere(sample, aspect, size, places):
    sample["image"][..., :2] = np.moveaxis(np.mgrid[:48, :64], 0, -1)
    asked = AskedMasks(("instance",), 4, 16, (48, 64), (aspect, aspect))
    rng = np.random.default_rng(0)
    found = [asked.draw(sample, rng) for _ in range(600)]
    assert all(each["size"].tolist() == size for each in found)
    corners = {tuple(each["image"][0, 0, :2].tolist()) for each in found}
    assert corners == set(np.ndindex(places))


def test_windows_of_every_aspect_keep_image_and_masks_together(sample, asked):
    sample["image"][...] = np.where(sample["instance"] == 3, 200, 50)[..., None]
    asked = dataclasses.replace(asked, aspects=(0.5, 2.0))
    sizes = set()
    for seed in range(20):
        found = asked.draw(sample, np.random.default_rng(seed))
        height, width = found["size"]
        sizes.add((int(height), int(width)))
        assert max(height, width) == 32
        for mask in masks_of(found["asked"], asked.count)[0]:
            assert not mask[height:].any() and not mask[:, width:].any()
            bright = found["image"][..., 0] > 125
            # But for a column that resizing blurs.
            if mask[:height, 0].all():
                assert (bright != mask.astype(bool)).sum() <= 2 * height
    assert min(w / h for h, w in sizes) < 1 < max(w / h for h, w in sizes)
