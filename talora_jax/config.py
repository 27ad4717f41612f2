"""Every field of a config, its default, and the checks that need nothing compiled.

An experiment in `configs/` starts from `default()` and changes what it needs to. Any field can be
changed on the command line: `--config.batch_size=4 --config.adapter.kind=lora_shared`.

Fields of `OPTIONAL` can be None, which leaves them to what their comments say. Nothing here needs
JAX but `check`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections.config_dict import FieldReference, placeholder

from talora_jax.errors import UserError, check_choice, one_line

DTYPES = ("auto", "float32", "bfloat16")
# Parameter groups that `optimizer.lr_scale` tells apart; see `talora_jax.training.optim`.
GROUPS = ("adapters", "no_mask", "decoders", "norms", "encoder", "prompts", "weighting")
# What a run trains: decoders of `tasks`, or a promptable SAM.
TRAINS = ("tasks", "prompts")
OPTIMIZERS = ("adam", "adamw", "muon")
DEFAULT_SIZE = "tiny"
# The fields that can be None, and the value that means the same: config.json and adapter files may
# hold it, and a shell's empty variable gives it.
OPTIONAL = {
    "data.dir": "",
    "data.path": "",
    "data.image_size": (),
    "data.class_names": ("",),
    "data.depth_scale": 0.0,
    "data.max_depth": 0.0,
    "data.ignore_label": -1,
    "data.intrinsics": (0.0, 0.0, 0.0, 0.0),
    "prompts.aspects": (0.0, 0.0),
    "model.size": "",
    "model.weights": "",
    "adapter.extend": "",
    "hosts.coordinator": "",
}


def default() -> ml_collections.ConfigDict:
    """A locked config with every field at its default."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    # tasks: the mask decoders of `tasks`, with adapters on a SAM. prompts: a promptable SAM itself,
    # from the masks that `prompts.domains` name.
    config.trains = "tasks"
    # Order gives the rows of U3; see `talora_jax.tasks.TASKS` for the names.
    config.tasks = ("semantic", "depth", "normals")

    config.data = data = ml_collections.ConfigDict()
    data.name = "rooms"
    data.dir = placeholder(str)  # of prepared records; None: TFDS's own, ~/tensorflow_datasets
    # `folder`: the directory with image/ and one folder per task; else the download, as the data
    # set's module describes it
    data.path = placeholder(str)
    # H, W; `folder`, `*_mtan`: None keeps the files' own size
    data.image_size = FieldReference((192, 256), tuple)
    data.seed = 0  # `rooms`: another seed is another set of rooms
    data.train_frames = 1000  # `rooms`
    data.val_frames = 100  # `rooms`
    data.val_fraction = 0.2  # `folder`, where dataset.json names no splits
    # `folder`; None leaves them to dataset.json
    data.class_names = placeholder(tuple)
    data.depth_scale = placeholder(float)  # units of a depth file per metre; `nyuv2_mtan` as well
    data.max_depth = placeholder(float)  # metres, above it is no measurement; `nyuv2_mtan` as well
    data.ignore_label = placeholder(int)  # the label for "none"; `*_mtan` as well
    data.intrinsics = placeholder(tuple)  # fx, fy, cx, cy

    config.augment = augment = ml_collections.ConfigDict()
    # MTAN's: one of these scales brings a random window nearer.
    augment.scales = (1.0, 1.2, 1.5)
    # ASTMT's: up to so many degrees either way, and a scale between the two, about the centre.
    augment.turn = 0.0
    augment.scale_range = (1.0, 1.0)
    augment.flip = True
    augment.colour_jitter = 0.0
    augment.noise = 0.0  # the highest standard deviation, in parts of the whole range
    augment.shapes = 0  # the most free-form shapes to paste on an image, each one an object

    config.model = model = ml_collections.ConfigDict()
    # One of `talora_jax.models.sam.SIZES`; None: what the base has, without a base DEFAULT_SIZE.
    model.size = placeholder(str)
    model.weights = placeholder(str)  # a base, see `weights_convert`; None: random numbers
    model.pixel_normalisation = True  # False reproduces the official MTSAM code
    # Encodes an image's own patches and no padding: faster, the same for square images, else not
    # what published recipes do. See `talora_jax.models.geometry`.
    model.native_aspect = False
    model.dtype = "auto"  # of activations; auto: bfloat16 on accelerators, float32 on CPU
    model.param_dtype = "auto"  # of frozen parameters
    # auto | xla | splash | cudnn, of the encoder's global blocks; see `models.attention_kernels`.
    model.attention = "auto"
    # What the backward pass computes again: none | dots | block_but_attention | block, from the
    # fastest to the one that needs the least memory.
    model.remat = "block_but_attention"

    config.adapter = adapter = ml_collections.ConfigDict()
    adapter.kind = "talora"  # talora | lora_shared | lora_per_task | none | full
    adapter.ranks = (32, 32, 4)
    adapter.scale = 0.5
    adapter.dropout = 0.1
    adapter.qkv = (True, True, True)
    # How TA-LoRA's factors start: published | orthonormal | scaled, see `models.adapters.Tucker`.
    adapter.init = "published"
    # An adapter file to which this run adds its `tasks`: what its tasks share stays as it is, and
    # what the run leaves has their tasks and the new ones.
    adapter.extend = placeholder(str)

    config.prompts = prompts = ml_collections.ConfigDict()
    # What masks are made of, see `talora_jax.tasks.MASKS`. An adapter that tells tasks apart has a
    # row for each of them.
    prompts.domains = ("instance",)
    prompts.masks = 8  # of an image and domain, in a step
    prompts.clicks = 3  # corrective clicks after the first prompt
    prompts.min_pixels = 64  # the least area of a mask, in pixels of the padded image
    # The lowest and highest height / width that training cuts images to; None keeps their own.
    prompts.aspects = placeholder(tuple)
    # Tasks that a linear layer on the embeddings learns beside the masks; it is dropped in the end.
    prompts.auxiliary = ()
    prompts.auxiliary_weight = 1.0  # of each one's loss
    prompts.eval_masks = 32  # of an image and domain, in evaluation

    config.optimizer = optimizer = ml_collections.ConfigDict()
    # adam: the released recipe's, weight decay added to the gradient (L2). adamw: decay apart, of
    # matrices alone. muon: that, with orthogonal updates of matrices.
    optimizer.kind = "adam"
    optimizer.learning_rate = 1e-3
    optimizer.warmup = 0.05  # fraction of the steps
    optimizer.weight_decay = 1e-6
    optimizer.clip_norm = 0.0  # of the whole gradient; 0 does not clip
    optimizer.lr_scale = ml_collections.ConfigDict(dict.fromkeys(GROUPS, 1.0))

    config.weighting = balance = ml_collections.ConfigDict()
    # Of losses: fixed | equal | uncertainty | dynamic_average | random | famo; of the gradients of
    # what tasks share: pcgrad | cagrad | nash_mtl | db_mtl. Defaults are the methods' authors'.
    balance.kind = "fixed"
    balance.task_weights = (1.0, 1.0, 4.0)  # of `fixed`, in the order of `tasks`
    balance.famo_learning_rate = 0.025  # of ξ
    balance.famo_decay = 1e-3  # γ, weight decay of ξ
    balance.cagrad_c = 0.4  # how far from the mean gradient, times its norm
    balance.nash_update_every = 1  # steps between solutions
    balance.db_mtl_beta = 0.9  # how much of the last step's smoothed gradients stays
    config.orthogonal_weight = 1.0  # λ of the orthogonal regulariser
    config.orthogonal_parts = ("U1", "U2", "G")  # what it is the mean over

    config.batch_size = 4  # images per update, over all devices and accumulated parts
    config.accumulate = 1  # parts that a batch is computed in, one after the other
    config.eval_batch_size = 4
    config.steps = 1000
    config.log_every = 20
    config.eval_every = 0  # 0: only at the end
    config.checkpoint_every = 100
    # Metrics that are no work for an accelerator: `edges/ods_f` and `ois_f` by one-to-one matching,
    # on one CPU core 0.3 s per image of 192×256, 2 s of 512×512. False leaves `edges/tolerant/…`.
    config.host_metrics = True
    config.num_pictures = 8
    config.read_threads = 2
    # Processes that read and augment instead, where threads do not keep up with an accelerator.
    config.read_workers = 0

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = -1  # -1 takes the devices that the other axes leave
    mesh.fsdp = 1
    mesh.task = 1

    config.hosts = hosts = ml_collections.ConfigDict()
    # address:port of process 0; "auto" on a TPU pod; None: one host
    hosts.coordinator = placeholder(str)
    hosts.num_processes = 1
    hosts.process_id = 0
    return config.lock()


