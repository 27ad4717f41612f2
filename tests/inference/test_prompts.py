"""The predictor: coordinates, padding without effect and without compilation, clear refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from talora_jax.errors import UserError
from talora_jax.inference.prompts import PROMPTS, SamPredictor
from talora_jax.models.geometry import PIXEL_MEAN, PIXEL_STD, Geometry
from talora_jax.models.prompt_encoder import FOREGROUND, LOWER_RIGHT, NOT_A_POINT, UPPER_LEFT

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, size, np.uint8) for size in ((48, 32, 3), (64, 64, 3), (1, 90))]


@pytest.fixture(scope="module")
def shared(micro_sam):
    """One predictor, so that it compiles once."""
    return SamPredictor(micro_sam)


@pytest.fixture
def predictor(shared):
    shared.set_images(IMAGES)
    return shared


@pytest.fixture(scope="module")
def sam(micro_sam):
    """The model's two halves, compiled without the predictor."""
    graphdef, state = nnx.split(micro_sam)

    class Compiled:
        encode = staticmethod(lambda x: encode(state, x))
        decode = staticmethod(lambda *prompts: decode(state, *prompts))

    encode = jax.jit(lambda state, x: nnx.merge(graphdef, state).encode(x))
    decode = jax.jit(lambda state, *prompts: nnx.merge(graphdef, state).decode(*prompts))
    return Compiled


def assert_close(a, b):
    np.testing.assert_allclose(a.low_res, b.low_res, rtol=0, atol=1e-5)
    np.testing.assert_allclose(a.iou, b.iou, rtol=0, atol=1e-5)


def points(number, count):
    xy = np.random.default_rng(7).uniform(0, 32, (number, count, 2))
    return xy, [[1] + [0] * (count - 1)] * number


def by_hand(sam, image, xy, labels):
    """One prompt on one image, SAM's steps one after the other, nothing padded."""
    height, width = image.shape[:2]
    scale = 64 / max(height, width)
    new = int(height * scale + 0.5), int(width * scale + 0.5)
    resized = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR))
    x = (resized.astype(np.float32) - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)
    x = np.pad(x, ((0, 64 - new[0]), (0, 64 - new[1]), (0, 0)))
    xy = np.array(xy) * [new[1] / width, new[0] / height]
    masks, iou = sam.decode(
        sam.encode(x[None]), jnp.asarray(xy, jnp.float32)[None, None], jnp.array(labels)[None, None]
    )
    return masks[0], iou[0], Geometry((height, width), new, 64)


@pytest.mark.parametrize("image", [0, 1])
def test_points_are_sams_steps_with_a_padding_point(sam, predictor, image):
    masks, iou, geometry = by_hand(
        sam, IMAGES[image], [[20, 30], [0, 0]], [FOREGROUND, NOT_A_POINT]
    )
    prediction = predictor.predict([[[20, 30]]], [[1]], image=image)
    np.testing.assert_allclose(prediction.low_res, masks, rtol=0, atol=1e-5)
    np.testing.assert_allclose(prediction.iou, iou, rtol=0, atol=1e-5)
    assert prediction.geometry == geometry


def test_a_box_is_two_corners_and_no_padding_point(sam, predictor):
    masks, iou, _ = by_hand(
        sam,
        IMAGES[0],
        [[20, 30], [5, 6], [25, 40]],
        [FOREGROUND, UPPER_LEFT, LOWER_RIGHT],
    )
    prediction = predictor.predict([[[20, 30]]], [[1]], [[5, 6, 25, 40]])
    np.testing.assert_allclose(prediction.low_res, masks, rtol=0, atol=1e-5)
    np.testing.assert_allclose(prediction.iou, iou, rtol=0, atol=1e-5)


def test_masks_are_at_the_size_of_the_original_image(predictor):
    for i, image in enumerate(IMAGES):
        for multimask, count in ((True, 3), (False, 1)):
            prediction = predictor.predict(*points(2, 1), image=i, multimask=multimask)
            assert prediction.low_res.shape == (2, count, 32, 32)
            assert prediction.iou.shape == (2, count)
            logits, masks = prediction.logits(), prediction.masks()
            assert logits.shape == masks.shape == (2, count, *image.shape[:2])
            np.testing.assert_array_equal(masks, logits > 0)
            maps = prediction.geometry.from_padded(prediction.low_res[1, 0][..., None])
            np.testing.assert_allclose(logits[1, 0], maps[..., 0], rtol=0, atol=1e-5)


