"""A trained model in use: images in, arrays at their own size out.

    model = talora_jax.load("runs/mine")
    prediction = model.predict(Image.open("photo.jpg"))
    prediction["depth"]  # metres, [H, W]

Images take turns, and tasks, and a task's channels: the encoder's program serves one task of one
image, the decoder's one channel. So both are compiled once, whatever the tasks (with native aspect,
once for every shape of padded images); another adapter of the same ranks needs no compilation; and
what a task gives does not depend, not in the last bit, on which others the model has. The two
programs that resize, into the padded image and back, are small. They see images filled up to
multiples of `BUCKET` pixels and get true sizes as numbers: they are compiled once for each such
bucket, not for each size.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from PIL import Image

from talora_jax import config as config_lib
from talora_jax.errors import UserError
from talora_jax.inference.rgb import as_rgb
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.geometry import Geometry, normalise, resize
from talora_jax.models.image_encoder import ImageEncoder
from talora_jax.models.msam import MSam, task_axis, trainable
from talora_jax.models.sam import SIZES, SamConfig
from talora_jax.tasks import Task, make_task
from talora_jax.training.setup import adapter_config, make_model, resolve_dtype, sizes_and_base
from talora_jax.weights.adapter_file import AdapterFile, find
from talora_jax.weights.assemble import build, filled, fingerprint, for_msam, name_of

# Sides of images are filled up to multiples of this, and a program serves all of one multiple.
BUCKET = 256

Prediction = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Base:
    """What is frozen when an adapter is trained, by path in the model and on the device."""

    sam: SamConfig
    frozen: Mapping[str, jax.Array]
    fingerprint: str


class Parts(NamedTuple):
    """What one task is predicted with: its encoder, with one row of U3, its decoder, and one
    no-mask row [1, D] for each of its channels."""

    encoder: nnx.State
    decoder: nnx.State
    rows: list[jax.Array]


class TrainedModel:
    """A base with an adapter, ready to predict; `load` makes one.

    Attributes:
      tasks: the adapter's tasks.
      file: the adapter, as it is in its file.
    """

    def __init__(self, file: AdapterFile, base: Base, path: Path):
        """Puts them together.

        Args:
          path: of the file, for messages.

        Raises:
          UserError: the adapter is not what its config says, or of another size than the base.
        """
        config = config_of(file, path)
        self.file, self.tasks, self._base = file, tasks_of(file), base
        self._native_aspect = config.model.native_aspect
        self._pixel_normalisation = config.model.pixel_normalisation

        msam, learnt, frozen = _abstract(config, file, base.sam)
        adapter = adapter_config(config)
        _check_shapes(path, "its own config", learnt, file.tensors)
        _check_shapes(path, "the base", frozen, base.frozen)
        tensors = {**base.frozen, **{n: jnp.asarray(x) for n, x in file.tensors.items()}}
        self._per_task = adapter.per_task
        self._encoder, encoder = nnx.split(msam.image_encoder)
        self._decoder, decoder = nnx.split(msam.mask_decoders)
        self._positions, positions = nnx.split(msam.positions)
        self._frequencies = filled(positions, tensors, ("positions",))
        ends = itertools.accumulate(file.channels.values())
        self._parts = {}
        for t, (task, end) in enumerate(zip(self.tasks, ends, strict=True)):
            # Of what tasks share, everything; of what has entries for each task, this one's.
            own = {
                name: x if axis is None else jax.lax.slice_in_dim(x, t, t + 1, axis=axis)
                for name, x in tensors.items()
                for axis in [task_axis(adapter, name.split("."))]
                if name.startswith("image_encoder.")
            }
            decoders = {n: x[t] for n, x in tensors.items() if n.startswith("mask_decoders.")}
            rows = tensors["no_mask_embed"][end - task.channels : end]
            self._parts[task.name] = Parts(
                filled(encoder, own, ("image_encoder",)),
                filled(decoder, decoders, ("mask_decoders",)),
                [rows[i : i + 1] for i in range(task.channels)],
            )

    def predict(
        self,
        images: Image.Image | np.ndarray | Sequence[Image.Image | np.ndarray],
        tasks: Sequence[str] | None = None,
        *,
        probabilities: bool = True,
    ) -> Prediction | list[Prediction]:
        """What the model sees in an image, or in each of a list of images of any sizes.

        >>> model = talora_jax.load("run")
        >>> photo = Image.open("photo.jpg")  # or an array [H, W, 3]
        >>> photo.size
        (80, 60)
        >>> prediction = model.predict(photo)
        >>> for name, array in prediction.items():
        ...     print(name, array.dtype, array.shape)
        semantic int32 (60, 80)
        semantic_probabilities float32 (60, 80, 3)
        depth float32 (60, 80)
        normals float32 (60, 80, 3)
        >>> [p["depth"].shape for p in model.predict([photo, np.zeros((40, 30, 3))], ["depth"])]
        [(60, 80), (40, 30)]

        Args:
          images: see `rgb.as_rgb` for what an image can be.
          tasks: names of those wanted, of `model.tasks`; None means all.
          probabilities: whether tasks with classes give `<task>_probabilities` [H, W, C], too.

        Returns:
          For each image its arrays at the image's own size: of tasks with classes the class indices
          int32 [H, W]; depth in metres, float32 [H, W]; unit normals, float32 [H, W, 3], x right,
          y down, z forward; of edges the probability, float32 [H, W].

        Raises:
          UserError: the model has no such task; something is no image, or one that is so long and
            narrow that nothing of it would be left.
        """
        if isinstance(images, (list, tuple)):
            return [self._predict(image, tasks, probabilities) for image in images]
        return self._predict(images, tasks, probabilities)

    def with_adapter(self, source: str | Path, *, force: bool = False) -> "TrainedModel":
        """The same base with another adapter. The base is shared, not loaded again; adapters with
        the same tasks and sizes share the compiled programs, too.

        >>> model = talora_jax.load("adapter.safetensors", base="sam_micro.safetensors")
        >>> other = model.with_adapter("other.safetensors")
        >>> photo = Image.open("photo.jpg")
        >>> bool((other.predict(photo)["depth"] == model.predict(photo)["depth"]).all())
        False

        Args:
          source: an adapter file or the workdir of a finished run.
          force: take an adapter that was trained on another base, if it has the same sizes.

        Raises:
          UserError: there is no such adapter, or it belongs to another base.
        """
        path = find(source)
        file = AdapterFile.read(path)
        _check_base(file, path, self._base.fingerprint, "the one that is loaded", force)
        return TrainedModel(file, self._base, path)

    def merge(self, task: str) -> ImageEncoder:
        """A task's image encoder with the adapter merged in: a plain SAM encoder, W + ΔW[t].

        >>> encoder = talora_jax.load("run").merge("depth")
        >>> squares = jnp.zeros((1, 64, 64, 3))  # normalised and padded, see `models.geometry`
        >>> encoder(squares, (0,)).shape
        (1, 1, 8, 8, 32)

        Raises:
          UserError: the model has no such task.
        """
        self.named([task])
        return nnx.merge(self._encoder, self._parts[task].encoder).merge(0)

    def save(self, path: str | Path) -> None:
        """Writes the adapter to a file of its own.

        >>> model = talora_jax.load("run")
        >>> model.save("copy.safetensors")
        >>> [task.name for task in talora_jax.load("copy.safetensors").tasks]
        ['semantic', 'depth', 'normals']
        """
        self.file.write(Path(path).expanduser())

    def _predict(self, image, tasks: Sequence[str] | None, probabilities: bool) -> Prediction:
        wanted = self.named(tasks)
        image = as_rgb(image)
        height, width = image.shape[:2]
        geometry = self._geometry(height, width)
        into, resized = geometry.matrices_to_padded(), np.array(geometry.resized)
        padded = _to_padded(
            _filled(image, 0, 1), *(_filled(m, 1) for m in into), resized, self._pixel_normalisation
        )
        encoder = self._base.sam.encoder
        grid = tuple(side // encoder.patch_size for side in geometry.padded)
        positions = _grid(self._positions, self._frequencies, *grid, encoder.grid)
        embedding, prediction = None, {}
        for task in wanted:
            parts = self._parts[task.name]
            if embedding is None or self._per_task:
                embedding = _embed(self._encoder, parts.encoder, padded)
            channels = [
                _channel(self._decoder, parts.decoder, positions, embedding, row)
                for row in parts.rows
            ]
            low_res = jnp.concatenate(channels, axis=-1)
            back = geometry.matrices_from_padded(low_res.shape[1:3])
            outputs = _outputs(task, low_res, *(_filled(m, 0) for m in back), probabilities)
            prediction |= {
                name: np.ascontiguousarray(np.asarray(x)[0, :height, :width])
                for name, x in outputs.items()
            }
        return prediction

    def named(self, names: Sequence[str] | None) -> tuple[Task, ...]:
        """The tasks of these names, in their order; all for None.

        Raises:
          UserError: the model has no such task.
        """
        if names is None:
            return self.tasks
        names = [names] if isinstance(names, str) else names
        known = {task.name: task for task in self.tasks}
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise UserError(
                f"no task {', '.join(unknown) or 'is named'}; this model has {', '.join(known)}"
            )
        return tuple(known[name] for name in names)

    def _geometry(self, height: int, width: int) -> Geometry:
        encoder = self._base.sam.encoder
        # A side that shrinks to less than a patch leaves nothing to recognise.
        if min(height, width) * encoder.grid < max(height, width):
            raise UserError(
                f"an image of {width}×{height} pixels: scaled to {encoder.image_size} pixels, its "
                f"short side would be less than one patch; expected at most {encoder.grid} times "
                "as long as wide"
            )
        return encoder.geometry((height, width), native_aspect=self._native_aspect)


def load(
    source: str | Path, base: str | Path | None = None, *, force: bool = False
) -> TrainedModel:
    """Loads what was trained, from a run's workdir or from an adapter file and its base.

    >>> import talora_jax
    >>> model = talora_jax.load("run")
    >>> model = talora_jax.load("adapter.safetensors", base="sam_micro.safetensors")
    >>> [(task.name, task.channels) for task in model.tasks]
    [('semantic', 3), ('depth', 1), ('normals', 3)]

    Args:
      source: the workdir of a finished run, or an adapter file.
      base: what the adapter was trained on; None for the base that the run's config names, or for a
        run that started from random numbers, which are drawn again.
      force: take a base of another fingerprint, if it has the same sizes.

    Raises:
      UserError: the run is not finished, a file is missing, damaged or something else, or the
        adapter belongs to another base.
    """
    path = find(source)
    file = AdapterFile.read(path)
    config = config_of(file, path)
    weights = base or config.model.weights
    if weights and not Path(weights).expanduser().is_file():
        raise UserError(
            f"there is no base {weights}: {path} was trained on {file.base}, and needs that "
            "(base=…, or --base on the command line)"
        )
    config.model.weights = str(Path(weights).expanduser()) if weights else None
    sam, tensors = sizes_and_base(config)
    msam, _, frozen = _abstract(config, file, sam)
    if tensors is None:
        drawn = build(lambda: make_model(config, tasks_of(file), sam))
        _, _, frozen = nnx.split(drawn, trainable(adapter_config(config)), ...)
    else:
        # LayerNorms and decoders are the adapter's.
        given = for_msam(tensors, msam)
        given = {n: jnp.asarray(x, jnp.float32) for n, x in given.items() if n not in file.tensors}
        _check_shapes(path, weights, frozen, given)
        frozen = filled(frozen, given)
    digest = fingerprint(frozen)
    _check_base(file, path, digest, weights or "the random numbers drawn here", force)
    dtype = resolve_dtype(config.model.param_dtype)
    frozen = {name_of(p): v[...].astype(dtype) for p, v in nnx.to_flat_state(frozen)}
    return TrainedModel(file, Base(sam, frozen, digest), path)


@functools.partial(jax.jit, static_argnames="normalised")
def _to_padded(image, rows, columns, resized, normalised):
    """A filled up image [Y, X, 3] to the model's input; see `Geometry.matrices_to_padded`."""
    padded = resize(image.astype(jnp.float32), rows, columns)[None]
    return normalise(padded, resized) if normalised else padded / 255