def read(path: Path) -> ml_collections.ConfigDict:
    """The config that a run left in its workdir.

    Raises:
      UserError: there is none, or one that this version does not know.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} holds no run: {path} is missing")
    try:
        return from_fields(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def from_fields(fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A config from what `to_dict` gave; fields that were added since have their defaults.

    Raises:
      UserError: a field that this version does not have, or of another type.
    """
    config = default()
    try:
        config.update(fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"a config that this talora_jax does not understand ({one_line(error)})"
        ) from None
    unset_empty(config)
    return config


def unset_empty(config: ml_collections.ConfigDict) -> None:
    """Makes None of what means the same, see `OPTIONAL`."""
    for name, empty in OPTIONAL.items():
        section, field = name.split(".")
        if config[section][field] == empty:
            config[section][field] = None


def model_name(model: Mapping[str, Any]) -> str:
    """What to call the model of `config.model`, for people to read."""
    weights = Path(model["weights"]).stem if model["weights"] else None
    return model["size"] or weights or DEFAULT_SIZE


def flat_fields(config: Mapping[str, Any], prefix: str = "config") -> dict[str, Any]:
    """{"config.data.name": …} from nested dicts."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}.{name}"
        flat |= flat_fields(value, key) if isinstance(value, Mapping) else {key: value}
    return flat


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses values that cannot work, before anything is prepared or compiled.

    Raises:
      UserError: names the field, its value and what is allowed.
    """
    # Imported here: a command that reads configs need not have JAX.
    from talora_jax import tasks
    from talora_jax.models import adapters, attention_kernels, image_encoder, sam
    from talora_jax.weighting import gradients, losses

    check_choice("config.trains", config.trains, TRAINS)
    check_choice("config.optimizer.kind", config.optimizer.kind, OPTIMIZERS)
    if config.trains == "prompts":
        _check_names("prompts.domains", config.prompts.domains, tasks.MASKS)
        if config.prompts.auxiliary:
            _check_names("prompts.auxiliary", config.prompts.auxiliary, tasks.TASKS)
        _check_prompts(config.prompts)
    else:
        _check_names("tasks", config.tasks, tasks.TASKS)
    if config.model.size is not None:
        check_choice("config.model.size", config.model.size, sam.SIZES)
    check_choice("config.model.attention", config.model.attention, attention_kernels.ATTENTION)
    check_choice("config.model.remat", config.model.remat, image_encoder.REMAT)
    check_choice("config.model.dtype", config.model.dtype, DTYPES)
    check_choice("config.model.param_dtype", config.model.param_dtype, DTYPES)
    check_choice("config.adapter.kind", config.adapter.kind, adapters.KINDS)
    check_choice("config.adapter.init", config.adapter.init, adapters.INITS)
    check_choice("config.weighting.kind", config.weighting.kind, losses.KINDS + gradients.KINDS)

    if not config.model.weights:
        size = config.model.size or DEFAULT_SIZE
        check_ranks(config, sam.SIZES[size]().encoder.width)
    if not any(config.adapter.qkv):
        raise UserError(
            "config.adapter.qkv switches q, k and v all off; for no adapter set "
            "config.adapter.kind=none"
        )
    for part in config.orthogonal_parts:
        check_choice("config.orthogonal_parts", part, adapters.ORTHOGONAL_PARTS)
    if not config.orthogonal_parts:
        raise UserError(
            "config.orthogonal_parts is empty; for no regulariser set config.orthogonal_weight=0"
        )
    if len(set(config.orthogonal_parts)) < len(config.orthogonal_parts):
        raise UserError(
            f"config.orthogonal_parts names a part twice: {', '.join(config.orthogonal_parts)}"
        )
    if not 0 <= config.adapter.dropout < 1:
        raise UserError(
            f"config.adapter.dropout is {config.adapter.dropout}, expected 0 to below 1"
        )
    if not 0 <= config.optimizer.warmup < 1:
        raise UserError(
            f"config.optimizer.warmup is {config.optimizer.warmup}, expected 0 to below 1: "
            "a fraction of the steps"
        )
    for field in ("batch_size", "eval_batch_size", "accumulate", "steps", "log_every"):
        if config[field] < 1:
            raise UserError(f"config.{field} is {config[field]}, expected at least 1")
    for field in ("read_threads", "read_workers"):
        if config[field] < 0:
            raise UserError(f"config.{field} is {config[field]}, expected 0 or more")
    for field, fits, expected in (
        ("famo_learning_rate", lambda x: x > 0, "above 0"),
        ("famo_decay", lambda x: x >= 0, "0 or more"),
        ("cagrad_c", lambda x: x >= 0, "0 or more"),
        ("nash_update_every", lambda x: x >= 1, "at least 1"),
        ("db_mtl_beta", lambda x: 0 <= x < 1, "0 to below 1"),
    ):
        if not fits(config.weighting[field]):
            raise UserError(
                f"config.weighting.{field} is {config.weighting[field]}, expected {expected}"
            )
    for field in ("eval_every", "checkpoint_every", "num_pictures", "orthogonal_weight"):
        if config[field] < 0:
            raise UserError(f"config.{field} is {config[field]}, expected 0 or more")
    for field in ("depth_scale", "max_depth"):
        value = config.data[field]
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"config.data.{field} is {value}, expected a number above 0")
    if config.batch_size % config.accumulate:
        raise UserError(
            f"config.batch_size={config.batch_size} is not divisible by "
            f"config.accumulate={config.accumulate}"
        )


