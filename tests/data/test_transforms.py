"""The augmentation moves an image and its targets together."""

import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talora_jax.data import transforms
from talora_jax.data.folder.normals import normals_from_depth
from talora_jax.data.folder.settings import Intrinsics
from talora_jax.errors import UserError
from talora_jax.tasks import TASKS

SIZES = st.tuples(st.integers(4, 40), st.integers(4, 40))
SEEDS = st.integers(0, 2**32 - 1)
examples = settings(deadline=None, max_examples=25)


def make_sample(size, seed):
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(*size, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[rng.random(size) < 0.2] = 0
    return {
        "image": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        "semantic": rng.integers(-1, 5, size, dtype=np.int32),
        "depth": rng.uniform(0.5, 5, (*size, 1)).astype(np.float32),
        "disparity": rng.uniform(0.1, 2, (*size, 1)).astype(np.float32),
        "normals": normals,
        "human_parts": rng.integers(-1, 7, size, dtype=np.int32),
        "saliency": rng.integers(-1, 2, (*size, 1)).astype(np.float32),
        "edges": rng.integers(-1, 2, (*size, 1)).astype(np.float32),
    }


LABELS = ("semantic", "human_parts", "saliency", "edges")


def test_samples_here_have_every_task():
    sample = make_sample((4, 5), 0)
    assert set(sample) == {"image", *TASKS}
    for name, task in TASKS.items():
        assert sample[name].dtype == task.target_dtype
        assert sample[name].shape == (4, 5, *task.target_shape)


def ramp(size):
    """An image and a depth map that say where each of their pixels came from."""
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)
    return {"image": image, "depth": (1 + x)[..., None].astype(np.float32), "semantic": y}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@examples
@given(SIZES, SEEDS)
def test_mirror_twice_is_nothing(size, seed):
    sample = make_sample(size, seed)
    assert_equal(transforms.mirror(transforms.mirror(sample)), sample)


@examples
@given(SIZES, SEEDS)
def test_mirror_moves_every_pixel_alike(size, seed):
    sample = make_sample(size, seed)
    mirrored = transforms.mirror(sample)
    for name in ("image", "depth", "disparity", *LABELS):
        np.testing.assert_array_equal(mirrored[name], np.flip(sample[name], 1))
    np.testing.assert_array_equal(mirrored["normals"][..., 0], -sample["normals"][:, ::-1, 0])
    np.testing.assert_array_equal(mirrored["normals"][..., 1:], sample["normals"][:, ::-1, 1:])


def test_mirrored_normals_are_those_of_the_mirrored_depth():
    y, x = np.mgrid[:30, :40].astype(np.float32)
    depth = (1 + 0.2 * np.sin(x / 7) + 0.01 * y)[..., None]
    intrinsics = Intrinsics(40.0, 42.0, 17.0, 13.0)
    other_way = Intrinsics(40.0, 42.0, 39.0 - 17.0, 13.0)
    normals = normals_from_depth(depth, intrinsics)
    mirrored = transforms.mirror({"image": depth, "depth": depth, "normals": normals})
    again = normals_from_depth(np.ascontiguousarray(mirrored["depth"]), other_way)
    assert (np.abs(normals).sum(-1) > 0).mean() > 0.9
    np.testing.assert_allclose(mirrored["normals"], again, atol=2e-5)


def test_flip_is_a_fair_coin():
    sample = ramp((2, 3))
    rng = np.random.default_rng(0)
    flipped = [transforms.flip(sample, rng)["depth"][0, 0, 0] == 3 for _ in range(400)]
    assert 160 < sum(flipped) < 240


@examples
@given(SIZES, SEEDS)
def test_scale_one_is_nothing(size, seed):
    sample = make_sample(size, seed)
    assert_equal(transforms.scale_crop(sample, np.random.default_rng(seed), (1.0,)), sample)


@examples
@given(SIZES, SEEDS, st.floats(1, 3))
def test_scale_crop_keeps_what_targets_are(size, seed, scale):
    sample = make_sample(size, seed)
    cropped = transforms.scale_crop(sample, np.random.default_rng(seed), (scale,))
    for name in sample:
        assert cropped[name].shape == sample[name].shape
        assert cropped[name].dtype == sample[name].dtype
    for name in LABELS:
        assert np.isin(cropped[name], sample[name]).all()
    length = np.linalg.norm(cropped["normals"], axis=-1)
    np.testing.assert_allclose(length[length > 0], 1, rtol=1e-6)
    # A window that is rounded to the whole frame leaves it as it is.
    whole = (int(size[0] / scale), int(size[1] / scale)) == size
    nearer = sample["depth"] / (1 if whole else np.float32(scale))
    assert np.isin(cropped["depth"], nearer).all()
    nearer = sample["disparity"] * (1 if whole else np.float32(scale))
    assert np.isin(cropped["disparity"], nearer).all()


