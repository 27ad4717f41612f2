"""The predictor: coordinates, padding without effect and without compilation, clear refusals."""

import dataclasses
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from talora_jax.errors import UserError
from talora_jax.inference.prompt_arrays import CERTAIN
from talora_jax.inference.prompts import PROMPTS, Prediction, SamPredictor
from talora_jax.models.geometry import PIXEL_MEAN, PIXEL_STD, Geometry, resize_matrix
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


def test_a_prediction_is_a_prompt_of_its_best_masks(predictor):
    first = predictor.predict(*points(3, 1))
    best = np.stack([maps[i] for maps, i in zip(first.low_res, first.iou.argmax(1), strict=True)])
    np.testing.assert_array_equal(first.best(), best)
    assert_close(predictor.predict(masks=first), predictor.predict(masks=best))
    one = predictor.predict(*points(3, 1), multimask=False)
    np.testing.assert_array_equal(one.best(), one.low_res[:, 0])
    with pytest.raises(UserError, match="on an image of 32×48 pixels; .* of 64×64"):
        predictor.predict(masks=first, image=1)


@pytest.mark.parametrize("image", [0, 1])
def test_a_mask_of_the_images_own_size_is_resized_and_padded_as_the_image(predictor, image):
    height, width = IMAGES[image].shape[:2]
    mask = np.zeros((1, height, width), bool)
    mask[:, 5:30, 10:25] = True
    geometry = predictor.predict(image=image).geometry
    padded = geometry.to_padded(np.repeat(mask[0, ..., None], 3, -1) * 1.0, normalise=False)[..., 0]
    half = resize_matrix(64, 32, antialias=True)
    logits = CERTAIN * (2 * half @ padded @ half.T - 1)
    assert logits.min() == -logits.max() == -CERTAIN
    expected = predictor.predict(masks=logits[None], image=image)
    assert_close(predictor.predict(masks=mask, image=image), expected)
    assert_close(predictor.predict(masks=mask.tolist(), image=image), expected)


def test_full_size_masks_compile_nothing_and_take_no_more_than_they_are(caplog):
    geometry = Geometry.of((600, 800), 1024)
    low_res = np.random.default_rng(0).normal(size=(8, 3, 256, 256)).astype(np.float32)
    prediction = Prediction(low_res, np.zeros((8, 3), np.float32), geometry)
    Prediction(low_res[:1], prediction.iou[:1], geometry).masks()  # Matrices are kept.
    with jax.log_compiles():
        for full in (prediction.masks, prediction.logits):
            tracemalloc.start()
            size = full().nbytes
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert size <= peak < 1.5 * size
    assert not caplog.records


def test_no_prompt_at_all_is_one_prompt(predictor):
    assert predictor.predict().masks().shape == (1, 3, 48, 32)


def test_setting_images_forgets_those_before(predictor):
    before = predictor.predict(*points(1, 1), image=1)
    predictor.set_image(IMAGES[1])
    assert_close(predictor.predict(*points(1, 1)), before)
    with pytest.raises(UserError, match="shape"):
        predictor.set_images([IMAGES[0], np.zeros((4, 4, 4, 4))])
    assert_close(predictor.predict(*points(1, 1)), before)
    with pytest.raises(UserError, match="no image 1 is set: there are 1, numbered from 0"):
        predictor.predict(*points(1, 1), image=1)
    for wrong, what in ((1.0, "a float"), (None, "None"), ("0", "a str")):
        with pytest.raises(UserError, match=f"image: {what}; expected the number of one that is"):
            predictor.predict(image=wrong)


def test_before_any_image_is_set(micro_sam):
    predictor = SamPredictor(micro_sam)
    for ask in (predictor.predict, predictor.embedding):
        with pytest.raises(UserError, match=r"no image is set: call set_image\(image\) first"):
            ask()
    with pytest.raises(UserError, match="SamPredictor: a str; expected a Sam, such as"):
        SamPredictor("sam.safetensors")


