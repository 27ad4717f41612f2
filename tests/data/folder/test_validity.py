"""Masks of validity beside targets: what they leave out has no truth, in targets and metrics."""

import jax.numpy as jnp
import numpy as np
import pytest

from talora_jax.data.folder.streams import streams_of
from talora_jax.tasks import TARGETS, make_task


def mask_of(index):
    return np.random.default_rng(100 + index).random((24, 32)) < 0.6


@pytest.fixture
def masked(planes, root):
    """Masks of depth as npy of 0 and 1, and of labels as PNGs of 0 and 255."""
    for index in range(5):
        planes.save(root / f"valid-depth/{index}.npy", mask_of(index).astype(np.float32))
        planes.save(root / f"valid-semantic/{index}.png", np.uint8(mask_of(index)) * 255)
    return root


def test_metrics_are_of_valid_pixels(planes, masked):
    planes.write_json(masked, {"splits": {"train": ["0", "1"], "val": ["2", "3", "4"]}})
    dataset = planes.open_root(masked, ("depth",))
    source = dataset.splits["val"]
    target = np.stack([source[i]["depth"] for i in range(3)])
    prediction = np.random.default_rng(0).uniform(1, 2, target.shape).astype(np.float32)
    depth = make_task("depth", class_names=())
    found = depth.summarise(depth.metrics(jnp.asarray(prediction), jnp.asarray(target)))
    valid = np.stack([mask_of(i) for i in (2, 3, 4)])
    stored = (planes.plane_depth() * 10_000).round() / 10_000
    error = np.abs(prediction[..., 0] - stored)[valid]
    truth = np.broadcast_to(stored, valid.shape)[valid]
    expected = {
        "pooled/abs_err": error.mean(),
        "pooled/rel_err": (error / truth).mean(),
        "pooled/rmse": np.sqrt((error**2).mean()),
    }
    assert expected == pytest.approx({name: found[name] for name in expected}, rel=1e-5)


def test_what_is_not_valid_is_unlabelled_in_all_that_is_made_of_it(planes, masked):
    dataset = planes.open_root(masked)
    assert set(dataset.tasks) == {"semantic", "depth", "normals", "edges"}
    plain = planes.labels().astype(np.int32)
    for row, sample in enumerate(planes.samples(dataset)):
        valid = sample["depth"][..., 0] > 0
        assert any((valid == mask_of(index)).all() for index in range(5)), row
        np.testing.assert_array_equal(
            sample["semantic"], np.where(valid & (plain != 255), plain, -1)
        )
        assert (sample["normals"][~valid] == 0).all()
        assert (sample["edges"][~valid] == TARGETS["edges"].unlabelled).all()
    # Of another ignore_label, nothing is prepared anew, and what is not valid stays so.
    sample = planes.open_root(masked, ignore_label=255).splits["val"][0]
    assert (sample["semantic"][sample["depth"][..., 0] == 0] == -1).all()


def test_a_mask_is_of_the_contents(planes, masked):
    """What was prepared with other masks, or without, is not taken for it."""
    before = planes.open_root(masked, ("depth",))
    assert {"depth/0.png", "valid-depth/0.npy"} <= {
        name for split in ("train", "val") for name in before.contents[split]
    }
    shares = [(s["depth"] > 0).mean() for s in planes.samples(before)]
    planes.save(masked / "valid-depth/0.npy", np.ones((24, 32), bool))
    changed = [
        (s["depth"] > 0).mean() for s in planes.samples(planes.open_root(masked, ("depth",)))
    ]
    assert sum(a != b for a, b in zip(shares, changed, strict=True)) == 1 and max(changed) == 1
    for path in (masked / "valid-depth").iterdir():
        path.unlink()
    (masked / "valid-depth").rmdir()
    whole = planes.samples(planes.open_root(masked, ("depth",)))
    assert all((sample["depth"] > 0).all() for sample in whole)


def test_described(planes, masked):
    """One mask for two targets, that means the opposite, is larger than 1 and lies elsewhere."""
    for index in range(5):
        planes.save(masked / f"masks/{index}_no.png", np.uint8(~mask_of(index)) * 200)
    files = {name: f"{name}/{{stem}}.png" for name in ("image", "semantic", "depth")}
    masks = {f"valid:{name}": "masks/{stem}_no.png" for name in ("semantic", "depth")}
    read = dict.fromkeys(masks, {"invert": True, "threshold": 100})
    planes.write_json(masked, {"files": files | masks, "read": read})
    for sample in planes.samples(planes.open_root(masked, ("semantic", "depth"))):
        valid = sample["depth"][..., 0] > 0
        assert any((valid == mask_of(index)).all() for index in range(5))
        assert (sample["semantic"][~valid] == -1).all() and (sample["semantic"][valid] >= 0).any()


def test_a_head_has_its_own(planes, masked):
    for index in range(5):
        planes.save(masked / f"semantic-rooms/{index}.png", np.uint8(planes.labels() == 1))
        planes.save(masked / f"valid-semantic-rooms/{index}.png", np.uint8(mask_of(index)))
    for sample in planes.samples(planes.open_root(masked, ("semantic:rooms",))):
        valid = sample["semantic:rooms"] >= 0
        assert any((valid == mask_of(index)).all() for index in range(5))


def test_partly(planes, masked):
    """An image without the target needs no mask; one with it does."""
    (masked / "depth/1.png").unlink()
    (masked / "valid-depth/1.npy").unlink()
    planes.open_root(masked, partly=True)
    (masked / "valid-depth/2.npy").unlink()
    told = planes.refused(masked, partly=True)
    assert told.endswith("image/2.png: valid-depth/ has no file of stem '2', expected one")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.ones((24, 31), bool), "24×31 (H×W), expected 24×32 as depth has"),
        (np.ones((24, 32, 3), np.uint8), "shape (24, 32, 3), expected [H, W]"),
        (np.full((24, 32), "a"), "<U1, expected numbers"),
    ],
)
def test_refused(planes, masked, values, told):
    planes.save(masked / "valid-depth/3.npy", values)
    found = planes.refused(masked)
    assert f"depth/3.png: its mask of validity 3.npy: {told}" in found and "Traceback" not in found


def test_a_mask_of_nothing_is_refused(planes, masked):
    (masked / "valid-depth").rename(masked / "valid-normals")
    found = planes.refused(masked, ("semantic",))
    assert "files that say where normals is valid (valid:normals), and none of normals" in found
    planes.write_json(masked, {"files": {"image": "image/{stem}.png", "valid": "semantic/{stem}"}})
    assert "unknown target 'valid'" in planes.refused(masked)


@pytest.mark.parametrize(
    ("path", "masks"),
    [
        ("val/scene/1_depth_mask.npy", ("depth",)),
        ("mask_valid/here/1.png", ("depth", "disparity", "normals")),
        ("mask_invalid/1.png", ("depth", "disparity", "normals")),
        ("normals_valid/1.png", ("normals",)),
        ("disparity_masks/1.png", ("disparity",)),
        ("depth_masked/1.png", ()),
        ("valid_masks/1.png", ()),
        ("depth/masks/1.png", ()),
    ],
)
def test_names_of_masks(path, masks):
    (stream,) = streams_of([path])
    assert stream.may_mask == masks