@pytest.mark.parametrize("scale", [1.2, 1.5, 2.0])
def test_scale_crop_keeps_image_and_targets_aligned(scale):
    size = (60, 80)
    rng = np.random.default_rng(3)
    for _ in range(20):
        cropped = transforms.scale_crop(ramp(size), rng, (scale,))
        # Nearest is at most half a source pixel off, and the image rounds by another half.
        assert (
            np.abs(cropped["image"][..., 0] + 1 - cropped["depth"][..., 0] * scale).max() <= 1.001
        )
        assert np.abs(cropped["image"][..., 1] - cropped["semantic"].astype(float)).max() <= 1


def test_scale_crop_takes_every_window():
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(300):
        cropped = transforms.scale_crop(ramp((4, 6)), rng, (2.0,))
        corners.add((int(cropped["semantic"][0, 0]), int(cropped["depth"][0, 0, 0] * 2 - 1)))
    assert corners == {(top, left) for top in range(3) for left in range(4)}


@examples
@given(SIZES, SEEDS, st.floats(0.01, 0.9))
def test_colour_jitter_changes_the_image_alone(size, seed, strength):
    sample = make_sample(size, seed)
    jittered = transforms.colour_jitter(sample, np.random.default_rng(seed), strength)
    assert jittered["image"].dtype == np.uint8
    sample.pop("image")
    jittered.pop("image")
    assert_equal(jittered, sample)


def test_colour_jitter_is_brightness_then_contrast_then_saturation():
    class Fixed(np.random.Generator):
        def uniform(self, low, high, size):
            assert (low, high, size) == (0.5, 1.5, 3)
            return np.array([0.8, 1.3, 0.6])

    image = np.random.default_rng(0).integers(40, 200, (5, 6, 3), dtype=np.uint8)
    values = image * 0.8
    mean = (values @ [0.299, 0.587, 0.114]).mean()
    values = mean + 1.3 * (values - mean)
    grey = (values @ [0.299, 0.587, 0.114])[..., None]
    values = (grey + 0.6 * (values - grey)).clip(0, 255)
    jittered = transforms.colour_jitter({"image": image}, Fixed(np.random.PCG64(0)), 0.5)["image"]
    assert np.abs(jittered - values).max() <= 0.501


def test_colour_jitter_of_no_strength_is_nothing():
    sample = make_sample((6, 7), 0)
    assert_equal(transforms.colour_jitter(sample, np.random.default_rng(0), 0.0), sample)


def test_noise_has_a_deviation_drawn_evenly_up_to_the_most():
    sample = {"image": np.full((30, 40, 3), 128, np.uint8), "semantic": np.zeros((30, 40))}
    rng = np.random.default_rng(0)
    noisy = [transforms.noise(sample, rng, 0.1) for _ in range(300)]
    images = np.stack([each["image"] for each in noisy])
    deviations = images.std((1, 2, 3)) / 25.5
    np.testing.assert_allclose(np.quantile(deviations, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], 0.2)
    assert images.dtype == np.uint8 and deviations.max() < 1.05
    assert abs(images.mean() - 128) < 0.1
    assert all(each["semantic"] is sample["semantic"] for each in noisy)


class Drawn(np.random.Generator):
    """A generator that draws this angle, in degrees, and this scale."""

    def __init__(self, degrees, scale):
        super().__init__(np.random.PCG64(0))
        self.ranges, self.values = [], [degrees, scale]

    def uniform(self, low, high):
        self.ranges.append((low, high))
        return self.values[len(self.ranges) - 1]


def turned(sample, degrees, scale=1.0, size=None):
    size = size or sample["image"].shape[:2]
    return transforms.turn_scale(sample, Drawn(degrees, scale), 180.0, (0.5, 2.0), size)


def test_turn_scale_draws_from_its_ranges():
    drawn = Drawn(0.0, 1.0)
    transforms.turn_scale(ramp((4, 5)), drawn, 20.0, (0.75, 1.25), (4, 5))
    assert drawn.ranges == [(-20.0, 20.0), (0.75, 1.25)]


@examples
@given(SIZES, SEEDS)
def test_no_turn_and_scale_one_is_nothing(size, seed):
    sample = make_sample(size, seed)
    assert_equal(turned(sample, 0.0), sample)


