"""Boxes of masks, suppression of duplicates, and boxes that a crop cut off."""

import numpy as np

from talora_jax.inference.masks.boxes import box_of, distinct, is_cut_off


def test_a_box_ends_with_the_masks_last_pixel():
    mask = np.zeros((5, 7), bool)
    mask[1:3, 2:6] = True
    assert box_of(mask).tolist() == [2, 1, 5, 2]
    assert box_of(np.zeros((5, 7), bool)).tolist() == [0, 0, 0, 0]


def test_the_best_of_overlapping_boxes_stays():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 10, 5]])
    scores = np.array([0.5, 0.9, 0.6, 0.4])
    assert distinct(boxes, scores, 0.7).tolist() == [1, 2, 3]
    assert distinct(boxes, scores, 0.95).tolist() == [1, 2, 0, 3]
    # 0.9 is not above 0.9; a box that went suppresses nothing.
    assert distinct(boxes, scores, 0.9).tolist() == [1, 2, 0, 3]
    assert distinct(boxes[[0, 1, 3]], scores[[0, 1, 3]], 0.5).tolist() == [1]
    assert distinct(boxes[:0], scores[:0], 0.5).tolist() == []


def test_of_equal_scores_the_earlier_is_better_and_boxes_of_no_area_stay():
    boxes = np.array([[3, 3, 3, 3], [3, 3, 3, 3], [0, 0, 4, 4], [0, 0, 4, 4]])
    assert distinct(boxes, np.ones(4), 0.5).tolist() == [0, 1, 2]


def test_cut_off_by_a_crop_but_not_by_the_image():
    crop = np.array([100, 0, 300, 200])
    assert is_cut_off(np.array([120, 50, 200, 90]), crop, (400, 600))
    assert not is_cut_off(np.array([121, 50, 200, 90]), crop, (400, 600))
    # The crop's upper edge is the image's.
    assert not is_cut_off(np.array([150, 0, 200, 90]), crop, (400, 600))
    assert is_cut_off(np.array([150, 0, 200, 180]), crop, (400, 600))
    assert not is_cut_off(np.array([150, 0, 200, 180]), crop, (200, 600))
