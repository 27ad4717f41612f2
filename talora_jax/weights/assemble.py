"""An adapter file and its base to one model, and a trained model to an adapter file.

Training, prediction, export and conversion put trained models together here, and nowhere else.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike

from talora_jax.errors import UserError, listed
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import MSam, trainable
from talora_jax.models.sam import SIZES, Sam, SamConfig
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.base_file import base_path, read_base, read_description, sam_config
from talora_jax.weights.build import build, check_base_tasks, for_msam, load_sam, make_msam
from talora_jax.weights.state import filled, fingerprint, name_of, tensors_of


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
    prompts: Mapping[str, np.ndarray]
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
        try:
            place = base_path(weights)
        except UserError as error:
            raise UserError(f"{error}; {path} needs the base that it was trained on") from None
        if not place.is_file():
            what = ", but a folder" if place.is_dir() else ""
            raise UserError(
                f"there is no base {weights}{what}: {path} was trained on {file.base}, and needs "
                "that (base=…, or --base on the command line); if it is lost, make it again of the "
                "same SAM checkpoint with: python -m weights_convert CHECKPOINT base.safetensors"
            )
        tensors, description = read_base(weights)
        check_base_tasks(description.tasks, file.tasks, weights)
        made = base_of(file, path, tensors, description.config, weights)
    check_fits(file, path, made, force=force)
    return made


def base_of(
    file: AdapterFile,
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    sam: SamConfig,
    name: str,
) -> Base:
    """The base of an adapter from the tensors of a base file.

    Raises:
      UserError: it has other sizes than the adapter was trained with.
    """
    wanted = sizes_of(file, path)
    if wanted not in (sam, None):
        raise UserError(
            f"{path} does not fit {name}: it was trained on a SAM of {wanted.apart_from(sam)}, "
            f"and this is one of {sam.apart_from(wanted)}"
        )
    abstract, _, frozen = _abstract(file, sam)
    # LayerNorms and decoders are the adapter's.
    given = {n: x for n, x in for_msam(tensors, abstract).items() if n not in file.tensors}
    check_shapes(path, name, frozen, given)
    given = jax.device_put({n: x.astype(np.float32, copy=False) for n, x in given.items()})
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
    _, learnt, frozen = _abstract(file, base.sam)
    check_shapes(path, "its own config", learnt, file.tensors)
    check_shapes(path, base.name, frozen, base.frozen)
    return {**base.frozen, **jax.device_put(file.tensors)}


def promptable(base: Base) -> Sam:
    """The SAM of a base; what is frozen of it is not copied.

    Raises:
      UserError: the base is random numbers, or has no decoder for prompts.
    """
    if not base.file:
        raise UserError(
            "this run started from random numbers: it has no SAM that prompts could be asked of; "
            "expected one trained on a base, by config.model.weights"
        )
    graphdef, state = nnx.split(load_sam(base.file))
    shared = [
        (path, variable.replace(base.frozen.get(name_of(path), variable[...])))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(shared))


def model_of(file: AdapterFile, sam: SamConfig, **how: Any) -> MSam:
    """The model that a file's fields describe, with random numbers; see `make_msam`."""
    adapter = AdapterConfig.of(file.adapter)
    encoded = {
        "pixel_normalisation": file.pixel_normalisation,
        "native_aspect": file.native_aspect,
    }
    return make_msam(sam, adapter, file.channels, seed=file.seed, **encoded, **how)


def _abstract(file: AdapterFile, sam: SamConfig) -> tuple[MSam, nnx.State, nnx.State]:
    """The model of a file without values; of its state what was learnt and what was frozen."""
    model = in_use(file, sam)
    return model, *nnx.split(model, trainable(model.adapter), ...)[1:]


def in_use(file: AdapterFile, sam: SamConfig) -> MSam:
    """The model of a file without values, as it predicts.

    What matters to training alone is left out, so that adapters that differ in nothing else share
    programs.
    """
    adapter = dataclasses.replace(AdapterConfig.of(file.adapter), dropout=0.0)
    return _in_use(sam, adapter, tuple(file.channels.items()), resolve_dtype(file.dtype))


# Tracing a model takes long, and adapters to switch between are mostly alike.
@functools.lru_cache(maxsize=8)
def _in_use(
    sam: SamConfig,
    adapter: AdapterConfig,
    channels: tuple[tuple[str, int], ...],
    dtype: jnp.dtype,
) -> MSam:
    how = {"remat": "none", "dtype": dtype}
    return nnx.eval_shape(lambda: make_msam(sam, adapter, dict(channels), seed=0, **how))


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
    >>> model = talora_jax.load_msam("sam_nano.safetensors", adapter, {"depth": 1})
    >>> file = talora_jax.save_adapter(model, "mine.safetensors", "sam_nano.safetensors")
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
    if base is None:
        given = {name_of(p): v[...] for p, v in nnx.to_flat_state(frozen)}
    else:
        tensors, _ = read_base(base)
        given = for_msam(tensors, model)
    moved = [
        name_of(p)
        for p, v in nnx.to_flat_state(frozen)
        if not np.array_equal(v[...], jnp.asarray(given[name_of(p)], v[...].dtype))
    ]
    if moved:
        raise UserError(
            f"{listed(moved)}: expected as in {base}, for an adapter file holds what "
            "`trainable(adapter)` names and nothing else"
        )
    names = {name_of(p) for p, _ in nnx.to_flat_state(frozen)}
    file = AdapterFile(
        tensors_of(learnt),
        dataclasses.asdict(model.adapter),
        dict(zip(model.tasks, model.channels, strict=True)),
        dict(class_names or {}),
        base_in_words(base, seed),
        fingerprint({n: np.asarray(x, np.float32) for n, x in given.items() if n in names}),
        weights=str(base or ""),
        seed=seed,
        sam=model.config.fields(),
        pixel_normalisation=model.pixel_normalisation,
        native_aspect=model.native_aspect,
        config=dict(config or {}),
    )
    file.write(Path(path).expanduser())
    return file


def sizes_of(file: AdapterFile, path: str | Path) -> SamConfig | None:
    """The sizes that an adapter file states; None where it leaves them to its base.

    Raises:
      UserError: it names a model that this version does not have.
    """
    if file.sam is not None:
        return sam_config(file.sam, path)
    if file.weights:
        return None
    model = file.config.get("model")
    size = model.get("size") if isinstance(model, dict) else None
    if not isinstance(size, str) or size not in SIZES:
        raise UserError(
            f"{path} is for a model of size {size!r}; expected one of {', '.join(SIZES)}"
        )
    return SIZES[size]()


def resolve_dtype(name: str) -> jnp.dtype:
    """`auto` is bfloat16 on accelerators and float32 on CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def base_in_words(weights: str | Path | None, seed: int) -> str:
    """What a base is, for people to read: a file's, or without one the random numbers of a seed."""
    if not weights:
        return f"random numbers of seed {seed}, drawn by jax {jax.__version__}"
    return read_description(weights).in_words(weights)


def check_fits(file: AdapterFile, path: str | Path, base: Base, *, force: bool = False) -> None:
    """Refuses an adapter that was trained on another base, but by force.

    Raises:
      UserError: it was; the sentence tells both.
    """
    if base.fingerprint != file.base_fingerprint and not force:
        raise UserError(
            f"{path} belongs to another base than {base.name}: it was trained on {file.base} "
            f"(fingerprint {file.base_fingerprint[:8]}, not {base.fingerprint[:8]}); force=True "
            "takes it nevertheless, as --force of --mode predict and of export does"
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
        raise UserError(f"{path} does not fit {what} in {listed(differing)}")