@pytest.mark.parametrize(
    ("images", "what"),
    [
        (IMAGES[0], r"an array of dtype uint8 and shape \[48, 32, 3\]; .* set_image sets a single"),
        (IMAGES[0][..., 0], "an array of dtype uint8 .*; expected a list of images"),
        (IMAGES[0].tolist(), "48 images of shape .* rows of one"),
        (Image.fromarray(IMAGES[0]), "Image; expected a list of images"),
        ("photo.jpg", "a str; expected a list of images"),
        ({"a": IMAGES[0]}, "a dict; expected a list of images"),
        (None, "None; expected a list of images"),
        ([IMAGES[0], b"png"], "image 1 of those given: an image: bytes"),
    ],
)
def test_what_is_no_list_of_images(predictor, images, what):
    with pytest.raises(UserError, match=what):
        predictor.set_images(images)


def test_an_array_of_images_is_several(predictor):
    predictor.set_images(np.stack([IMAGES[1], IMAGES[1][::-1]]))
    expected = predictor.predict(*points(1, 1), image=1)
    predictor.set_image(IMAGES[1][::-1])
    assert_close(predictor.predict(*points(1, 1)), expected)


@pytest.mark.parametrize(
    "number", [np.float32, np.float16, np.uint8, ">f4", ">i2", np.longdouble], ids=str
)
def test_points_and_labels_of_any_numbers(predictor, number):
    expected = predictor.predict([[[20, 30]]], [[1]], [[5, 6, 25, 40]])
    found = predictor.predict(
        np.array([[[20, 30]]], number), [[True]], jnp.array([[5, 6, 25, 40]]), multimask=np.True_
    )
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ({"points": [[[1, 2]]]}, "points and labels belong together"),
        ({"points": [[1, 2]], "labels": [1]}, r"points of shape \[1, 2\]: expected \[P, n, 2\]"),
        ({"points": [[[1, 2]]], "labels": [[1, 0]]}, "labels of prompt 0: 2 for 1 points; .* one"),
        ({"points": [[[1, 2]]], "labels": [[3]]}, r"labels \[3"),
        ({"boxes": [1, 2, 3, 4]}, r"boxes of shape \[4\]: expected \[P, 4\]"),
        ({"boxes": [[1, 2, 3, 4]] * 2, "points": [[[1, 2]]], "labels": [[1]]}, "the same P"),
        ({"masks": np.zeros((1, 16, 16))}, r"expected \[P, 32, 32\]"),
        ({"points": [[[1, 2]], [[1, 2], [3, 4]]], "labels": [[1]]}, "2 of points, 1 of labels"),
        ({"points": [[[1, 2], [3]]], "labels": [[1, 1]]}, "points cannot be one array"),
        ({"points": [[[1, 2], [3]], None], "labels": [[1, 1], None]}, "points of prompt 0 cannot"),
        ({"points": [None, [[1, 2]]], "labels": [[1], None]}, "labels of prompt 0: 1 for 0 points"),
        ({"points": [[[1, 2]], None], "labels": [[4], None]}, r"labels \[4.0\]: expected 1"),
        ({"points": [[[1, 2]], None], "labels": [[0.5], None]}, r"labels \[0.5\]: expected 1"),
        (
            {"boxes": [None, [1, 2, 3]]},
            r"boxes of prompt 1 of shape \[3\]: expected \[4\], or None",
        ),
        ({"boxes": [None, [9, 2, 3, 4]]}, "ends before it begins"),
        ({"boxes": [None, [True] * 4]}, r"boxes of prompt 1 of dtype bool; .*\[4\]"),
        ({"boxes": [[1, 2, 3, 4], None], "masks": [None]}, "2 of boxes, 1 of masks"),
        ({"boxes": [1, None, 3, 4]}, r"boxes of prompt 0 of shape \[\]: expected \[4\]"),
        ({"masks": [None, np.zeros((16, 16))]}, r"masks of prompt 1 .*: expected \[32, 32\], or"),
        (
            {"masks": [np.eye(32), None]},
            "masks of prompt 0 of dtype float64 with .* expected logits",
        ),
        ({"masks": [None, "mask.png"]}, r"masks of prompt 1: a str; .* prediction.best\(\)\[0\]"),
        ({"boxes": np.zeros((0, 4))}, "P > 0"),
        ({"boxes": [1, 2, 3, 4]}, r"for a single prompt, P = 1: np.array\(boxes\)\[None\]"),
        ({"boxes": [[1, 2, 3, 4]] * 2, "masks": np.zeros((3, 32, 32))}, "2 of boxes, 3 of masks"),
        (
            {"boxes": [[np.nan, 2, 3, 4]]},
            r"boxes: nan at \[0, 0\], 1 of 4 values are not finite, or beyond float32",
        ),
        ({"boxes": [[1, 2, np.inf, 4]]}, r"boxes: inf at \[0, 2\]"),
        ({"boxes": [[1, 2, 3, 1e39]]}, r"boxes: 1e\+39 at .* beyond float32"),
        ({"boxes": [[1, 2, 3, 3.4e38]]}, "scaled to what is encoded: .* beyond float32"),
        ({"boxes": [[20, 20, 5, 30]]}, r"ends before it begins; .*\(x, y, x \+ width, y"),
        ({"boxes": {"x": 1}}, "boxes: a dict; expected an array"),
        ({"boxes": (box for box in ())}, "boxes: a generator; expected an array"),
        ({"boxes": [["1", "2", "3", "4"]]}, "boxes: a list that makes an array of dtype <U1"),
        ({"boxes": [[1, 2, 3, 4j]]}, "makes an array of dtype complex128"),
        ({"boxes": [[1, 2, 3, None]]}, "makes an array of dtype object"),
        ({"boxes": [[True] * 4]}, "boxes of dtype bool"),
        ({"points": [[[1, 2]]], "labels": [[0.5]]}, r"labels \[0.5\]: expected 1"),
        ({"points": [[[1, 2]]], "labels": [["1"]]}, "labels: a list that makes"),
        ({"masks": np.full((1, 32, 32), np.nan)}, "masks: nan at"),
        ({"masks": np.ones((1, 32, 32), bool)}, r"\[P, 48, 32\] .* the image's own size"),
        ({"masks": np.ones((1, 48, 32))}, "own size are of dtype bool: masks > 0"),
        ({"masks": np.ones((48, 32), bool)}, r"np.array\(masks\)\[None\]"),
        ({"masks": np.zeros((1, 3, 32, 32))}, "masks=prediction takes the best"),
        ({"masks": np.zeros((1, 32, 32), np.uint8)}, "masks of dtype uint8 .*: masks > 0"),
        ({"masks": np.eye(32)[None]}, "values from 0.0 to 1.0; expected logits"),
        ({"masks": "mask.png"}, "masks: a str; expected an earlier prediction"),
        ({"multimask": None}, "multimask: None; expected True or False"),
        ({"multimask": 1}, "multimask: an int; expected True or False"),
    ],
)
def test_prompts_that_are_refused(predictor, prompt, what):
    with pytest.raises(UserError, match=what) as error:
        predictor.predict(**prompt)
    assert len(str(error.value)) < 600 and str(error.value).isprintable()


