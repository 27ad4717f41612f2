"""Names and numbers of the annotations that PASCAL_MT puts together.

Facts from the ASTMT code (facebookresearch/astmt, `fblib/dataloaders/pascal_context.py` and
`fblib/util/db_info/{nyu_classes,context_classes,pascal_part}.json`).
"""

# Of PASCAL VOC, in the order of the label images' values.
SEMANTIC = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

# What `class_ind` of PASCAL-Part says for a person.
PERSON = SEMANTIC.index("person")

# A person's 24 parts in PASCAL-Part, merged to six: head, torso, upper arms, lower arms, upper
# legs, lower legs.
HUMAN_PARTS = {
    **dict.fromkeys(("head", "hair", "lear", "rear", "lebrow", "rebrow", "leye", "reye"), 1),
    **dict.fromkeys(("nose", "mouth"), 1),
    **dict.fromkeys(("neck", "torso"), 2),
    **dict.fromkeys(("luarm", "ruarm"), 3),
    **dict.fromkeys(("llarm", "rlarm", "lhand", "rhand"), 4),
    **dict.fromkeys(("luleg", "ruleg"), 5),
    **dict.fromkeys(("llleg", "rlleg", "lfoot", "rfoot"), 6),
}

# The highest class of PASCAL-Context's LabelMap.
LAST_CONTEXT_CLASS = 459

# PASCAL-Context's classes whose names NYUv2 has, too (without 'unknown'), and 'tvmonitor': for
# these the network behind `normals_distill`, trained on NYUv2, is trusted. The two lists of names
# are not in the download; this is what ASTMT makes of them.
# fmt: off
WITH_NORMALS = frozenset(
    (
        3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46,
        49, 50, 51, 53, 55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95,
        96, 101, 104, 105, 107, 111, 113, 115, 122, 124, 135, 141, 142, 143, 146, 150, 154, 157,
        158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215, 216,
        219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255,
        260, 261, 263, 269, 272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292,
        293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329, 330, 331, 336, 342, 345, 349,
        350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405,
        407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442,
        443, 444, 446, 454, 457,
    )
)
# fmt: on
