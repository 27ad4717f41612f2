"""Promptable SAM against `segment_anything` and `transformers` with the same weights, float32.

Encoding a 1024-pixel image takes seconds in every framework, so each is encoded once. All prompts
on images of both shapes are of the decoder, and so of an encoder of two blocks.
"""

import functools

import numpy as np
import pytest

pytestmark = pytest.mark.torch

POINTS = [[[120.5, 80.0], [300.0, 210.25]], [[10.0, 20.0], [250.0, 130.0]]]
LABELS = [[1, 0], [1, 1]]
BOXES = [[30.0, 40.0, 280.0, 300.5], [200.0, 10.0, 330.0, 220.0]]
PROMPTS = {
    "point": {"points": [[[120.5, 80.0]], [[250.0, 130.0]]], "labels": [[1], [1]]},
    "points": {"points": POINTS, "labels": LABELS},
    "box": {"boxes": BOXES},
    "points_and_box": {"points": POINTS, "labels": LABELS, "boxes": BOXES},
    "mask": {"masks": True},
    "point_and_mask": {"points": POINTS, "labels": LABELS, "masks": True},
}


def masks():
    """Mask prompts of the strength of logits."""
    return np.random.default_rng(3).normal(0, 5, (2, 256, 256)).astype(np.float32)


@functools.cache
def officials(peers):
    """An official predictor for each image."""
    from segment_anything import SamPredictor

    predictors = [SamPredictor(peers.official) for _ in peers.images]
    for predictor, image in zip(predictors, peers.images, strict=True):
        predictor.set_image(image)
    return predictors


def compare_embeddings(peers):
    for i, official in enumerate(officials(peers)):
        theirs = official.features[0].permute(1, 2, 0).numpy()
        assert 0.5 < theirs.std() < 2
        np.testing.assert_allclose(peers.ours.embedding(i)[0], theirs, rtol=0, atol=1e-4)


def ask_official(official, prompt, multimask):
    import torch

    def tensor(x, dtype=torch.float32):
        return None if x is None else torch.as_tensor(np.asarray(x), dtype=dtype)

    points, boxes = prompt.get("points"), prompt.get("boxes")
    resize, size = official.transform, official.original_size
    return official.predict_torch(
        None if points is None else tensor(resize.apply_coords(np.array(points), size)),
        tensor(prompt.get("labels"), torch.int64),
        None if boxes is None else tensor(resize.apply_boxes(np.array(boxes), size)),
        tensor(masks()[:, None]) if "masks" in prompt else None,
        multimask_output=multimask,
        return_logits=True,
    )


def ask_ours(ours, prompt, image, multimask):
    prompt = {**prompt, "masks": masks()} if "masks" in prompt else prompt
    return ours.predict(**prompt, image=image, multimask=multimask)


def compare_masks(peers, prompt, multimask):
    for i, official in enumerate(officials(peers)):
        logits, iou, low_res = ask_official(official, prompt, multimask)
        prediction = ask_ours(peers.ours, prompt, i, multimask)
        assert 0.2 < low_res.std() < 5
        np.testing.assert_allclose(prediction.low_res, low_res, rtol=0, atol=1e-3)
        np.testing.assert_allclose(prediction.logits(), logits, rtol=0, atol=1e-3)
        np.testing.assert_allclose(prediction.iou, iou, rtol=0, atol=1e-4)


def test_vit_b(vit_b):
    compare_embeddings(vit_b)
    for multimask in (True, False):
        compare_masks(vit_b, PROMPTS["points_and_box"], multimask)


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_masks_and_iou(vit_l, prompt, multimask):
    compare_masks(vit_l, prompt, multimask)


@pytest.mark.parametrize("multimask", [True, False])
def test_prompts_of_different_kinds_in_one_call(vit_l, multimask):
    """The first prompt of each kind beside the others, on both images, each asked alone there."""
    kinds = PROMPTS.values()
    together = {
        name: [kind[name][0] if name in kind else None for kind in kinds]
        for name in ("points", "labels", "boxes")
    }
    together["masks"] = [masks()[0] if "masks" in kind else None for kind in kinds]
    found = vit_l.ours.predict_each([together] * len(vit_l.images), multimask=multimask)
    for official, prediction in zip(officials(vit_l), found, strict=True):
        for i, kind in enumerate(kinds):
            _, iou, low_res = ask_official(official, kind, multimask)
            np.testing.assert_allclose(prediction.low_res[i], low_res[0], rtol=0, atol=1e-3)
            np.testing.assert_allclose(prediction.iou[i], iou[0], rtol=0, atol=1e-4)