@functools.partial(jax.jit, static_argnames="graphdef")
def _embed(graphdef, encoder, padded):
    return nnx.merge(graphdef, encoder)(padded, (0,))[0]


@functools.partial(jax.jit, static_argnames=("graphdef", "height", "width", "square"))
def _grid(graphdef, positions, height, width, square):
    return nnx.merge(graphdef, positions).grid(height, width, square)


@functools.partial(jax.jit, static_argnames="graphdef")
def _channel(graphdef, decoder, positions, embedding, row):
    return nnx.merge(graphdef, decoder).channel_maps(embedding, positions, row)


@functools.partial(jax.jit, static_argnames=("task", "probabilities"))
def _outputs(task, low_res, rows, columns, probabilities):
    """A task's outputs at a filled up size from its maps; see `Geometry.matrices_from_padded`."""
    maps = resize(low_res.astype(jnp.float32), rows, columns)
    return task.outputs(maps, probabilities=probabilities)


def _filled(x: np.ndarray, *axes: int) -> np.ndarray:
    """x with zeros at the end of these axes, up to multiples of `BUCKET`."""
    return np.pad(x, [(0, -n % BUCKET if axis in axes else 0) for axis, n in enumerate(x.shape)])


def config_of(file: AdapterFile, path: Path) -> ml_collections.ConfigDict:
    """The config of an adapter.

    Raises:
      UserError: this version does not know it.
    """
    try:
        config = config_lib.from_fields(file.config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if config.model.size not in SIZES:
        raise UserError(
            f"{path} is for a model of size {config.model.size!r}; expected one of "
            f"{', '.join(SIZES)}"
        )
    return config


def tasks_of(file: AdapterFile) -> tuple[Task, ...]:
    """An adapter's tasks, in the order of U3's rows."""
    return tuple(make_task(t, class_names=file.class_names.get(t, ())) for t in file.tasks)


def _check_base(file: AdapterFile, path: Path, digest: str, what: str, force: bool) -> None:
    if digest != file.base_fingerprint and not force:
        raise UserError(
            f"{path} belongs to another base than {what}: it was trained on {file.base} "
            f"(fingerprint {file.base_fingerprint[:8]}, not {digest[:8]}); to take it nevertheless "
            "say force=True, or --force on the command line"
        )


def _check_shapes(
    path: Path, what: str, expected: nnx.State, found: Mapping[str, np.ndarray | jax.Array]
) -> None:
    """Refuses tensors that are not those of the model that an adapter's config describes."""
    wanted = {name_of(p): v.shape for p, v in nnx.to_flat_state(expected)}
    given = {name: x.shape for name, x in found.items()}
    differing = sorted(n for n in wanted | given if wanted.get(n) != given.get(n))
    if differing:
        raise UserError(f"{path} does not fit {what} in {', '.join(differing)}")


def _abstract(
    config: ml_collections.ConfigDict, file: AdapterFile, sam: SamConfig
) -> tuple[MSam, nnx.State, nnx.State]:
    """The model of an adapter without values, and of its state what was learnt and what was frozen.

    What matters to training alone is left out of it, so that adapters that differ in nothing else
    share programs.
    """
    adapter = dataclasses.replace(adapter_config(config), dropout=0.0)
    dtype = resolve_dtype(config.model.dtype)
    msam = _abstract_msam(sam, adapter, tuple(file.channels.items()), dtype)
    _, learnt, frozen = nnx.split(msam, trainable(adapter), ...)
    return msam, learnt, frozen


# Tracing a model takes seconds, and adapters to switch between are mostly alike.
@functools.lru_cache(maxsize=8)
def _abstract_msam(
    sam: SamConfig,
    adapter: AdapterConfig,
    channels: tuple[tuple[str, int], ...],
    dtype: jnp.dtype,
) -> MSam:
    how = {"remat": "none", "dtype": dtype}
    return nnx.eval_shape(lambda: MSam(sam, adapter, dict(channels), **how, rngs=nnx.Rngs(0)))