@examples
@given(st.integers(4, 30), SEEDS, st.integers(1, 3))
def test_quarter_turns_are_counter_clockwise(side, seed, quarters):
    sample = make_sample((side, side), seed)
    result = turned(sample, 90.0 * quarters)
    x, y = (result["normals"][..., i] for i in (0, 1))
    for _ in range(quarters):  # back: what points up came from what pointed right
        x, y = -y, x
    back = np.stack([x, y, result["normals"][..., 2]], axis=-1)
    np.testing.assert_allclose(np.rot90(back, -quarters), sample["normals"], atol=1e-6)
    for name in ("depth", "disparity", *LABELS):
        np.testing.assert_array_equal(result[name], np.rot90(sample[name], quarters), name)
    # Pillow's bilinear transform cuts off what is behind the point.
    difference = np.rot90(sample["image"], quarters).astype(int) - result["image"]
    assert ((difference == 0) | (difference == 1)).all()


@pytest.mark.parametrize("degrees", [-37.0, 12.0, 90.0])
def test_a_turned_plane_has_the_normals_of_its_turned_depth(degrees):
    """Turning the image is turning the camera about its axis: the plane's normal turns with it."""
    size, focal, offset = (60, 60), 60.0, -1.5
    y, x = np.mgrid[: size[0], : size[1]] - 29.5
    rays = np.stack([x / focal, y / focal, np.ones(size)], axis=-1)

    def plane(normal):
        depth = (offset / (rays @ normal)).astype(np.float32)[..., None]
        normals = np.broadcast_to(normal.astype(np.float32), (*size, 3))
        return {"image": np.zeros((*size, 3), np.uint8), "depth": depth, "normals": normals}

    normal = np.array([0.5, -0.2, -0.8])
    normal /= np.linalg.norm(normal)
    angle = np.radians(degrees)
    # Counter-clockwise as seen, where y points down.
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    result, expected = (
        turned(plane(normal), degrees),
        plane(np.append(turn @ normal[:2], normal[2])),
    )
    seen = result["depth"][..., 0] > 0
    assert seen.mean() > 0.7
    np.testing.assert_allclose(result["normals"][seen], expected["normals"][seen], atol=1e-6)
    # Nearest is up to 0.71 pixels off, and depth differs by less than 0.05 m a pixel.
    np.testing.assert_allclose(result["depth"][seen], expected["depth"][seen], atol=0.036)
    assert not result["normals"][~seen].any()


@pytest.mark.parametrize("scale", [0.75, 1.25])
@pytest.mark.parametrize("degrees", [-20.0, 7.0])
def test_turn_scale_keeps_image_and_targets_aligned(degrees, scale):
    for size in ((60, 80), (64, 64)):
        result = turned(ramp((60, 80)), degrees, scale, size)
        seen = result["semantic"][1:-1, 1:-1] >= 0
        # Bilinear blends with the black outside on no pixel whose own place is inside.
        difference = result["image"][..., 0] + 1 - result["depth"][..., 0] * scale
        assert np.abs(difference[1:-1, 1:-1][seen]).max() <= 1.001
        difference = result["image"][..., 1] - result["semantic"].astype(float)
        assert np.abs(difference[1:-1, 1:-1][seen]).max() <= 1


@examples
@given(SIZES, SIZES, SEEDS, st.floats(-180, 180), st.floats(0.5, 2))
def test_turn_scale_keeps_what_targets_are(size, target_size, seed, degrees, scale):
    sample = make_sample(size, seed)
    result = turned(sample, degrees, scale, target_size)
    for name, values in sample.items():
        assert result[name].shape == (*target_size, *values.shape[2:])
        assert result[name].dtype == values.dtype
    for name in LABELS:
        assert np.isin(result[name], [*np.unique(sample[name]), -1]).all()
    length = np.linalg.norm(result["normals"], axis=-1)
    np.testing.assert_allclose(length[length > 0], 1, rtol=1e-5)
    assert np.isin(result["depth"], [*(sample["depth"] / np.float32(scale)).flat, 0]).all()
    assert np.isin(result["disparity"], [*(sample["disparity"] * np.float32(scale)).flat, 0]).all()


def test_what_comes_into_view_is_unlabelled():
    sample = make_sample((40, 60), 0)
    sample = {name: np.ones_like(values) for name, values in sample.items()}
    result = turned(sample, 0.0, 0.5)
    outside = np.ones((40, 60), bool)
    outside[10:30, 15:45] = False
    for name, task in TASKS.items():
        assert (result[name][outside] == task.unlabelled).all(), name
        assert (result[name][~outside] != task.unlabelled).any(axis=-1).all(), name
    assert not result["image"][outside].any()


