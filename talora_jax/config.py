"""Every field of a config, its default, and the checks that need nothing compiled.

An experiment in `configs/` starts from `default()` and changes what it needs to. Any field can be
changed on the command line: `--config.batch_size=4 --config.adapter.kind=lora_shared`.

Fields of `OPTIONAL` can be None, which leaves them to what their comments say. Nothing here needs
JAX but `check`.
"""

import functools
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from ml_collections.config_dict import FieldReference, placeholder

from talora_jax import metrics, storage
from talora_jax.errors import (
    Refusals,
    UserError,
    check_choice,
    did_you_mean,
    nearest,
    one_line,
    printable,
    short,
    tell_together,
)
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
)
# What every run's config.json holds, whichever version wrote it.
_ALWAYS = ("tasks", "data", "model", "adapter", "optimizer", "batch_size", "steps")


class _Range(NamedTuple):
    """The numbers that a field can be; `open` where the lower or the upper end is not one."""

    low: float
    high: float = math.inf
    open: str = ""
    note: str = ""

    def holds(self, x: float) -> bool:
        above = self.low < x if "low" in self.open else self.low <= x
        return above and (x < self.high if "high" in self.open else x <= self.high)

    def told(self, x: float) -> str:
        """What is expected in place of x."""
        if self.low == 1:
            return "at least 1" if x < 1 else f"at most {self.high}"
        if self.high < math.inf:
            below = "below " if "high" in self.open else ""
            return f"{self.low} to {below}{self.high}{self.note}"
        return "above 0" if "low" in self.open else f"{self.low} or more"


