"""Anyone's own data: a directory with `image/` and one folder per kind of target.

    image/     any image that Pillow opens, of one frame, or npy (uint8, or float in [0, 1]) of
               [H, W, 3]; turned upright if its EXIF says so, as its targets must be, too
    semantic/  class indices: png (8 bit, 16 bit or palette) or npy of whole numbers [H, W], NaN =
               no label
    depth/     16-bit png, or npy of floats [H, W] or [H, W, 1], in units of 1/depth_scale metres
               (by default millimetres in a png, metres in npy); 0, non-finite or above max_depth =
               no measurement
    normals/   8-bit RGB png v meaning 2v/255 - 1, or npy of floats [H, W, 3]; camera frame with
               x right, y down, z forward, so that surfaces seen have z < 0; what is far from unit
               length is invalid
    edges/     png (0 = none, anything else = edge), or npy (1 = edge, 0 = none, -1 = no label)
    …          and so on for every task, by its name: its `Task.read` says what its files hold
    semantic-materials/
               the same as semantic/, for a task of its own that is called `semantic:materials`;
               and so on for every kind
    valid-depth/
               png or npy [H, W] of depth's size: where it is 0 or NaN, depth is no measurement;
               and so on for every target
    instance/  object numbers: png or npy of whole numbers [H, W]; 0, negative or NaN = no label

Files of one sample share a stem (`image/0001.jpg`, `depth/0001.png`; in subfolders with them,
`image/kitchen/0001.jpg`, `depth/kitchen/0001.png`) and a size. Every image needs its file in every
folder that a run uses, unless `dataset.json` says that they are `partly` labelled. Only `image/`
and one of the others are needed: normals are derived from depth and intrinsics, edges from
instances or, lacking those, from semantic labels.

What the files cannot tell stands in an optional `dataset.json`; see
`talora_jax.data.folder.settings`. It may also say where files are that lie otherwise (`patterns`)
and what other kinds of files mean (`readings`). The samples, decoded and derived, are prepared once
and kept as array_record under `config.data.dir`; changed files, told by what they hold, are
prepared anew, and so are they for other settings but class names, splits, places and
`ignore_label`.
"""

from talora_jax.data.folder.open import open_folder, stated_class_names

__all__ = ["open_folder", "stated_class_names"]
