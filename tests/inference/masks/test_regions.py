"""Small holes and islands."""

import numpy as np

from talora_jax.inference.masks.regions import without_small_regions


def mask_of(text):
    return np.array([[pixel == "#" for pixel in line] for line in text.split()])


def test_small_holes_are_filled_and_small_islands_go():
    mask = mask_of("""
        #####...
        #.###..#
        #####...
        #..##...
        #..##...
    """)
    expected = mask_of("""
        #####...
        #####...
        #####...
        #..##...
        #..##...
    """)
    cleaned, changed = without_small_regions(mask, 3)
    assert changed
    np.testing.assert_array_equal(cleaned, expected)
    cleaned, changed = without_small_regions(expected, 3)
    assert not changed
    np.testing.assert_array_equal(cleaned, expected)


def test_regions_are_joined_at_their_corners():
    mask = mask_of("#... .#.. ..#. ....")
    np.testing.assert_array_equal(without_small_regions(mask, 3)[0], mask)
    # Its off-diagonal pixels are one region, too.
    assert without_small_regions(mask_of("#.# .#. #.#"), 5)[0].sum() == 9


def test_of_islands_alone_the_largest_stays():
    mask = mask_of("#..## ..... .#...")
    cleaned, changed = without_small_regions(mask, 100)
    assert changed
    # The hole around is smaller, too, and filled first.
    assert cleaned.all()
    wide = np.zeros((30, 30), bool)
    wide[2, 2] = wide[9, 9:11] = True
    cleaned, _ = without_small_regions(wide, 100)
    assert np.argwhere(cleaned).tolist() == [[9, 9], [9, 10]]


def test_nothing():
    cleaned, changed = without_small_regions(np.zeros((3, 3), bool), 9)
    assert not changed and not cleaned.any()
