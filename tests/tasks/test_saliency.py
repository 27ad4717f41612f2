"""Saliency is averaged as its two protocols say."""

import numpy as np
import pytest
from PIL import Image

from talora_jax.data.folder.settings import Settings
from talora_jax.tasks import Saliency


def test_saliency_of_one_kind_gives_no_loss_and_even_odds_are_its_best_constant(cases):
    task, (maps, target) = cases.task_of("saliency"), cases.case_of("saliency")
    for only in (0, 1):
        total, count = cases.loss(task, maps, np.full_like(target, only))
        assert (total, count) == (0, cases.B * cases.H * cases.W)

    def of_constant(logit):
        return float(cases.loss(task, np.full_like(maps, logit), target)[0])

    (best,) = cases.constant_of("saliency", target)
    assert of_constant(best) < min(of_constant(best - 0.1), of_constant(best + 0.1))


def test_saliency_averages_over_images_or_pixels(cases):
    """Two images: one with a large object, found; one with a small one, missed."""
    target = np.zeros((2, cases.H, cases.W, 1), np.float32)
    target[0, :, :8], target[1, 0, 0] = 1, 1
    maps = np.where(target == 1, 9, -9).astype(np.float32)
    maps[1] = -9
    actual = cases.summary(Saliency("saliency"), maps, target)
    assert actual["miou_max"] == 0.5
    recall = 96 / 97
    assert actual["max_f"] == pytest.approx(1.3 * recall / (0.3 + recall))


def test_it_is_read_as_every_yes_or_no(tmp_path):
    Image.fromarray(np.uint8([[0, 1], [255, 7]])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        Saliency.read(tmp_path / "a.png", Settings())[..., 0], [[0, 1], [1, 1]]
    )
    np.save(tmp_path / "a.npy", np.float32([[[0], [1], [-1]]]))
    np.testing.assert_array_equal(
        Saliency.read(tmp_path / "a.npy", Settings())[..., 0], [[0, 1, -1]]
    )