def test_widths_and_heads_of_vit_l_and_vit_h(shallow):
    compare_embeddings(shallow)
    for multimask in (True, False):
        compare_masks(shallow, PROMPTS["points_and_box"], multimask)


@pytest.fixture(scope="module")
def huggingface_b(vit_b):
    return huggingface_embedding(vit_b)


def huggingface_embedding(peers):
    """Hugging Face's embedding of the last image, from the official preprocessing."""
    import torch

    resized = officials(peers)[-1].transform.apply_image(peers.images[-1])
    pixels = torch.as_tensor(resized).permute(2, 0, 1)[None]
    return peers.huggingface.get_image_embeddings(peers.official.preprocess(pixels))


def test_image_embeddings_of_huggingface(vit_b, huggingface_b):
    theirs = huggingface_b[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(vit_b.ours.embedding(-1)[0], theirs, rtol=0, atol=1e-4)


def test_widths_and_heads_in_huggingface(shallow):
    theirs = huggingface_embedding(shallow)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(shallow.ours.embedding(-1)[0], theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("name", [name for name in PROMPTS if "mask" not in name])
def test_masks_and_iou_of_huggingface(vit_b, huggingface_b, name, multimask):
    import torch

    prompt, official = PROMPTS[name], officials(vit_b)[-1]
    inputs = {}
    if "points" in prompt:
        points = official.transform.apply_coords(np.array(prompt["points"]), official.original_size)
        inputs["input_points"] = torch.as_tensor(points, dtype=torch.float32)[None]
        inputs["input_labels"] = torch.as_tensor(prompt["labels"])[None]
    if "boxes" in prompt:
        boxes = official.transform.apply_boxes(np.array(prompt["boxes"]), official.original_size)
        inputs["input_boxes"] = torch.as_tensor(boxes, dtype=torch.float32)[None]
    with torch.no_grad():
        theirs = vit_b.huggingface(
            **inputs, image_embeddings=huggingface_b, multimask_output=multimask
        )
    prediction = ask_ours(vit_b.ours, prompt, -1, multimask)
    np.testing.assert_allclose(prediction.low_res, theirs.pred_masks[0], rtol=0, atol=1e-3)
    np.testing.assert_allclose(prediction.iou, theirs.iou_scores[0], rtol=0, atol=1e-4)


def test_mask_prompt_of_huggingface(vit_b, huggingface_b):
    import torch

    official = officials(vit_b)[-1]
    mask = masks()[:1]
    with torch.no_grad():
        theirs = vit_b.huggingface(
            input_points=torch.as_tensor(
                official.transform.apply_coords(np.array(POINTS[:1]), official.original_size),
                dtype=torch.float32,
            )[None],
            input_labels=torch.as_tensor(LABELS[:1])[None],
            input_masks=torch.as_tensor(mask)[None],
            image_embeddings=huggingface_b,
        )
    prediction = vit_b.ours.predict(POINTS[:1], LABELS[:1], masks=mask, image=-1)
    np.testing.assert_allclose(prediction.low_res, theirs.pred_masks[0], rtol=0, atol=1e-3)
    np.testing.assert_allclose(prediction.iou, theirs.iou_scores[0], rtol=0, atol=1e-4)


def test_huggingface_folder_loads_whole(vit_b):
    assert not vit_b.loading["missing_keys"] and not vit_b.loading["unexpected_keys"]
    theirs, ours = vit_b.official.state_dict(), vit_b.huggingface.state_dict()
    table = {
        "image_encoder.blocks.7.attn.qkv.weight": "vision_encoder.layers.7.attn.qkv.weight",
        "mask_decoder.output_upscaling.3.weight": "mask_decoder.upscale_conv2.weight",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (
            "prompt_encoder.shared_embedding.positional_embedding"
        ),
    }
    for official, huggingface in table.items():
        np.testing.assert_array_equal(theirs[official], ours[huggingface])
