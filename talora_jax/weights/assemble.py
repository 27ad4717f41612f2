"""Base and adapter to one model, and back: which tensor goes where, and what belongs together.

In mSAM the encoder of a base goes in as it is, the decoder into every task's decoder, the no-mask
row into every output channel's row. Tensors under mSAM's own names go in as they are. Training,
prediction, export and conversion put their models together here.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike

from talora_jax.errors import UserError
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import MSam, trainable
from talora_jax.models.sam import SIZES, Sam, SamConfig
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.base_file import read_base, sam_config

Model = TypeVar("Model", MSam, Sam)
Tree = TypeVar("Tree")
Tensors = Mapping[str, np.ndarray]

# Parts of a promptable SAM that mSAM does not have.
_UNUSED = ("prompt_encoder.", "mask_decoder.")


def load_sam(path: str | Path, *, dtype: DTypeLike = jnp.float32) -> Sam:
    """The promptable SAM of a base.

    >>> import talora_jax
    >>> sam = talora_jax.load_sam("sam_micro.safetensors")
    >>> sam.config.encoder.image_size, sam.config.encoder.depth
    (64, 4)

    Args:
      path: of the base.
      dtype: to compute in; parameters stay float32.

    Raises:
      UserError: no base, or a base of MTSAM training, which has no decoder for prompts.
    """
    tensors, description = read_base(path)
    if description.tasks is not None:
        raise UserError(
            f"{path} has mask decoders for {', '.join(description.tasks)} and none for prompts: "
            "it serves multi-task models, not a promptable SAM"
        )
    return build(lambda: Sam(description.config, dtype=dtype, rngs=nnx.Rngs(0)), tensors)


def load_msam(
    base: str | Path | None,
    adapter: AdapterConfig,
    channels: Mapping[str, int],
    *,
    sam: SamConfig | None = None,
    seed: int = 0,
    **how: Any,
) -> MSam:
    """A multi-task model to train: a base's weights, and adapters that change nothing yet.

    >>> import talora_jax
    >>> adapter = talora_jax.AdapterConfig(ranks=(4, 4, 2))
    >>> model = talora_jax.load_msam("sam_micro.safetensors", adapter, {"depth": 1})
    >>> model(jnp.zeros((1, 60, 80, 3)))["depth"].shape
    (1, 60, 80, 1)

    Args:
      base: of a SAM or of MTSAM training; None to start from random numbers.
      channels: output channels of every task.
      sam: the sizes, where there is no base.
      seed: of what the base does not have.
      how: as `MSam` takes it: pixel_normalisation, native_aspect, attention, remat, dtype.

    Raises:
      UserError: there is no such base, it has other tasks, or there are neither base nor sizes.
    """
    tensors = None
    if base is not None:
        tensors, description = read_base(base)
        sam = description.config
        check_base_tasks(description.tasks, tuple(channels), base)
    if sam is None:
        raise UserError("load_msam needs a base, or sizes (sam=…) to start from random numbers")
    return build(lambda: make_msam(sam, adapter, channels, seed=seed, **how), tensors)


def make_msam(
    sam: SamConfig, adapter: AdapterConfig, channels: Mapping[str, int], *, seed: int, **how: Any
) -> MSam:
    """The model with the random numbers of a seed; cheap under `nnx.eval_shape`."""
    # A base that is random numbers is drawn again from its seed alone.
    return MSam(sam, adapter, channels, rngs=nnx.Rngs(jax.random.key(seed, impl="rbg")), **how)


def check_base_tasks(theirs: tuple[str, ...] | None, ours: tuple[str, ...], base: Any) -> None:
    """Rows of U3 and no-mask rows of MTSAM training are in the order of its tasks.

    Raises:
      UserError: they are other tasks, or in another order.
    """
    if theirs is not None and theirs != ours:
        raise UserError(
            f"the tasks are {', '.join(ours)}, but {base} was trained for {', '.join(theirs)}, in "
            "this order"
        )


def build(
    make: Callable[[], Model],
    base: Mapping[str, np.ndarray] | None = None,
    learnt: Mapping[str, np.ndarray] | None = None,
) -> Model:
    """The model that `make` makes; only what neither base nor adapter has is drawn at random.

    Args:
      make: makes a model with random parameters.
      base: tensors of a base; None for a model that starts from random numbers.
      learnt: tensors of an adapter file, which take the place of the base's.

    Raises:
      UserError: tensors are missing, unexpected or misshapen; all are listed.
    """
    graphdef, abstract = nnx.split(nnx.eval_shape(make))
    flat = nnx.to_flat_state(abstract)
    names = {path: name_of(path) for path, _ in flat}
    tensors: dict[str, np.ndarray] = {}
    if base is not None:
        model = nnx.merge(graphdef, abstract)
        tensors |= for_msam(base, model) if isinstance(model, MSam) else base
    tensors |= learnt or {}

    # Adapters are what training adds: the only part that a base may lack.
    fresh_paths = [
        p for p, n in names.items() if n not in tensors and (base is None or "adapter" in p)
    ]
    problems = [
        f"missing {n}" for p, n in names.items() if n not in tensors and p not in fresh_paths
    ]
    problems += [f"unexpected {n}" for n in tensors if n not in names.values()]
    for path, variable in flat:
        value = tensors.get(names[path])
        if value is not None and value.shape != variable.shape:
            problems.append(f"{names[path]} has shape {value.shape}, expected {variable.shape}")
    if problems:
        what = "the base" if not learnt else "the adapter with its base" if base else "the adapter"
        raise UserError(f"{what} does not fit this model: " + "; ".join(problems))

    fresh: dict[tuple, jax.Array] = {}
    if base is None:
        # All of it, whatever an adapter replaces: in another program, rounding might differ, and
        # the base with it.
        fresh = _run_once(lambda: _select(make(), [path for path, _ in flat]))
    elif fresh_paths:
        # Compiled as a whole, the random numbers that the base replaces are never drawn.
        fresh = _run_once(lambda: _select(make(), fresh_paths))
    leaves = [
        (
            path,
            variable.replace(
                jnp.asarray(tensors[names[path]], variable.dtype)
                if names[path] in tensors
                else fresh[path]
            ),
        )
        for path, variable in flat
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def resolve_dtype(name: str) -> jnp.dtype:
    """`auto` is bfloat16 on accelerators and float32 on CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def name_of(path: tuple) -> str:
    """The name of a parameter in files, by its path in the model."""
    return ".".join(map(str, path))


