"""The 13 classes of NYUv2, which the data set and the rooms rendered in its manner share."""

# The 13 classes of Couprie et al. (ICLR 2013) in the order of https://github.com/ankurhanda/
# SceneNetv1.0, whose labels MTAN took (lorenmt/mtan#11) and counts from 0: there 0 is no label.
CLASS_NAMES = (
    "bed",
    "books",
    "ceiling",
    "chair",
    "floor",
    "furniture",
    "objects",
    "picture",
    "sofa",
    "table",
    "tv",
    "wall",
    "window",
)