def mixed(logits):
    """Prompts of every kind beside one another: for all of them, and for each one alone."""
    inside = np.zeros((48, 32), bool)
    inside[5:30, 10:25] = True
    box, click = [5, 6, 25, 40], ([[20, 30]], [1])
    several = ([[20, 30], [3, 4.5]], [1, 0])
    each = [
        {"points": click[0], "labels": click[1]},
        {"boxes": box},
        {"masks": logits},
        {"points": several[0], "labels": several[1], "boxes": box, "masks": inside},
        {},
        {"points": several[0], "labels": several[1], "masks": logits},
        {"boxes": [0, 0, 31, 47], "masks": inside},
        {"points": click[0], "labels": [-1]},
    ]
    together = {n: [one.get(n) for one in each] for n in ("points", "labels", "boxes", "masks")}
    return together, [{n: [x] for n, x in one.items()} for one in each]


@pytest.mark.parametrize("multimask", [True, False])
def test_prompts_of_different_kinds_are_each_as_if_alone(predictor, multimask):
    logits = predictor.predict(*points(1, 1)).best()[0]
    together, each = mixed(logits)
    found = predictor.predict(**together, multimask=multimask)
    for i, one in enumerate(each):
        alone = predictor.predict(**one, multimask=multimask)
        np.testing.assert_allclose(found.low_res[i], alone.low_res[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.iou[i], alone.iou[0], rtol=0, atol=1e-5)
    gaps = np.abs(found.low_res[:, None] - found.low_res).max(axis=(2, 3, 4))
    assert gaps[~np.eye(len(each), dtype=bool)].min() > 1e-3


def test_a_point_that_is_none_goes_with_points_without_a_box(sam, predictor):
    """Also in a prompt beside others; and with no prompt that has no point."""
    xy, labels = [[20, 30]], [1]
    found = predictor.predict([xy, xy, None], [labels, labels, None], [None, [5, 6, 25, 40], None])
    by_hand_prompts = [
        ([[20, 30], [0, 0]], [FOREGROUND, NOT_A_POINT]),
        ([[20, 30], [5, 6], [25, 40]], [FOREGROUND, UPPER_LEFT, LOWER_RIGHT]),
        (np.zeros((0, 2)), np.zeros(0, int)),
    ]
    for i, prompt in enumerate(by_hand_prompts):
        masks, iou, _ = by_hand(sam, IMAGES[0], *prompt)
        np.testing.assert_allclose(found.low_res[i], masks[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.iou[i], iou[0], rtol=0, atol=1e-5)
    absent = predictor.predict([xy, xy], [[1], [-2]])
    np.testing.assert_allclose(absent.low_res[1], found.low_res[2], rtol=0, atol=1e-5)


def test_lists_of_points_and_absent_ones_are_the_same(predictor):
    xy, labels = points(3, 4)
    labels = np.array(labels)
    labels[1, 2:] = labels[2] = -2
    ragged = predictor.predict([xy[0], xy[1, :2], None], [labels[0], labels[1, :2], None])
    assert_close(ragged, predictor.predict(xy, labels))
    assert_close(predictor.predict(boxes=[None], masks=[None]), predictor.predict())


def test_several_images_with_different_numbers_of_prompts(predictor):
    predictor.set_images([*IMAGES, IMAGES[0][::-1]])
    logits = predictor.predict(*points(1, 1)).best()[0]
    xy, labels = points(PROMPTS[-1] + 2, 2)
    asked = [
        {"points": xy, "labels": labels},
        {"boxes": [[1, 2, 30, 40]] * 3},
        None,
        mixed(logits)[0],
    ]
    found = predictor.predict_each(asked)
    assert [len(p.iou) for p in found] == [PROMPTS[-1] + 2, 3, 0, 8]
    for i, (one, prediction) in enumerate(zip(asked, found, strict=True)):
        if one is not None:
            alone = predictor.predict(**one, image=i)
            assert prediction.geometry == alone.geometry
            assert_close(prediction, alone)
    assert found[2].masks().shape == (0, 3, 1, 90) and found[2].best().shape == (0, 32, 32)
    refined = [{"masks": p} if len(p.iou) else None for p in found]
    once_more = predictor.predict_each(refined, multimask=False)
    assert_close(once_more[1], predictor.predict(masks=found[1], image=1, multimask=False))


def test_prompts_of_several_images_are_decoded_together(predictor, monkeypatch):
    turns = []
    decode = predictor._decode
    monkeypatch.setattr(
        predictor, "_decode", lambda *a, **how: turns.append(a[2].shape) or decode(*a, **how)
    )
    predictor.predict_each([{"points": [[[1, 2]]], "labels": [[1]]}] * 3)
    assert turns == [(4, 1, 4, 2)]
    predictor.predict(*points(3, 1))
    assert turns[1:] == [(1, 4, 4, 2)]


def test_images_of_their_own_aspect_have_embeddings_of_different_shapes(micro_sam):
    sam = nnx.clone(micro_sam)
    sam.native_aspect = True
    predictor = SamPredictor(sam)
    predictor._images = [
        (predictor._geometry(size), jnp.asarray(RNG.normal(size=(1, *grid, 32)), jnp.float32))
        for size, grid in (((48, 32), (8, 6)), ((64, 64), (8, 8)), ((96, 65), (8, 6)))
    ]
    found = predictor.predict_each([{"boxes": [[1, 2, 20, 30]]}] * 3)
    assert [p.low_res.shape[-2:] for p in found] == [(32, 24), (32, 32), (32, 24)]
    for i in (1, 2):
        assert_close(found[i], predictor.predict(boxes=[[1, 2, 20, 30]], image=i))


@pytest.mark.parametrize(
    ("prompts", "what"),
    [
        ([{}, None], "prompts: 2; expected a list with one dict for each of the 3 images that are"),
        ({"boxes": [[1, 2, 3, 4]]}, "prompts: a dict; expected a list with one dict for each"),
        ([{}, {}, [[1, 2, 3, 4]]], "prompts of image 2: a list; expected a dict of points, labels"),
        ([{}, {"box": [[1, 2, 3, 4]]}, {}], "image 1: .* unknown 'box', .* did you mean boxes"),
        ([{"boxes": np.zeros((0, 4))}, {}, {}], "prompts of image 0: boxes of shape .* P > 0"),
    ],
)
def test_prompts_of_several_images_that_are_refused(predictor, prompts, what):
    with pytest.raises(UserError, match=what) as error:
        predictor.predict_each(prompts)
    assert len(str(error.value)) < 600


def test_embeddings_are_loaded_without_the_encoder(predictor, micro_sam, tmp_path):
    path = tmp_path / "images.safetensors"
    asked = [{"boxes": [[1, 2, 20, 30]]}, {"points": [[[3, 4]]], "labels": [[1]]}, None]
    expected = predictor.predict_each(asked)
    predictor.save_embeddings(path)
    loaded = SamPredictor(micro_sam)
    loaded.load_embeddings(path)
    for i in range(3):
        np.testing.assert_array_equal(loaded.embedding(i), predictor.embedding(i))
    for one, other in zip(loaded.predict_each(asked), expected, strict=True):
        np.testing.assert_array_equal(one.low_res, other.low_res)
        np.testing.assert_array_equal(one.iou, other.iou)
        assert one.geometry == other.geometry
    assert loaded._encode._cache_size() == 0


def test_embeddings_keep_their_dtype(micro_sam, tmp_path):
    path = tmp_path / "images.safetensors"
    predictor = SamPredictor(micro_sam)
    predictor._images = [(predictor._geometry((48, 32)), jnp.ones((1, 8, 8, 32), jnp.bfloat16))]
    predictor.save_embeddings(path)
    predictor.load_embeddings(path)
    assert predictor.embedding().dtype == jnp.bfloat16 and predictor.embedding().mean() == 1


def test_embeddings_of_another_sam_are_refused(predictor, micro_sam, tmp_path):
    path = tmp_path / "images.safetensors"
    predictor.save_embeddings(path)

    def changed(change):
        sam = nnx.clone(micro_sam)
        change(sam)
        other = SamPredictor(sam)
        other._images = predictor._images
        return other

    def larger(sam):
        encoder = dataclasses.replace(sam.config.encoder, image_size=128)
        sam.config = dataclasses.replace(sam.config, encoder=encoder)

    def native(sam):
        sam.native_aspect = True

    def another(sam):
        sam.image_encoder.patch_embed.bias[...] += 1

    for change, what in (
        (larger, "for 64 pixels, and this is one of .* for 128 pixels: load the base"),
        (native, "padded to the square, and this SAM pads to whole patches"),
        (another, "of another base, whose image encoder has the fingerprint .*: load the base"),
    ):
        other = changed(change)
        with pytest.raises(UserError, match=what) as error:
            other.load_embeddings(path)
        assert other._images is predictor._images and len(str(error.value)) < 600

    def another_decoder(sam):
        sam.mask_decoder.iou_token[...] += 1

    other = changed(another_decoder)
    other.load_embeddings(path)
    np.testing.assert_array_equal(other.embedding(), predictor.embedding())


def test_without_images_there_are_no_embeddings(micro_sam, tmp_path):
    with pytest.raises(UserError, match="no image is set"):
        SamPredictor(micro_sam).save_embeddings(tmp_path / "images.safetensors")
    with pytest.raises(UserError, match="no image is set"):
        SamPredictor(micro_sam).predict_each([])