def filled(
    abstract: nnx.State, tensors: Mapping[str, Array], module: tuple[str, ...] = ()
) -> nnx.State:
    """A state with its values.

    Args:
      abstract: what belongs into it.
      tensors: by their path in the whole model; there may be more of them.
      module: where in the model the state is.

    Raises:
      KeyError: a tensor is missing.
    """
    return nnx.from_flat_state(
        [
            (path, variable.replace(tensors[name_of((*module, *path))]))
            for path, variable in nnx.to_flat_state(abstract)
        ]
    )


def tensors_of(state: nnx.State) -> dict[str, np.ndarray]:
    """The values of a state by their path in the model, on the host."""
    return {name_of(path): np.asarray(variable[...]) for path, variable in nnx.to_flat_state(state)}


def fingerprint(frozen: Mapping[str, Array | np.ndarray]) -> str:
    """SHA-256 over names and values of the frozen parameters, float32: which base an adapter fits.

    Args:
      frozen: by path in the model.
    """
    digest = hashlib.sha256()
    for name, value in sorted(frozen.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _run_once(function: Callable[[], Tree]) -> Tree:
    """The result of a program that is not worth optimising: compiling it takes most of the time."""
    compiled = jax.jit(function).lower().compile({"xla_backend_optimization_level": 0})
    return compiled()


def _select(model: MSam | Sam, paths: list[tuple]) -> dict:
    return {p: v[...] for p, v in nnx.to_flat_state(nnx.state(model)) if p in paths}


def for_msam(base: Mapping[str, np.ndarray], model: MSam) -> dict[str, np.ndarray]:
    """A base under mSAM's names: decoders stacked by task, the no-mask row copied per channel."""
    tensors = {
        name: x for name, x in base.items() if not name.startswith((*_UNUSED, "mask_decoders."))
    }
    first = f"mask_decoders.{model.tasks[0]}."
    for inside in [name.removeprefix(first) for name in base if name.startswith(first)]:
        tensors[f"mask_decoders.{inside}"] = np.stack(
            [base[f"mask_decoders.{task}.{inside}"] for task in model.tasks]
        )
    for name, x in base.items():
        if name.startswith("mask_decoder."):
            inside = name.removeprefix("mask_decoder.")
            tensors[f"mask_decoders.{inside}"] = np.stack([x] * len(model.tasks))
    positions, rows = "prompt_encoder.positions.gaussian_matrix", "prompt_encoder.no_mask_embed"
    if positions in base:
        tensors["positions.gaussian_matrix"] = base[positions]
    if rows in base:
        single = len(base[rows]) == 1
        tensors["no_mask_embed"] = (
            np.tile(base[rows], (sum(model.channels), 1)) if single else base[rows]
        )
    return tensors


# An adapter file and its base.


@dataclasses.dataclass(frozen=True)
class Base:
    """What an adapter is put on.

    Attributes:
      sam: the sizes.
      frozen: what was frozen when the adapter was trained, by path in the model.
      fingerprint: of these.
      prompts: a SAM's embeddings of prompts, for which mSAM has no use; by our names.
      file: "" where the base is random numbers.
    """

    sam: SamConfig
    frozen: Mapping[str, Array]
    fingerprint: str
    prompts: Tensors
    file: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return self.file or "the random numbers drawn here"

    def astype(self, dtype: DTypeLike) -> "Base":
        """The same with its parameters in another dtype; the fingerprint stays float32's."""
        return dataclasses.replace(
            self, frozen={name: x.astype(dtype) for name, x in self.frozen.items()}
        )


def read_base_of(
    file: AdapterFile, path: str | Path, base: str | Path | None = None, *, force: bool = False
) -> Base:
    """The base of an adapter, from its file, or drawn again where it was random numbers.

    Args:
      path: of the adapter, for messages.
      base: where the base lies, if not where it lay in training.
      force: take a base of another fingerprint, if it has the same sizes.

    Raises:
      UserError: there is no base, it is another one, or its sizes are others.
    """
    weights = str(base or file.weights)
    if not weights:
        sam = sizes_of(file, path)
        drawn = build(lambda: model_of(file, sam))
        _, _, frozen = nnx.split(drawn, trainable(drawn.adapter), ...)
        values = {name_of(p): v[...] for p, v in nnx.to_flat_state(frozen)}
        made = Base(sam, values, fingerprint(values), {})
    else:
        place = Path(weights).expanduser()
        if not place.is_file():
            raise UserError(
                f"there is no base {weights}: {path} was trained on {file.base}, and needs that "
                "(base=…, or --base on the command line)"
            )
        tensors, description = read_base(place)
        check_base_tasks(description.tasks, file.tasks, weights)
        made = base_of(file, path, tensors, description.config, weights)
    check_fits(file, path, made, force=force)
    return made


def base_of(
    file: AdapterFile, path: str | Path, tensors: Tensors, sam: SamConfig, name: str
) -> Base:
    """The base of an adapter from the tensors of a base file.

    Raises:
      UserError: it has other sizes than the adapter was trained with.
    """
    wanted = sizes_of(file, path)
    if wanted not in (sam, None):
        raise UserError(
            f"{path} does not fit {name}: it was trained on a SAM of {wanted.in_words()}, and this "
            f"is one of {sam.in_words()}"
        )
    abstract = nnx.eval_shape(lambda: model_of(file, sam))
    _, _, frozen = nnx.split(abstract, trainable(abstract.adapter), ...)
    # LayerNorms and decoders are the adapter's.
    given = {n: x for n, x in for_msam(tensors, abstract).items() if n not in file.tensors}
    check_shapes(path, name, frozen, given)
    given = {n: jnp.asarray(x, jnp.float32) for n, x in given.items()}
    prompts = {n: x for n, x in tensors.items() if n.startswith("prompt_encoder.")}
    return Base(sam, given, fingerprint(given), prompts, name)


def assemble(file: AdapterFile, path: str | Path, base: Base, **how: Any) -> MSam:
    """The trained model, all tasks in one.

    Args:
      path: of the adapter, for messages.
      base: from `read_base_of`.
      how: as `MSam` takes it, what the file does not tell: attention, remat, dtype.

    Raises:
      UserError: the adapter's tensors are not those of a model with its fields.
    """
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: model_of(file, base.sam, **how)))
    return nnx.merge(graphdef, filled(abstract, joined(file, path, base)))


