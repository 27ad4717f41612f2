"""Thinning on the host."""

import numpy as np
import pytest

from talora_jax.data.pascal_context.thin import thin

# A mask ('o' and '#') and what scikit-image 0.26's `thin` leaves of it ('#').
THINNED = """
ooooooo......oo##....oooo##ooooooo.....#
oooo##o......o#o.....####o.###oooo....#o
oo##oo.......#oo......#o.....o#ooo...o#o
ooo#oo......#..........#.....oo#ooooo#oo
ooo#oo....o#o..........#o....ooo#oooo#oo
...o#oo..oo#oo..........#o...ooo#####ooo
...oo#oooo#oo......oo....#o..oo#oooo#ooo
....oo####oo......o#o.....#o..o#oo.oo#oo
......ooo#o.......ooo.....#o..#o....o#oo
##......o#oo.......o......#o........o#oo
....oo...o#o........................o#oo
....o#o..o#o.......................oo#oo
....o#oo..#.........ooo...........oo#ooo
....o#o...#o........ooooo.........oo#ooo
....#o....#o........o###o.........o#oooo
....#o....#o.........ooo...........oo...
"""

# The example in scikit-image's documentation.
DOCUMENTED = """
.#.....
..#oo..
..o#o..
..o#o..
..o#o..
..ooo..
.......
"""


@pytest.mark.parametrize("drawing", [THINNED, DOCUMENTED])
def test_thin_is_scikit_images(drawing):
    pixels = np.array([list(line) for line in drawing.split()])
    np.testing.assert_array_equal(thin(pixels != "."), pixels == "#")


def test_thin_of_nothing_is_nothing():
    assert not thin(np.zeros((3, 4), bool)).any()