def _check_names(field: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    if not names:
        raise UserError(f"config.{field} is empty: name at least one of {', '.join(known)}")
    for name in names:
        check_choice(f"config.{field}", name, known)
    if len(set(names)) < len(names):
        what = "task" if field == "tasks" else "target"
        raise UserError(f"config.{field} names a {what} twice: {', '.join(names)}")


def _check_prompts(prompts: ml_collections.ConfigDict) -> None:
    for field in ("masks", "min_pixels", "eval_masks"):
        if prompts[field] < 1:
            raise UserError(f"config.prompts.{field} is {prompts[field]}, expected at least 1")
    for field in ("masks", "eval_masks"):
        # What `talora_jax.data.masks` can tell apart.
        if prompts[field] > 255:
            raise UserError(f"config.prompts.{field} is {prompts[field]}, expected at most 255")
    for field in ("clicks", "auxiliary_weight"):
        if prompts[field] < 0:
            raise UserError(f"config.prompts.{field} is {prompts[field]}, expected 0 or more")
    aspects = prompts.aspects
    if aspects is not None and not (len(aspects) == 2 and 0 < aspects[0] <= aspects[1]):
        raise UserError(
            f"config.prompts.aspects is {tuple(aspects)}, expected a lowest height / width above 0 "
            "and a highest one"
        )


def check_ranks(config: ml_collections.ConfigDict, width: int) -> None:
    """Refuses ranks that an encoder of this width does not have.

    Raises:
      UserError: names the rank and what is allowed.
    """
    for rank, most, name in zip(
        config.adapter.ranks, (width, 3 * width, None), ("p", "q", "v"), strict=True
    ):
        if rank < 1 or (most and rank > most):
            raise UserError(
                f"config.adapter.ranks: {name} is {rank}, expected at least 1"
                + (f" and at most {most} for {model_name(config.model)}" if most else "")
            )


def check_mesh(config: ml_collections.ConfigDict, mesh_shape: dict[str, int]) -> None:
    """Refuses batches and tasks that the mesh does not divide.

    Raises:
      UserError: names the field and what it must be divisible by.
    """
    shares = mesh_shape["data"] * mesh_shape["fsdp"]
    for field, size in (
        ("batch_size / config.accumulate", config.batch_size // config.accumulate),
        ("eval_batch_size", config.eval_batch_size),
    ):
        if size % shares:
            raise UserError(
                f"config.{field} = {size} is not divisible by the mesh's data × fsdp = "
                f"{mesh_shape['data']} × {mesh_shape['fsdp']} = {shares}"
            )
    if len(config.tasks) % mesh_shape["task"]:
        raise UserError(
            f"config.tasks names {len(config.tasks)} tasks, not divisible by "
            f"config.mesh.task={mesh_shape['task']}"
        )