def joined(file: AdapterFile, path: str | Path, base: Base) -> dict[str, Array]:
    """Base and adapter: every parameter of the trained model, by path.

    Raises:
      UserError: as `assemble`.
    """
    abstract = nnx.eval_shape(lambda: model_of(file, base.sam))
    _, learnt, frozen = nnx.split(abstract, trainable(abstract.adapter), ...)
    check_shapes(path, "its own config", learnt, file.tensors)
    check_shapes(path, base.name, frozen, base.frozen)
    return {**base.frozen, **{name: jnp.asarray(x) for name, x in file.tensors.items()}}


def save_adapter(
    model: MSam,
    path: str | Path,
    base: str | Path | None,
    *,
    class_names: Mapping[str, tuple[str, ...]] | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
) -> AdapterFile:
    """Writes what a model of `load_msam` has learnt, by whatever loop, for `load` to read.

    >>> import talora_jax
    >>> adapter = talora_jax.AdapterConfig(ranks=(4, 4, 2))
    >>> model = talora_jax.load_msam("sam_micro.safetensors", adapter, {"depth": 1})
    >>> file = talora_jax.save_adapter(model, "mine.safetensors", "sam_micro.safetensors")
    >>> talora_jax.load("mine.safetensors").predict(Image.open("photo.jpg"))["depth"].shape
    (60, 80)

    Args:
      base, seed: what the model was loaded from.
      class_names: of the tasks that have classes.
      config: a note.

    Raises:
      UserError: what should be frozen is not that of the base: it was trained, too.
    """
    _, learnt, frozen = nnx.split(model, trainable(model.adapter), ...)
    what = f"random numbers of seed {seed}, drawn by jax {jax.__version__}"
    if base is None:
        given = {name_of(p): v[...] for p, v in nnx.to_flat_state(frozen)}
    else:
        tensors, description = read_base(base)
        what = description.in_words(base)
        given = for_msam(tensors, model)
    moved = [
        name_of(p)
        for p, v in nnx.to_flat_state(frozen)
        if not np.array_equal(v[...], jnp.asarray(given[name_of(p)], v[...].dtype))
    ]
    if moved:
        raise UserError(
            f"{', '.join(moved)}: expected as in {base}, for an adapter file holds what "
            "`trainable(adapter)` names and nothing else"
        )
    names = {name_of(p) for p, _ in nnx.to_flat_state(frozen)}
    file = AdapterFile(
        tensors_of(learnt),
        dataclasses.asdict(model.adapter),
        dict(zip(model.tasks, model.channels, strict=True)),
        dict(class_names or {}),
        what,
        fingerprint({n: np.asarray(x, np.float32) for n, x in given.items() if n in names}),
        weights=str(base or ""),
        seed=seed,
        sam=dataclasses.asdict(model.config),
        pixel_normalisation=model.pixel_normalisation,
        native_aspect=model.native_aspect,
        config=dict(config or {}),
    )
    file.write(Path(path).expanduser())
    return file


