"""From an image to the encoder's input and back, against `segment_anything`."""

import numpy as np
import pytest

from talora_jax.models.geometry import Geometry, normalise

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", autouse=True)
def import_torch():
    """Not at the top: the tests must be collected where there is no PyTorch."""
    global torch
    import torch


SIZES = (
    (1024, 1024),
    (768, 1024),
    (1024, 683),
    (480, 640),
    (333, 500),
    (1365, 2048),
    (2000, 999),
    (1, 1),
    (1, 700),
    (900, 1),
    (3, 1024),
)


@pytest.fixture(scope="module")
def sam(official_sam):
    return official_sam(16, 1, 2, (1,))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resized_normalised_and_padded(sam, size):
    from segment_anything.utils.transforms import ResizeLongestSide

    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    resized = ResizeLongestSide(1024).apply_image(image)
    pixels = torch.as_tensor(resized).permute(2, 0, 1)[None]
    theirs = sam.preprocess(pixels)[0].permute(1, 2, 0).numpy()

    geometry = Geometry.of(size, 1024)
    assert geometry.resized == resized.shape[:2]
    square = geometry.to_padded_uint8(image)
    np.testing.assert_array_equal(square[: resized.shape[0], : resized.shape[1]], resized)
    ours = normalise(square, np.array(geometry.resized))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES[:8], ids=str)
def test_points_and_maps(sam, size):
    from segment_anything.utils.transforms import ResizeLongestSide

    resize, geometry = ResizeLongestSide(1024), Geometry.of(size, 1024)
    rng = np.random.default_rng(1)
    points = rng.uniform(0, max(size), (5, 2))
    np.testing.assert_allclose(
        geometry.points_to_square(points), resize.apply_coords(points, size), rtol=1e-12
    )
    # In float32 PyTorch rounds the sample points, which on noise is worth 1e-4; ours are exact.
    maps = rng.normal(size=(1, 2, 256, 256))
    theirs = sam.postprocess_masks(torch.from_numpy(maps), geometry.resized, size)
    ours = geometry.from_padded(np.moveaxis(maps, 1, -1))
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), theirs, rtol=0, atol=1e-5)


def test_an_image_too_flat_for_sam_keeps_one_row():
    # The official code rounds its height to nothing and fails.
    geometry = Geometry.of((1, 5000), 1024)
    assert geometry.resized == (1, 1024)
    assert geometry.to_padded_uint8(np.full((1, 5000, 3), 9, np.uint8))[0].min() == 9