def test_many_prompts_are_each_as_if_alone(predictor):
    number = PROMPTS[-1] + 3
    xy, labels = points(number, 2)
    boxes = np.array([[1, 2, 20, 30]] * number) + np.arange(number)[:, None] / 5
    together = predictor.predict(xy, labels, boxes)
    for i in (0, 1, PROMPTS[-1] - 1, PROMPTS[-1], number - 1):
        alone = predictor.predict(xy[i : i + 1], labels[i : i + 1], boxes[i : i + 1])
        np.testing.assert_allclose(together.low_res[i], alone.low_res[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(together.iou[i], alone.iou[0], rtol=0, atol=1e-5)


def test_prompts_with_fewer_points_than_others(predictor):
    xy, labels = points(2, 5)
    labels = np.array(labels)
    labels[1, 2:] = -2
    both = predictor.predict(xy, labels)
    short = predictor.predict(xy[1:, :2], labels[1:, :2])
    np.testing.assert_allclose(both.low_res[1], short.low_res[0], rtol=0, atol=1e-5)


def test_new_numbers_of_prompts_and_points_do_not_compile(micro_sam):
    predictor = SamPredictor(micro_sam)
    predictor.set_images(IMAGES)
    for number in PROMPTS:
        predictor.predict(*points(number, 1))
    compiled = predictor._decode._cache_size()
    assert compiled == len(PROMPTS)
    for number in (2, 3, 5, 7, 15, 17, 33, 40):
        for count in (1, 2, 3):
            predictor.predict(*points(number, count), image=1)
    predictor.predict(boxes=[[1, 2, 3, 4]] * 6)
    assert predictor._decode._cache_size() == compiled
    predictor.set_images(IMAGES * 2)
    assert predictor._encode._cache_size() == 1


def test_an_earlier_mask_is_a_prompt(predictor):
    first = predictor.predict(*points(2, 1))
    second = predictor.predict(*points(2, 1), masks=first.low_res[:, 0])
    alone = predictor.predict(masks=first.low_res[:, 0])
    assert second.low_res.shape == alone.low_res.shape == (2, 3, 32, 32)
    assert np.abs(second.low_res - first.low_res).max() > 1e-3
    assert np.abs(second.low_res - alone.low_res).max() > 1e-3


def test_no_prompt_at_all_is_one_prompt(predictor):
    assert predictor.predict().masks().shape == (1, 3, 48, 32)


def test_setting_images_forgets_those_before(predictor):
    before = predictor.predict(*points(1, 1), image=1)
    predictor.set_image(IMAGES[1])
    assert_close(predictor.predict(*points(1, 1)), before)
    with pytest.raises(UserError, match="shape"):
        predictor.set_images([IMAGES[0], np.zeros((4, 4, 4, 4))])
    assert_close(predictor.predict(*points(1, 1)), before)
    with pytest.raises(UserError, match="no image 1 is set: there are 1"):
        predictor.predict(*points(1, 1), image=1)


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ({"points": [[[1, 2]]]}, "points and labels belong together"),
        ({"points": [[1, 2]], "labels": [1]}, r"points of shape \[1, 2\]: expected \[P, n, 2\]"),
        ({"points": [[[1, 2]]], "labels": [[1, 0]]}, r"labels of shape \[1, 2\]"),
        ({"points": [[[1, 2]]], "labels": [[3]]}, r"labels \[3"),
        ({"boxes": [1, 2, 3, 4]}, r"boxes of shape \[4\]: expected \[P, 4\]"),
        ({"boxes": [[1, 2, 3, 4]] * 2, "points": [[[1, 2]]], "labels": [[1]]}, "the same P"),
        ({"masks": np.zeros((1, 16, 16))}, r"expected \[P, 32, 32\]"),
        ({"points": [[[1, 2]], [[1, 2], [3, 4]]], "labels": [[1]]}, "points cannot be one array"),
        ({"boxes": np.zeros((0, 4))}, "P > 0"),
    ],
)
def test_prompts_that_are_refused(predictor, prompt, what):
    with pytest.raises(UserError, match=what):
        predictor.predict(**prompt)