def check_fits(file: AdapterFile, path: str | Path, base: Base, *, force: bool = False) -> None:
    """Refuses an adapter that was trained on another base, but by force.

    Raises:
      UserError: it was; the sentence tells both.
    """
    if base.fingerprint != file.base_fingerprint and not force:
        raise UserError(
            f"{path} belongs to another base than {base.name}: it was trained on {file.base} "
            f"(fingerprint {file.base_fingerprint[:8]}, not {base.fingerprint[:8]}); to take it "
            "nevertheless say force=True, or --force on the command line"
        )


def check_shapes(path: str | Path, what: str, expected: nnx.State, found: Mapping) -> None:
    """Refuses tensors that are not those of the model that an adapter's fields describe.

    Raises:
      UserError: names those that differ.
    """
    wanted = {name_of(p): v.shape for p, v in nnx.to_flat_state(expected)}
    given = {name: x.shape for name, x in found.items()}
    differing = sorted(n for n in wanted | given if wanted.get(n) != given.get(n))
    if differing:
        raise UserError(f"{path} does not fit {what} in {', '.join(differing)}")


def model_of(file: AdapterFile, sam: SamConfig, **how: Any) -> MSam:
    """The model that a file's fields describe, with random numbers; see `make_msam`."""
    adapter = AdapterConfig.of(file.adapter)
    encoded = {
        "pixel_normalisation": file.pixel_normalisation,
        "native_aspect": file.native_aspect,
    }
    return make_msam(sam, adapter, file.channels, seed=file.seed, **encoded, **how)


def sizes_of(file: AdapterFile, path: str | Path) -> SamConfig | None:
    """The sizes that an adapter file states; None where it leaves them to its base.

    Raises:
      UserError: it names a model that this version does not have.
    """
    if file.sam is not None:
        return sam_config(file.sam)
    if file.weights:
        return None
    size = file.config["model"]["size"]
    if size not in SIZES:
        raise UserError(
            f"{path} is for a model of size {size!r}; expected one of {', '.join(SIZES)}"
        )
    return SIZES[size]()


def merged(model: MSam, task: str) -> dict[str, np.ndarray]:
    """A base of one task, in float32: `for_msam` undone, the adapter's update in the qkv weights.

    An `MSam` of this task alone that has no adapter gives from it the maps that `model` gives. It
    has no prompts' embeddings: the model has none.

    Raises:
      KeyError: a task that the model does not have.
    """
    (number,) = model.task_ids([task])
    first_row = sum(model.channels[:number])
    rows = slice(first_row, first_row + model.channels[number])
    encoder = nnx.state(model.image_encoder.merge(number))
    tensors = {f"image_encoder.{name}": x for name, x in tensors_of(encoder).items()}
    rest = nnx.state(model, nnx.Not(nnx.PathContains("image_encoder")))
    for name, x in tensors_of(rest).items():
        if name.startswith("mask_decoders."):
            tensors[name.replace("mask_decoders", f"mask_decoders.{task}", 1)] = x[number]
        else:
            tensors[f"prompt_encoder.{name}"] = x[rows] if name == "no_mask_embed" else x
    return {name: np.asarray(x, np.float32) for name, x in tensors.items()}
