"""A trained model in use: images in, arrays at their own size out.

    model = talora_jax.load("runs/mine")
    prediction = model.predict(Image.open("photo.jpg"))
    prediction["depth"]  # metres, [H, W]

Images take turns, and tasks, and a task's channels: one program embeds one image for one task, one
decodes one channel. (Where the first blocks have no adapters, another takes the image through these
before, for all tasks.) So they are compiled once, whatever the tasks (with native aspect, once for
every shape of padded images); another adapter of the same ranks needs no compilation; and what a
task gives does not depend, not in the last bit, on which others the model has. The programs that
resize, into the padded image and back, are small, and serve every size of image: see `tiles`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8
from PIL import Image

from talora_jax.arrays import as_flag, in_words
from talora_jax.errors import UserError, printable
from talora_jax.inference import tiles
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.geometry import Geometry
from talora_jax.models.image_encoder import ImageEncoder
from talora_jax.models.msam import MSam, task_axis
from talora_jax.models.sam import Sam, SamConfig
from talora_jax.rgb import as_rgb, each_rgb
from talora_jax.tasks import Task, make_task
from talora_jax.weights.adapter_file import AdapterFile, find
from talora_jax.weights.assemble import (
    Base,
    check_fits,
    joined,
    promptable,
    read_base_of,
    resolve_dtype,
)
from talora_jax.weights.state import filled

Arrays = dict[str, np.ndarray]


class One(NamedTuple):
    """What one task is predicted with.

    Attributes:
      model: parameters of an `MSam` of this task alone, with one row of U3 and one decoder.
      rows: the task's no-mask rows [D], one for each of its channels.
    """

    model: nnx.State
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
          UserError: the adapter is not what its fields say, or of another size than the base.
        """
        self.file, self.tasks, self._base = file, tasks_of(file), base
        tensors = joined(file, path, base)
        adapter = AdapterConfig.of(file.adapter)
        # What matters to training alone is left out, so that adapters that differ in nothing else
        # share programs.
        self._per_task = adapter.per_task
        self._has_trunk = adapter.adapted(base.sam.encoder.depth).start > 0
        self._graphdef, abstract = _one_task(
            base.sam, dataclasses.replace(adapter, dropout=0.0), resolve_dtype(file.dtype)
        )
        ends = itertools.accumulate(file.channels.values())
        self._ones = {}
        for t, (task, end) in enumerate(zip(self.tasks, ends, strict=True)):
            # Of what tasks share, everything; of what has entries for each task, this one's. (Of
            # no-mask rows one is as good as another: the channels' own are given to `_channel`.)
            axes = {name: task_axis(adapter, name.split(".")) for name in tensors}
            own = {
                name: x
                if axes[name] is None
                else jax.lax.slice_in_dim(x, t, t + 1, axis=axes[name])
                for name, x in tensors.items()
            }
            rows = tensors["no_mask_embed"][end - task.channels : end]
            self._ones[task.name] = One(filled(abstract, own), list(rows))

    def predict(
        self,
        images: Image.Image
        | np.ndarray
        | str
        | Path
        | Sequence[Image.Image | np.ndarray | str | Path],
        tasks: Sequence[str] | None = None,
        *,
        probabilities: bool = True,
    ) -> Arrays | list[Arrays]:
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
        probabilities = as_flag("probabilities", probabilities)
        if isinstance(images, (list, tuple)):
            return [self._predict(image, tasks, probabilities) for image in each_rgb(images)]
        return self._predict(as_rgb(images), tasks, probabilities)

    def with_adapter(self, source: str | Path, *, force: bool = False) -> "TrainedModel":
        """The same base with another adapter. The base is shared, not loaded again; adapters with
        the same tasks and sizes share the compiled programs, too.

        >>> model = talora_jax.load("adapter.safetensors", base="sam_nano.safetensors")
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
        here, there = (AdapterConfig.of(f.adapter).blocks for f in (self.file, file))
        if (here is None) != (there is None):
            # Of the base, an adapter of all blocks replaces the LayerNorms.
            which = [f"blocks {blocks}" if blocks else "all blocks" for blocks in (there, here)]
            raise UserError(
                f"{path} has adapters in {which[0]}, this model in {which[1]}, and they do not "
                "share a base: talora_jax.load it by itself"
            )
        check_fits(file, path, self._base, force=force)
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
        return nnx.merge(self._graphdef, self._ones[task].model).image_encoder.merge(0)

    def promptable(self) -> Sam:
        """The SAM that the adapter stands on, to be asked with prompts, or by `AutomaticMasks`.

        Both have one copy of the frozen weights between them.

        >>> model = talora_jax.load("adapter.safetensors", base="sam_nano.safetensors")
        >>> predictor = talora_jax.SamPredictor(model.promptable())

        Raises:
          UserError: the base is random numbers, or has no decoder for prompts.
        """
        return promptable(self._base)

    def save(self, path: str | Path) -> None:
        """Writes the adapter to a file of its own.

        >>> model = talora_jax.load("run")
        >>> model.save("copy.safetensors")
        >>> [task.name for task in talora_jax.load("copy.safetensors").tasks]
        ['semantic', 'depth', 'normals']
        """
        self.file.write(Path(path).expanduser())

    def _predict(
        self, image: UInt8[np.ndarray, "H W 3"], tasks: Sequence[str] | None, probabilities: bool
    ) -> Arrays:
        wanted = self.named(tasks)
        geometry = self._geometry(*image.shape[:2])
        padded = tiles.to_padded(image, geometry, normalised=self.file.pixel_normalisation)
        embedding, positions, arrays = None, None, {}
        if self._has_trunk:
            padded = _trunk(self._graphdef, self._ones[wanted[0].name].model, padded)
        embed = _embed_trunk if self._has_trunk else _embed
        for task in wanted:
            model, rows = self._ones[task.name]
            if embedding is None or self._per_task:
                embedding = embed(self._graphdef, model, padded)
            if positions is None:
                positions = _positions(self._graphdef, model, *embedding.shape[1:3])
            channels = [_channel(self._graphdef, model, embedding, positions, row) for row in rows]
            low_res = jnp.stack(channels, axis=-1)
            arrays |= tiles.outputs(task, low_res, geometry, probabilities=probabilities)
        return arrays

    def named(self, names: Sequence[str] | None) -> tuple[Task, ...]:
        """The tasks of these names, in their order; all for None.

        Raises:
          UserError: the model has no such task.
        """
        if names is None:
            return self.tasks
        known = {task.name: task for task in self.tasks}
        try:
            names = [names] if isinstance(names, str) else [str(name) for name in names]
        except TypeError:
            raise UserError(
                f"tasks: {in_words(names)}; expected names, of {', '.join(known)}"
            ) from None
        unknown = [printable(name) for name in names if name not in known]
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
        return encoder.geometry((height, width), native_aspect=self.file.native_aspect)


def load(
    source: str | Path, base: str | Path | None = None, *, force: bool = False
) -> TrainedModel:
    """Loads what was trained, from a run's workdir or from an adapter file and its base.

    >>> import talora_jax
    >>> model = talora_jax.load("run")
    >>> model = talora_jax.load("adapter.safetensors", base="sam_nano.safetensors")
    >>> [(task.name, task.channels) for task in model.tasks]
    [('semantic', 3), ('depth', 1), ('normals', 3)]

    Args:
      source: the workdir of a finished run, an adapter file, or user/name on the Hugging Face Hub.
      base: what the adapter was trained on; None for the base that the run's config names, or for a
        run that started from random numbers, which are drawn again.
      force: take a base of another fingerprint, if it has the same sizes.

    Raises:
      UserError: the run is not finished, a file is missing, damaged or something else, or the
        adapter belongs to another base.
    """
    path = find(source)
    file = AdapterFile.read(path)
    base = read_base_of(file, path, base, force=force)
    return TrainedModel(file, base.astype(resolve_dtype(file.param_dtype)), path)


def tasks_of(file: AdapterFile) -> tuple[Task, ...]:
    """An adapter's tasks, in the order of U3's rows."""
    return tuple(make_task(t, class_names=file.class_names.get(t, ())) for t in file.tasks)


# The steps of `MSam`, each a program of its own.


@functools.partial(jax.jit, static_argnames="graphdef")
def _embed(graphdef, model, padded):
    model = nnx.merge(graphdef, model)
    return model.embed(padded, model.tasks)[0]


@functools.partial(jax.jit, static_argnames="graphdef")
def _trunk(graphdef, model, padded):
    return nnx.merge(graphdef, model).image_encoder.trunk(padded)


@functools.partial(jax.jit, static_argnames="graphdef")
def _embed_trunk(graphdef, model, trunk):
    return nnx.merge(graphdef, model).image_encoder.from_trunk(trunk, (0,))[0]


@functools.partial(jax.jit, static_argnames=("graphdef", "height", "width"))
def _positions(graphdef, model, height, width):
    return nnx.merge(graphdef, model).grid_positions(height, width)


@functools.partial(jax.jit, static_argnames="graphdef")
def _channel(graphdef, model, embedding, positions, row):
    model = nnx.merge(graphdef, model)
    decoder = jax.tree.map(lambda x: x[0], nnx.state(model.mask_decoders))
    return model.decode_channel(decoder, embedding, positions, row)


# Tracing a model takes seconds, and adapters to switch between are mostly alike.
@functools.lru_cache(maxsize=8)
def _one_task(
    sam: SamConfig, adapter: AdapterConfig, dtype: jnp.dtype
) -> tuple[nnx.GraphDef, nnx.State]:
    """An `MSam` of one task of one channel, without values."""
    how = {"remat": "none", "dtype": dtype}
    return nnx.split(
        nnx.eval_shape(lambda: MSam(sam, adapter, {"task": 1}, **how, rngs=nnx.Rngs(0)))
    )