@examples
@given(SIZES, SIZES, SEEDS)
def test_fit_takes_the_pixel_under_each_centre(size, target_size, seed):
    sample = make_sample(size, seed)
    fitted = transforms.fit(sample, target_size)
    rows = ((np.arange(target_size[0]) + 0.5) * size[0] / target_size[0] + 1e-9).astype(int)
    columns = ((np.arange(target_size[1]) + 0.5) * size[1] / target_size[1] + 1e-9).astype(int)
    for name in TASKS:
        np.testing.assert_array_equal(fitted[name], sample[name][rows][:, columns])
    assert fitted["image"].shape == (*target_size, 3)
    if size == target_size:
        assert_equal(fitted, sample)


def test_fit_keeps_image_and_targets_aligned():
    fitted = transforms.fit(ramp((30, 40)), (64, 64))
    assert np.abs(fitted["image"][..., 0] + 1 - fitted["depth"][..., 0]).max() <= 1
    assert np.abs(fitted["image"][..., 1] - fitted["semantic"].astype(float)).max() <= 1


def config(**changes):
    fields = {"scales": (1.0, 1.2, 1.5), "turn": 0.0, "scale_range": (1.0, 1.0)}
    return ml_collections.ConfigDict(
        fields | {"flip": True, "colour_jitter": 0.0, "noise": 0.0, "shapes": 0} | changes
    )


def test_mtans_augmentation_is_scale_crop_then_flip():
    augment = transforms.Augment.from_config(config(), (20, 30))
    sample = make_sample((20, 30), 1)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        expected = transforms.flip(transforms.scale_crop(sample, rng, (1.0, 1.2, 1.5)), rng)
        assert_equal(augment(sample, np.random.default_rng(seed)), expected)


def test_astmts_augmentation_is_turn_scale_then_flip():
    changes = {"scales": (1.0,), "turn": 20.0, "scale_range": (0.75, 1.25)}
    augment = transforms.Augment.from_config(config(**changes), (32, 32))
    sample = make_sample((20, 30), 1)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rng.integers(1)  # the one crop of scale 1
        rng.integers(1), rng.integers(1)
        expected = transforms.turn_scale(sample, rng, 20.0, (0.75, 1.25), (32, 32))
        assert_equal(augment(sample, np.random.default_rng(seed)), transforms.flip(expected, rng))


def test_augment_is_off_where_the_config_says_so():
    augment = transforms.Augment.from_config(config(scales=(1.0,), flip=False), (8, 9))
    sample = make_sample((8, 9), 1)
    for seed in range(10):
        assert_equal(augment(sample, np.random.default_rng(seed)), sample)


def test_augment_depends_on_its_generator_alone():
    augment = transforms.Augment.from_config(config(colour_jitter=0.3), (20, 30))
    sample = make_sample((20, 30), 1)
    untouched = {name: values.copy() for name, values in sample.items()}
    runs = [augment(sample, np.random.default_rng(seed)) for seed in (5, 5, 6)]
    assert_equal(runs[0], runs[1])
    assert (runs[0]["image"] != runs[2]["image"]).any()
    assert_equal(sample, untouched)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scales": (0.5, 1.0)}, "config.augment.scales"),
        ({"scales": ()}, "config.augment.scales"),
        ({"turn": -1.0}, "config.augment.turn"),
        ({"turn": 181.0}, "config.augment.turn"),
        ({"scale_range": (0.0, 1.0)}, "config.augment.scale_range"),
        ({"scale_range": (1.2, 0.8)}, "config.augment.scale_range"),
        ({"scale_range": (1.0,)}, "config.augment.scale_range"),
        ({"colour_jitter": 1.0}, "config.augment.colour_jitter"),
        ({"colour_jitter": -0.1}, "config.augment.colour_jitter"),
    ],
)
def test_augment_refuses_what_is_out_of_range(changes, message):
    with pytest.raises(UserError, match=message):
        transforms.Augment.from_config(config(**changes), (8, 9))


@pytest.mark.parametrize("scale", [1.25, 2.0])
def test_either_way_of_coming_nearer_is_one_rule(scale):
    size = (20, 20)
    sample = {
        "image": np.zeros((*size, 3), np.uint8),
        "depth": np.full((*size, 1), 3, np.float32),
        "disparity": np.full((*size, 1), 3, np.float32),
    }
    cropped = transforms.scale_crop(sample, np.random.default_rng(0), (scale,))
    for nearer in (cropped, turned(sample, 0.0, scale)):
        np.testing.assert_array_equal(nearer["depth"], np.float32(3) / np.float32(scale))
        np.testing.assert_array_equal(nearer["disparity"], np.float32(3) * np.float32(scale))