_RANGES = {
    "seed": _Range(0, 2**32 - 1),
    "data.seed": _Range(0, 2**32 - 1),
    "data.train_frames": _Range(1),
    "data.val_frames": _Range(1),
    "data.depth_scale": _Range(0, open="low"),
    "data.max_depth": _Range(0, open="low"),
    "data.part_weights": _Range(0, open="low"),
    "adapter.scale": _Range(0),
    "adapter.dropout": _Range(0, 1, "high"),
    "prompts.masks": _Range(1, 255),  # as many as `talora_jax.data.masks` can tell apart
    "prompts.clicks": _Range(0),
    "prompts.min_pixels": _Range(1),
    "prompts.auxiliary_weight": _Range(0),
    "prompts.eval_masks": _Range(1, 255),
    "optimizer.learning_rate": _Range(0),
    "optimizer.warmup": _Range(0, 1, "high", ": a fraction of the steps"),
    "optimizer.weight_decay": _Range(0),
    "optimizer.clip_norm": _Range(0),
    **{f"optimizer.lr_scale.{group}": _Range(0) for group in GROUPS},
    "weighting.task_weights": _Range(0),
    "class_weights.given": _Range(0),
    "weighting.famo_learning_rate": _Range(0, open="low"),
    "weighting.famo_decay": _Range(0),
    "weighting.stch_mu": _Range(0, open="low"),
    "weighting.stch_warmup_epochs": _Range(0),
    "weighting.cagrad_c": _Range(0),
    "weighting.nash_update_every": _Range(1),
    "weighting.fairgrad_alpha": _Range(0, open="low"),
    "weighting.db_mtl_beta": _Range(0, 1, "high"),
    "orthogonal_weight": _Range(0),
    "batch_size": _Range(1),
    "accumulate": _Range(1),
    "eval_batch_size": _Range(1),
    "steps": _Range(1),
    "log_every": _Range(1),
    "eval_every": _Range(0),
    "patience": _Range(0),
    "checkpoint_every": _Range(0),
    "num_pictures": _Range(0),
    "read_threads": _Range(0),
    "read_workers": _Range(0),
    "mesh.fsdp": _Range(1),
    "mesh.task": _Range(1),
    "hosts.num_processes": _Range(1),
    "hosts.process_id": _Range(0),
    "hosts.initialization_timeout": _Range(1),
    "hosts.heartbeat_timeout": _Range(5),
    "hosts.shutdown_timeout": _Range(1),
}
# Of float32 and int32, in which a run computes and counts.
_LARGEST = 3.4e38
_MOST = 2**31 - 1
# Of fields that are tuples of numbers: what is expected, how many, and of which type.
_ENTRIES = {
    "adapter.ranks": ("three whole numbers p, q, v, as (32, 32, 4)", 3, int),
    "adapter.qkv": ("True or False for each of q, k and v", 3, bool),
    "adapter.blocks": ("a whole number or two, as -6 for the last 6 or (6, 12)", None, int),
    "augment.scale_range": ("a lowest and a highest scale", 2, float),
    "data.image_size": ("two whole numbers, height and width", 2, int),
    "data.intrinsics": ("four numbers, fx, fy, cx, cy", 4, float),
    "data.part_weights": ("a number for each part", None, float),
    "prompts.aspects": ("a lowest and a highest height / width", 2, float),
    "augment.scales": ("numbers", None, float),
    "weighting.task_weights": ("a number for each task", None, float),
    "class_weights.given": ("a number for each class", None, float),
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
    classes.given = ()  # of `given`, a number for each class
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
    if not path.exists():
        raise UserError(f"{path.parent} holds no run: {path} is missing")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=distinct)
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


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses values that cannot work, before anything is prepared or compiled.

    Raises:
      UserError: tells of each field that is wrong its value and what is allowed, a line each.
    """
    tell_together(refusals(config).by_field.values())


def refusals(config: ml_collections.ConfigDict) -> Refusals:
    """What `check` refuses, by the dotted name of the field that each sentence is about."""
    # Imported here: a command that reads configs need not have JAX.
    from talora_jax import tasks
    from talora_jax.models import adapters, attention_kernels, image_encoder, sam
    from talora_jax.weighting import classes, gradients, losses

    found = Refusals()
    defaults = flat_fields(default().to_dict())
    for field, value in flat_fields(config.to_dict()).items():
        name = field.removeprefix("config.")
        found.ask(functools.partial(_check_number, name, value, type(defaults.get(field))), name)
    for name, allowed in _PLACES.items():
        value = operator.attrgetter(name)(config)
        if value:
            found.ask(functools.partial(_check_place, name, value, allowed), name)
    choices = {
        "trains": TRAINS,
        "optimizer.kind": OPTIMIZERS,
        "model.size": sam.SIZES,
        "model.attention": attention_kernels.ATTENTION,
        "model.remat": image_encoder.REMAT,
        "model.dtype": DTYPES,
        "model.param_dtype": DTYPES,
        "adapter.kind": adapters.KINDS,
        "adapter.init": adapters.INITS,
        "weighting.kind": losses.KINDS + gradients.KINDS,
        "class_weights.kind": classes.KINDS,
    }
    if config.tracker:
        choices["tracker"] = TRACKERS
    for name, allowed in choices.items():
        value = operator.attrgetter(name)(config)
        if value is not None:
            found.ask(functools.partial(check_choice, f"config.{name}", value, allowed), name)
    if config.trains == "prompts":
        prompts = config.prompts
        found.ask(
            lambda: _check_names("prompts.domains", prompts.domains, tasks.MASKS), "prompts.domains"
        )
        if prompts.auxiliary:
            found.ask(
                lambda: _check_names("prompts.auxiliary", prompts.auxiliary, tasks.TASKS),
                "prompts.auxiliary",
            )
        found.ask(lambda: _check_learns(config), "prompts.learns", "adapter.kind")
        found.ask(lambda: _check_aspects(prompts.aspects), "prompts.aspects")
    else:
        found.ask(lambda: _check_names("tasks", config.tasks, tasks.TASKS), "tasks")
    # What an `AdapterConfig` reads, the one that it is about first.
    adapter = ("adapter.blocks", *(f"adapter.{name}" for name in config.adapter))
    if not config.model.weights:
        found.ask(
            lambda: check_ranks(
                config, sam.SIZES[config.model.size or DEFAULT_SIZE]().encoder.width
            ),
            "adapter.ranks",
            "model.size",
        )
        found.ask(
            lambda: adapters.AdapterConfig.of(config.adapter).adapted(
                sam.SIZES[config.model.size or DEFAULT_SIZE]().encoder.depth
            ),
            *adapter,
            "model.size",
        )
    found.ask(
        lambda: adapters.AdapterConfig.of(config.adapter),
        *adapter,
    )
    found.ask(lambda: _check_adapted(config), "adapter.qkv")
    found.ask(
        lambda: _check_orthogonal(config.orthogonal_parts, adapters.ORTHOGONAL_PARTS),
        "orthogonal_parts",
    )
    found.ask(
        lambda: _check_task_weights(config),
        *("weighting.task_weights", "weighting.kind", "tasks", "trains"),
    )
    found.ask(
        lambda: _check_class_weights(config),
        *("class_weights.given", "class_weights.kind", "trains"),
    )
    found.ask(lambda: _check_parts(config), "batch_size", "accumulate")
    found.ask(lambda: _check_init(config), "init", "adapter.extend", "trains")
    found.ask(lambda: _check_best(config), "best", "patience", "eval_every", "tasks", "trains")
    return found


def _check_adapted(config: ml_collections.ConfigDict) -> None:
    if not any(config.adapter.qkv):
        raise UserError(
            "config.adapter.qkv switches q, k and v all off; for no adapter set "
            "config.adapter.kind=none"
        )


def _check_orthogonal(parts: Sequence[str], known: Sequence[str]) -> None:
    for part in parts:
        check_choice("config.orthogonal_parts", part, known)
    if not parts:
        raise UserError(
            "config.orthogonal_parts is empty; for no regulariser set config.orthogonal_weight=0"
        )
    if len(set(parts)) < len(parts):
        raise UserError(f"config.orthogonal_parts names a part twice: {', '.join(parts)}")


def _check_task_weights(config: ml_collections.ConfigDict) -> None:
    weights = config.weighting.task_weights
    if config.weighting.kind == "fixed" and config.trains == "tasks":
        if len(weights) != len(config.tasks) or not any(weights):
            raise UserError(
                f"config.weighting.task_weights is {_short(weights)}, expected a weight for each "
                f"of the {len(config.tasks)} tasks, not all of them 0; or set "
                "config.weighting.kind=equal"
            )


def _check_class_weights(config: ml_collections.ConfigDict) -> None:
    weights = config.class_weights
    if weights.kind != "none" and config.trains == "prompts":
        raise UserError("config.class_weights are of tasks, and config.trains=prompts has none")
    if (weights.kind == "given") != bool(weights.given):
        raise UserError(
            f"config.class_weights.given is {_short(weights.given)} and "
            f"config.class_weights.kind={weights.kind}: expected numbers of kind=given and of no "
            "other"
        )
    if weights.kind == "given" and not any(weights.given):
        raise UserError("config.class_weights.given is all 0, expected a class that counts")


def _check_parts(config: ml_collections.ConfigDict) -> None:
    if config.batch_size % config.accumulate:
        raise UserError(
            f"config.batch_size={config.batch_size} is not divisible by "
            f"config.accumulate={config.accumulate}"
        )


def _check_init(config: ml_collections.ConfigDict) -> None:
    if config.init and config.trains == "prompts":
        raise UserError(
            "config.init names an adapter, and a promptable SAM starts from a base: set "
            "config.model.weights"
        )
    if config.init and config.adapter.extend:
        raise UserError(
            "config.init starts from an adapter of which all trains, config.adapter.extend adds "
            "tasks to one that stays as it is: set one of them"
        )


def _check_best(config: ml_collections.ConfigDict) -> None:
    """Refuses what cannot be a metric; which there are is known when the data is, see
    `training.best.check_metric`."""
    if not config.best:
        if config.patience:
            raise UserError(
                f"config.patience={config.patience} waits for gains in no metric: set config.best, "
                "as semantic/miou"
            )
        return
    task, _, metric = config.best.partition("/")
    said = f"config.best={printable(config.best, 80)}"
    check_choice(said, task, config.prompts.domains if config.trains == "prompts" else config.tasks)
    if metrics.sign(config.best) is None:
        hint = did_you_mean(metric.rpartition("/")[2], metrics.SIGNS)
        raise UserError(
            f"{said}: expected a metric that has a better way, as "
            f"semantic/miou or depth/pooled/abs_err{hint}"
        )
    if not config.eval_every:
        raise UserError(
            f"{said} is looked for among evaluations on the way: set "
            f"config.eval_every, as {max(1, config.steps // 10)}"
        )


def _check_number(name: str, value: Any, kind: type) -> None:
    """Refuses what is not finite, of another type or length than the field's, or out of range."""
    field = f"config.{name}"
    expected, length, kind = _ENTRIES.get(name, ("a number", None, kind))
    entries = value if isinstance(value, tuple | list) else (value,)
    if value is None and name not in OPTIONAL:
        raise UserError(f"{field} is None, expected a value")
    if value is None:
        return
    if kind in (bool, int, float):
        expected = "True or False" if name not in _ENTRIES and kind is bool else expected
        if (length and len(entries) != length) or not all(_is(kind, x) for x in entries):
            raise UserError(f"{field} is {_short(value)}, expected {expected}")
    if any(isinstance(x, float) and not abs(x) <= _LARGEST for x in entries):
        raise UserError(f"{field} is {_short(value)}, expected a finite number")
    for x in entries if name in _RANGES else ():
        if not _RANGES[name].holds(x):
            raise UserError(f"{field} is {_short(value)}, expected {_RANGES[name].told(x)}")
    if "seed" not in name and any(isinstance(x, int) and x > _MOST for x in entries):
        raise UserError(f"{field} is {_short(value)}, expected at most {_MOST}")


