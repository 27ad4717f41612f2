"""Every field of a config and its default; what they may be is in `talora_jax.config_checks`.

An experiment in `configs/` starts from `default()` and changes what it needs to. Any field can be
changed on the command line: `--config.batch_size=4 --config.adapter.kind=lora_shared`.

Fields of `OPTIONAL` can be None, which leaves them to what their comments say. Nothing here needs
JAX.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections.config_dict import FieldReference, placeholder

from talora_jax import storage
from talora_jax.errors import UserError, nearest, one_line
from talora_jax.files import distinct

DTYPES = ("auto", "float32", "bfloat16")
# Parameter groups that `optimizer.lr_scale` tells apart; see `talora_jax.training.optim`.
GROUPS = ("adapters", "no_mask", "decoders", "norms", "encoder", "prompts", "weighting")
# What a run trains: decoders of `tasks`, or a promptable SAM.
TRAINS = ("tasks", "prompts")
OPTIMIZERS = ("adam", "adamw", "muon")
# Where a run may be told of beside TensorBoard.
TRACKERS = ("wandb", "mlflow", "trackio")
# What of a SAM learns from prompts.
LEARNS = ("all", "iou_head")
DEFAULT_SIZE = "tiny"
# The fields that can be None, and the value that means the same: config.json and adapter files may
# hold it, and a shell's empty variable gives it.
OPTIONAL = {
    "init": "",
    "best": "",
    "trunk_dir": "",
    "data.dir": "",
    "data.path": "",
    "data.description": "",
    "data.image_size": (),
    "data.class_names": ("",),
    "data.depth_scale": 0.0,
    "data.max_depth": 0.0,
    "data.ignore_label": -1,
    "data.intrinsics": (0.0, 0.0, 0.0, 0.0),
    "data.partly": False,
    "data.part_weights": (),
    "prompts.aspects": (0.0, 0.0),
    "model.size": "",
    "model.weights": "",
    "adapter.blocks": (),
    "adapter.extend": "",
    "hosts.coordinator": "",
}
# Where a run happens and how often it reports: nothing that its numbers depend on.
PLACE = (
    "config.data.dir",
    "config.hosts.",
    "config.log_every",
    "config.eval_every",
    "config.checkpoint_every",
    "config.num_pictures",
    "config.read_threads",
    "config.read_workers",
    "config.tracker",
    "config.trunk_dir",
)
# What every run's config.json holds, whichever version wrote it.
_ALWAYS = ("tasks", "data", "model", "adapter", "optimizer", "batch_size", "steps")


def default() -> ml_collections.ConfigDict:
    """A locked config with every field at its default."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    # tasks: the mask decoders of `tasks`, with adapters on a SAM. prompts: a promptable SAM itself,
    # from the masks that `prompts.domains` name.
    config.trains = "tasks"
    # Order gives the rows of U3; see `talora_jax.tasks.TASKS` for the names, and
    # `talora_jax.task_names` for several of one kind.
    config.tasks = ("semantic", "depth", "normals")
    # An adapter to start from: its file, the workdir of a finished run, or user/name on the Hub. Of
    # it is taken what fits: what tasks share, and by their names what tasks have of their own; what
    # is not is told. Then all of it trains. With `adapter.extend` the old tasks stay as they are,
    # instead, and are of what the run leaves.
    config.init = placeholder(str)

    config.data = data = ml_collections.ConfigDict()
    data.name = "rooms"
    data.dir = placeholder(str)  # of prepared records; None: TFDS's own, ~/tensorflow_datasets
    # `folder`: the directory with image/ and one folder per task; `mix`: the JSON file that names
    # its parts; else the download, as the data set's module describes it
    data.path = placeholder(str)
    # `folder`: a dataset.json elsewhere, or one that comes along, as "cityscapes"
    data.description = placeholder(str)
    # H, W; `folder`, `mix`, `*_mtan`: None keeps the files' own size
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
    data.partly = placeholder(bool)  # takes samples that lack files of some targets
    # `mix`: how often each part is drawn, in their order; None leaves it to the file
    data.part_weights = placeholder(tuple)

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
    # auto | xla | splash | cudnn | tokamax, of the encoder's global blocks; see
    # `models.attention_kernels`.
    model.attention = "auto"
    # What the backward pass computes again: none | dots | block_but_attention | block, from the one
    # that keeps the most to the one that keeps the least; auto: dots on a CPU, else
    # block_but_attention.
    model.remat = "auto"

    config.adapter = adapter = ml_collections.ConfigDict()
    adapter.kind = "talora"  # talora | lora_shared | lora_per_task | none | full
    adapter.ranks = (32, 32, 4)
    adapter.scale = 0.5
    adapter.dropout = 0.1
    adapter.qkv = (True, True, True)
    # How TA-LoRA's factors start: published | orthonormal | scaled | lora, see
    # `models.adapters.Tucker`.
    adapter.init = "published"
    # The adapted blocks: None: all; (first, end), or (first,) for all from there on, as -6 for the
    # last 6. The others are the base's, LayerNorms and all; those before run once for all tasks,
    # without a backward pass. See `models.adapters.AdapterConfig`.
    adapter.blocks = placeholder(tuple)
    # An adapter file to which this run adds its `tasks`: what its tasks share stays as it is, and
    # what the run leaves has their tasks and the new ones.
    adapter.extend = placeholder(str)

    config.prompts = prompts = ml_collections.ConfigDict()
    # What masks are made of, see `talora_jax.tasks.MASKS`. An adapter that tells tasks apart has a
    # row for each of them.
    prompts.domains = ("instance",)
    # all: what `adapter.kind` says. iou_head: that head alone, which says how good each mask is and
    # with that which one is picked; masks stay as they are.
    prompts.learns = "all"
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
    # Of losses: fixed | equal | uncertainty | dynamic_average | random | famo | stch; of the
    # gradients of what tasks share: pcgrad | cagrad | nash_mtl | fairgrad | aligned_mtl | upgrad |
    # db_mtl. Defaults are the methods' authors'.
    balance.kind = "fixed"
    balance.task_weights = (1.0, 1.0, 4.0)  # of `fixed`, in the order of `tasks`
    balance.famo_learning_rate = 0.025  # of ξ
    balance.famo_decay = 1e-3  # γ, weight decay of ξ
    balance.stch_mu = 1.0  # how smooth the maximum over tasks is
    balance.stch_warmup_epochs = 4  # before the epoch whose mean losses are the nadir
    balance.cagrad_c = 0.4  # how far from the mean gradient, times its norm
    balance.nash_update_every = 1  # steps between solutions
    balance.fairgrad_alpha = 2.0  # 1: as Nash-MTL; more: the tasks that gain least count for more
    balance.db_mtl_beta = 0.9  # how much of the last step's smoothed gradients stays
    # Of tasks with classes, in their losses: none | given | median_frequency | inverse_log, see
    # `talora_jax.weighting.classes`.
    config.class_weights = classes = ml_collections.ConfigDict()
    classes.kind = "none"
    # Of `given`, a number for each class; or such a list for each task that has classes, in the
    # order of `tasks`, where () lets them all weigh alike.
    classes.given = ()
    config.orthogonal_weight = 1.0  # λ of the orthogonal regulariser
    config.orthogonal_parts = ("U1", "U2", "G")  # what it is the mean over

    config.batch_size = 4  # images per update, over all devices and accumulated parts
    config.accumulate = 1  # parts that a batch is computed in, one after the other
    config.eval_batch_size = 4
    config.steps = 1000
    config.log_every = 20
    config.eval_every = 0  # 0: only at the end
    # A metric, as semantic/miou: what the run leaves is of that evaluation where it is best.
    config.best = placeholder(str)
    config.patience = 0  # evaluations without gain in `best` after which the run ends; 0: never
    config.checkpoint_every = 100
    # Metrics that are no work for an accelerator: `edges/ods_f` and `ois_f` by one-to-one matching,
    # on one CPU core 0.3 s per image of 192×256, 2 s of 512×512. False leaves `edges/tolerant/…`.
    config.host_metrics = True
    config.num_pictures = 8
    # wandb | mlflow | trackio, beside TensorBoard; see `training.trackers`.
    config.tracker = ""
    config.read_threads = 2
    # Processes that read and augment instead, where threads do not keep up with an accelerator.
    config.read_workers = 0
    # A folder to keep what the blocks before the first adapted one (`adapter.blocks`) give of each
    # training image, so that neither another epoch nor another run computes it again; None: it is
    # not kept. No augmentation but `flip` then. See `training.trunks`.
    config.trunk_dir = placeholder(str)

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = -1  # -1 takes the devices that the other axes leave
    mesh.fsdp = 1
    mesh.task = 1

    config.hosts = hosts = ml_collections.ConfigDict()
    # address:port of process 0; "auto" on a TPU pod; None: one host
    hosts.coordinator = placeholder(str)
    hosts.num_processes = 1
    hosts.process_id = 0
    # Seconds: for all processes to come; of silence after which one counts as gone, and all end;
    # that the first to be done waits for the others.
    hosts.initialization_timeout = 300
    hosts.heartbeat_timeout = 30
    hosts.shutdown_timeout = 300
    return config.lock()


