"""Surface normals from depth and intrinsics: the plane that fits a pixel's surroundings best.

In the image of a pinhole camera, a plane n·X = δ has inverse depth 1/z = n·r/δ with the ray
r = ((x - cx)/fx, (y - cy)/fy, 1): linear in the pixel. So a linear least-squares fit of inverse
depth over a window is a plane, exact for planes however steep, and right for the noise of
structured-light and stereo cameras, which is even in disparity and so in inverse depth.

Each window leaves out pixels without a measurement and those whose depth differs too much from the
centre's, so that no plane is laid across a step.
"""

import numpy as np
from jaxtyping import Bool, Float32

from talora_jax.data.folder.settings import Intrinsics

# The window's half-width as a share of the image's: 7 pixels of a Kinect's 640. There the normals
# of a table 1 m away scatter by 3°, by 4.5° with 5 pixels; more rounds off small objects.
_RADIUS = 1 / 90

# Of the centre's inverse depth. A neighbour that differs by more is taken for another surface, …
_TOLERANCE = 0.02

# … unless it would lie on one tilted by this tangent (60°), which counts where pixels are coarse.
_TILT = 1.7

# Share of the window that must lie on the centre's surface for a fit.
_SUPPORT = 1 / 8

# Cosine between normal and line of sight below which a surface is a smear across a step, at 85°.
_GRAZING = 0.087


def normals_from_depth(
    depth: Float32[np.ndarray, "H W 1"], intrinsics: Intrinsics
) -> Float32[np.ndarray, "H W 3"]:
    """Unit normals that face the camera, all-zero where there are too few neighbours to tell.

    Args:
      depth: metres along the optical axis, 0 = no measurement.
      intrinsics: of the image that depth lies on.

    Returns:
      In the camera frame: x right, y down, z forward, so z < 0 straight ahead.
    """
    height, width = depth.shape[:2]
    inverse = np.divide(
        1, depth[..., 0], out=np.zeros((height, width), np.float32), where=depth[..., 0] > 0
    )
    gx, gy, above, fits = _fit(inverse, max(2, round(width * _RADIUS)), intrinsics)

    # 1/z = gx·dx + gy·dy + g around a pixel; as a function of the ray, its coefficients are the
    # plane's normal, up to a length.
    g = inverse + above
    x = np.arange(width, dtype=np.float32) - np.float32(intrinsics.cx)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(intrinsics.cy)
    away = np.stack([gx * intrinsics.fx, gy * intrinsics.fy, g - gx * x - gy * y], axis=-1)
    length = np.linalg.norm(away, axis=-1)
    ray_length = np.sqrt((x / intrinsics.fx) ** 2 + (y / intrinsics.fy) ** 2 + 1)
    # away · r is g, so this is the cosine between the normal and the line of sight.
    valid = fits & (g > _GRAZING * length * ray_length)
    normals = -away / np.where(valid, length, 1)[..., None]
    return np.where(valid[..., None], normals, 0).astype(np.float32)


def _fit(
    inverse: Float32[np.ndarray, "H W"], radius: int, intrinsics: Intrinsics
) -> tuple[
    Float32[np.ndarray, "H W"],
    Float32[np.ndarray, "H W"],
    Float32[np.ndarray, "H W"],
    Bool[np.ndarray, "H W"],
]:
    """Least squares of 1/z = gx·dx + gy·dy + centre + above around each pixel.

    Returns:
      gx, gy, above, and where there are enough neighbours for them to mean something.
    """
    height, width = inverse.shape
    side = 2 * radius + 1
    padded = np.pad(inverse, radius)
    # Sums over a window's pixels, w short for how far 1/z is above the centre's. They are built up
    # row by row with plain additions: the same numbers on every machine, and in every thread.
    n, x, y, xx, xy, yy, w, wx, wy = np.zeros((9, height, width), np.float32)
    for dy in range(-radius, radius + 1):
        row_n, row_x, row_w = np.zeros((3, height, width), np.float32)
        for dx in range(-radius, radius + 1):
            tilt = _TILT * np.hypot(dx / intrinsics.fx, dy / intrinsics.fy)
            tolerance = np.float32(max(_TOLERANCE, tilt)) * inverse
            other = padded[radius + dy :, radius + dx :][:height, :width]
            difference = other - inverse
            near = ((np.abs(difference) <= tolerance) & (other > 0)).astype(np.float32)
            difference *= near
            row_n += near
            row_w += difference
            wx += np.float32(dx) * difference
            near *= np.float32(dx)
            row_x += near
            xx += np.float32(dx) * near
        n += row_n
        x += row_x
        w += row_w
        y += np.float32(dy) * row_n
        yy += np.float32(dy * dy) * row_n
        xy += np.float32(dy) * row_x
        wy += np.float32(dy) * row_w

    # One more than a line through the window holds, so that no fit is degenerate.
    fits = (n >= max(side + 1, _SUPPORT * side**2)) & (inverse > 0)
    n = np.maximum(n, 1)
    xx, xy, yy = xx - x * x / n, xy - x * y / n, yy - y * y / n
    wx, wy = wx - w * x / n, wy - w * y / n
    determinant = np.where(fits, xx * yy - xy * xy, 1)
    gx = (yy * wx - xy * wy) / determinant
    gy = (xx * wy - xy * wx) / determinant
    return gx, gy, (w - gx * x - gy * y) / n, fits
