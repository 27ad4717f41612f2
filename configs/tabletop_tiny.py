"""A folder of real RGB-D frames: objects on a table, four tasks from two kinds of files.

    python -m talora_jax.main --config configs/tabletop_tiny.py --config.data.path=PATH \\
        --workdir /tmp/tabletop

PATH holds image/, semantic/ (0 table, 1 object, 255 no label), depth/ (16-bit PNG, millimetres) and
instance/, as the Object Segmentation Database (Kinect) is packed by PointCloudLibrary/data. Normals
are derived from depth, edges from instances.

It stands on `sam_small`, which comes along. On one CPU core 6 min. On the 9 validation images, in
brackets the best constant: semantic mIoU 0.96 (0.43), depth abs_err 0.039 m (0.19 m), normals' mean
angle 7.2 degrees (13.0), edges ods_f 0.72 (0.13), tolerant/ods_f 0.87 (0.16); docs/evidence.md.
"""

from talora_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.tasks = ("semantic", "depth", "normals", "edges")
    config.data.name = "folder"
    config.data.image_size = (192, 256)
    config.data.class_names = ("table", "object")
    config.data.depth_scale = 1000.0
    config.data.ignore_label = 255
    config.data.intrinsics = (525.0, 525.0, 319.5, 239.5)
    config.model.weights = "sam_small"
    config.model.remat = "block"
    config.model.native_aspect = True
    config.adapter.ranks = (32, 64, 4)
    config.adapter.dropout = 0.0
    config.adapter.init = "lora"
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.lr_scale.no_mask = 3.0
    config.orthogonal_weight = 1e-4
    config.weighting.task_weights = (1.0, 2.0, 3.0, 4.0)
    config.batch_size = 1
    config.eval_batch_size = 9
    config.steps = 800
    return config