# What of a path can be: some places serve all, others hold workdirs, bases and adapters alone.
_PLACES = {
    "init": storage.place,
    "data.dir": storage.local,
    "data.path": storage.local,
    "data.description": storage.local,
    "model.weights": storage.place,
    "adapter.extend": storage.place,
}


def _check_place(name: str, path: str, allowed: Callable[[str], Any]) -> None:
    try:
        allowed(path)
    except UserError as error:
        raise UserError(f"config.{name}: {error}") from None


def _is(kind: type, x: Any) -> bool:
    """Whether x is of a field's kind: True is no number, and a whole number is a float, too."""
    if kind is bool or isinstance(x, bool):
        return kind is bool and isinstance(x, bool)
    return isinstance(x, int | float if kind is float else int)


def _short(value: Any) -> str:
    return short(tuple(value) if isinstance(value, list) else value, 80)


def _check_names(field: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    if not names:
        raise UserError(f"config.{field} is empty: name at least one of {', '.join(known)}")
    for name in names:
        check_choice(f"config.{field}", name, known)
    if len(set(names)) < len(names):
        what = "task" if field == "tasks" else "target"
        raise UserError(f"config.{field} names a {what} twice: {', '.join(names)}")


def _check_learns(config: ml_collections.ConfigDict) -> None:
    prompts = config.prompts
    check_choice("config.prompts.learns", prompts.learns, LEARNS)
    if prompts.learns == "iou_head":
        if config.adapter.kind not in ("none", "full") or config.adapter.blocks:
            raise UserError(
                "config.prompts.learns=iou_head trains no adapter; set config.adapter.kind=none "
                "and leave config.adapter.blocks out"
            )
        if prompts.auxiliary:
            raise UserError(
                "config.prompts.learns=iou_head changes no embedding; leave "
                "config.prompts.auxiliary empty"
            )


def _check_aspects(aspects: tuple[float, ...] | None) -> None:
    if aspects is not None and not (len(aspects) == 2 and 0 < aspects[0] <= aspects[1]):
        raise UserError(
            f"config.prompts.aspects is {tuple(aspects)}, expected a lowest height / width above 0 "
            "and a highest one"
        )


def check_read(config: ml_collections.ConfigDict) -> None:
    """Refuses fields of `data` that its data set does not read, where they would do nothing.

    Raises:
      UserError: no data set has that name, or it names the field and the data sets that read it.
    """
    from talora_jax.data import DATASETS, fields_read

    if unread := _unread(config.data):
        field, unset = next(iter(unread.items()))
        who = ", ".join(name for name in DATASETS if field in fields_read(name))
        raise UserError(
            f"config.data.{field} is {_short(config.data[field])}, which {config.data.name} does "
            f"not read, only {who}: leave it out, or set it to {unset!r}"
        )


def forget_unread(
    config: ml_collections.ConfigDict, began: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """A config of which fields of `data` are at their defaults that its data set does not read, as
    far as a run began with the same: there was a version that took them, and nothing depends on
    them.

    Args:
      began: the config of that run.
    """
    from talora_jax.data import DATASETS

    before, now = plain(began)["data"], plain(config)["data"]
    config = config.copy_and_resolve_references()
    if config.data.name in DATASETS:
        for field, unset in _unread(config.data).items():
            if before[field] == now[field]:
                config.data[field] = unset
    return config


def _unread(data: ml_collections.ConfigDict) -> dict[str, Any]:
    """The defaults of the fields that are set otherwise, and that the data set does not read."""
    from talora_jax.data import fields_read

    read = fields_read(data.name)
    return {
        field: unset
        for field, unset in default().data.items()
        if field not in read and data[field] not in (unset, OPTIONAL.get(f"data.{field}"))
    }


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


def check_mesh(config: ml_collections.ConfigDict, mesh_shape: Mapping[str, int]) -> None:
    """Refuses batches and tasks that the mesh does not divide.

    Raises:
      UserError: tells of each field what it must be divisible by, a line each.
    """
    shares = mesh_shape["data"] * mesh_shape["fsdp"]
    told = [
        f"config.{field} = {size} is not divisible by the mesh's data × fsdp = "
        f"{mesh_shape['data']} × {mesh_shape['fsdp']} = {shares}"
        for field, size in (
            ("batch_size / config.accumulate", config.batch_size // config.accumulate),
            ("eval_batch_size", config.eval_batch_size),
        )
        if size % shares
    ]
    if len(config.tasks) % mesh_shape["task"]:
        told.append(
            f"config.tasks names {len(config.tasks)} tasks, not divisible by "
            f"config.mesh.task={mesh_shape['task']}"
        )
    tell_together(told)