def read(path: Path) -> ml_collections.ConfigDict:
    """The config that a run left in its workdir.

    Raises:
      UserError: there is none, or one that this version does not know.
    """
    try:
        text = storage.text_of(path)
        if text is None:
            raise UserError(f"{path.parent} holds no run: {path} is missing")
        fields = json.loads(text, object_pairs_hook=distinct)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: {one_line(error)}. Put it back as the run wrote it, or choose "
            "another --workdir"
        ) from None
    try:
        config = from_fields(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    lacking = [name for name in _ALWAYS if name not in fields]
    if lacking:
        raise UserError(f"{path} is not as a run left it: it lacks {', '.join(lacking)}")
    return config


def from_fields(fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A config from what `to_dict` gave; fields that were added since have their defaults.

    Raises:
      UserError: a field that this version does not have, or of another type.
    """
    config = default()
    try:
        # Checked here: the library's own words for it are the whole config.
        _check_sections(fields, config)
        config.update(fields)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"a config that this talora_jax does not understand ({one_line(error)})"
        ) from None
    unset_empty(config)
    return config


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The fields as a config.json gives them back, to compare: what is unset is None, and every
    sequence a tuple."""
    return from_fields(json.loads(json.dumps(config.to_dict()))).to_dict()


def unset_empty(config: ml_collections.ConfigDict) -> None:
    """Makes None of what means the same, see `OPTIONAL`."""
    for name, empty in OPTIONAL.items():
        section, _, field = name.rpartition(".")
        holder = config[section] if section else config
        if holder[field] == empty:
            holder[field] = None


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


def named(config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = "") -> list[str]:
    """The dotted names of all sections and fields."""
    names: list[str] = []
    for name, value in config.items():
        names.append(f"{prefix}{name}")
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            names += named(value, f"{prefix}{name}.")
    return names


def _check_sections(fields: Any, config: ml_collections.ConfigDict, section: str = "") -> None:
    """Refuses fields that a config does not have, and a section that is none."""
    if not isinstance(fields, Mapping):
        where = f"its {section}" if section else "it"
        raise ValueError(f"{where} is a {type(fields).__name__}, expected fields by their names")
    for name, value in fields.items():
        path = f"{section}.{name}" if section else name
        if name not in config:
            raise ValueError(no_field(path))
        if isinstance(config[name], ml_collections.ConfigDict):
            _check_sections(value, config[name], path)
        elif isinstance(value, bool) and config.get_type(name) in (int, float):
            # The library would make 1 of it.
            raise ValueError(f"its {path} is {value}, expected a number")


def no_field(name: str, near: str | None = None) -> str:
    """The sentence about a dotted name that no field has, with the nearest that one has."""
    known = named(default())
    section, _, last = name.rpartition(".")
    if section and section not in known:
        return no_field(section)
    beside = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section]
    elsewhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    near = near or nearest(last, beside) or elsewhere.get(nearest(last, elsewhere))
    return f"the config has no field {one_line(last)}" + (f"; did you mean {near}?" if near else "")


def place(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The fields of `PLACE`, without those that this run's numbers depend on."""
    evaluates = "config.eval_every"
    return tuple(name for name in PLACE if name != evaluates or not config.best)
