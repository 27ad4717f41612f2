"""A trained model in use: images in, arrays at their own size out.

    model = talora_jax.load("runs/mine")
    prediction = model.predict(Image.open("photo.jpg"))
    prediction["depth"]  # metres, [H, W]

All tasks and a batch of images are embedded by one program, and each task's channels decoded by
another. They are compiled once for a number of images (with native aspect, once for every shape of
padded images), and another adapter of the same tasks and ranks needs no compilation. The programs
that resize, into the padded image and back, are small, and serve every size of image: see `tiles`.
Other tasks or images beside change what is found by rounding alone, see `TrainedModel.predict`.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8
from PIL import Image

from talora_jax.arrays import as_flag, in_words, is_whole
from talora_jax.compiled import settle_memory, uncollected
from talora_jax.errors import UserError, printable, short
from talora_jax.inference import tiles
from talora_jax.inference.batches import Given, Prepared, Result, in_batches, threads
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.geometry import Geometry
from talora_jax.models.image_encoder import ImageEncoder
from talora_jax.models.msam import MSam
from talora_jax.models.sam import Sam
from talora_jax.rgb import as_rgb, check_several, nth_rgb
from talora_jax.tasks import Task, make_task
from talora_jax.weights.adapter_file import AdapterFile, find
from talora_jax.weights.assemble import (
    Base,
    check_fits,
    in_use,
    joined,
    promptable,
    read_base_of,
    resolve_dtype,
)
from talora_jax.weights.state import filled

Arrays = dict[str, np.ndarray]
# Of an image the raw maps of all tasks that were asked for, one after the other.
Maps = Float[jax.Array, "C 4*h 4*w"]

# Parameters by the part of the model that they belong to.
Values = dict[str, list[jax.Array]]
_DECODERS = "mask_decoders"

# The most images on a device at once: more make none of them faster.
_BATCH = 32
# What activations may take where a device does not tell how much memory it has.
_LEAST_MEMORY = 2**30


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
        settle_memory()
        self.file, self.tasks, self._base = file, tasks_of(file), base
        tensors = joined(file, path, base)
        self._model = in_use(file, base.sam)
        state = filled(nnx.state(self._model), tensors)
        self._values: Values = {name: jax.tree.leaves(part) for name, part in state.items()}
        self._everywhere: Values | None = None  # on every device of this process, once needed
        self._embeddings = len(self.tasks) if self._model.adapter.per_task else 1
        ends = itertools.accumulate(file.channels.values())
        # Each task's decoder and no-mask rows.
        self._rows = {
            task.name: (t, tensors["no_mask_embed"][end - task.channels : end])
            for t, (task, end) in enumerate(zip(self.tasks, ends, strict=True))
        }

    def predict(
        self,
        images: Image.Image
        | np.ndarray
        | str
        | Path
        | Sequence[Image.Image | np.ndarray | str | Path]
        | Iterator[Image.Image | np.ndarray | str | Path],
        tasks: Sequence[str] | None = None,
        *,
        probabilities: bool = True,
        batch_size: int | None = None,
    ) -> Arrays | list[Arrays] | Iterator[Arrays]:
        """What the model sees in an image, or in each of a list of images of any sizes.

        Images of a list are computed in batches, spread over the devices of this process. Those of
        an iterator, too, such as the frames of a camera: a few batches of them are taken ahead of
        what is asked for, and no more.

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
        >>> frames = (np.full((60, 80, 3), i, np.uint8) for i in range(30))
        >>> for prediction in model.predict(frames, ["depth"], batch_size=4):
        ...     closest = prediction["depth"].min()

        Args:
          images: see `rgb.as_rgb` for what an image can be.
          tasks: names of those wanted, of `model.tasks`; None means all.
          probabilities: whether tasks with classes give `<task>_probabilities` [H, W, C], too.
          batch_size: how many images are computed together at most, on all devices of this process;
            each has as many, or, where there are fewer images than devices, one or none. None: as
            many as memory and device make worth while.

        Returns:
          For each image (of an iterator one after the other, as they are asked for) its arrays at
          the image's own size: of tasks with classes the class indices
          int32 [H, W]; depth in metres, float32 [H, W]; unit normals, float32 [H, W, 3], x right,
          y down, z forward; of edges the probability, float32 [H, W]. What a task gives does not
          depend on which other tasks are asked for, nor on the images beside, but for rounding: in
          float32 a map differs by less than 1e-5 of its largest value, normals by more where their
          vector was short before it got length 1, and a class where two are as near.

        Raises:
          UserError: the model has no such task; something is no image, or one that is so long and
            narrow that nothing of it would be left; a batch size below 1.
          Exception: from an iterator, after the arrays of all images that it gave.
        """
        wanted = self.named(tasks)
        probabilities = as_flag("probabilities", probabilities)
        if isinstance(images, (list, tuple, Iterator)):
            check_several(images)
            number = None if isinstance(images, Iterator) else len(images)
            found = self.each(
                enumerate(images),
                lambda numbered: self.prepared(nth_rgb(numbered)),
                lambda _, image, found: self.arrays(wanted, image, found, probabilities),
                wanted,
                batch_size,
                number=number,
            )
            return map(raised, found) if number is None else [*map(raised, found)]
        self._together(batch_size, 1)
        image = self.prepared(as_rgb(images))
        (found,) = self._computed(wanted, [image], 1)
        return self.arrays(wanted, image, found, probabilities)

    def warm_up(self, size: tuple[int, int] = (480, 640), *, batch_size: int = 1) -> None:
        """Compiles what predicting images of about this size needs, so that none has to wait.

        >>> talora_jax.load("run").warm_up((60, 80))

        Args:
          size: H, W. Without native aspect any size will do.
          batch_size: for how many images together.

        Raises:
          UserError: a size or number that is not whole, or below 1.
        """
        pair = isinstance(size, (tuple, list, np.ndarray)) and len(size) == 2
        if not pair or not all(is_whole(side) and side >= 1 for side in size):
            raise UserError(f"size is {short(size, 80)}, expected a height and a width in pixels")
        image = np.zeros((*size, 3), np.uint8)
        self.predict([image] * self._together(batch_size, None)[0], batch_size=batch_size)

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
        encoder = _with_values(self._model, self._values).image_encoder
        return encoder.merge(self._rows[task][0])

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

    # What `predict` does, for those who have more to do with each image beside it.

    def prepared(self, image: UInt8[np.ndarray, "H W 3"]) -> Prepared:
        """An image as the encoder takes it.

        Raises:
          UserError: so long and narrow that nothing of it would be left.
        """
        geometry = self._geometry(*image.shape[:2])
        normalised = self.file.pixel_normalisation
        return Prepared(image, geometry, tiles.to_padded(image, geometry, normalised=normalised))

    def each(
        self,
        given: Iterable[Given],
        prepare: Callable[[Given], Prepared],
        finish: Callable[[Given, Prepared, Maps], Result],
        wanted: Sequence[Task],
        batch_size: int | None = None,
        *,
        number: int | None = None,
    ) -> Iterator[Result | UserError]:
        """Results of many images, see `batches.in_batches`.

        Args:
          finish: what to do with an image and its maps, see `arrays`.
          batch_size: see `predict`.
          number: how many images there are, where that is known.

        Raises:
          UserError: a batch size below 1.
        """
        size, lanes = self._together(batch_size, number)
        compute = functools.partial(self._computed, wanted)
        return in_batches(given, prepare, compute, finish, size, lanes)

    @staticmethod
    def arrays(wanted: Sequence[Task], image: Prepared, found: Maps, probabilities: bool) -> Arrays:
        """What was found in an image, at its own size."""
        return tiles.outputs(wanted, found, image.geometry, probabilities=probabilities)

    @uncollected()
    def _computed(
        self, wanted: Sequence[Task], images: Sequence[Prepared], room: int
    ) -> list[Maps]:
        """The maps of images that are padded to one shape, by a program for `room` of them.

        Where there are several devices each takes as many: a program is for one image, on one of
        them, or for a multiple of their number.
        """
        values, devices = self._values, jax.local_devices()
        spread = len(devices) > 1 and room > 1
        if spread:
            room = -(-room // len(devices)) * len(devices)
        padded = np.zeros((room, *images[0].padded.shape[1:]), np.float32)
        for i, image in enumerate(images):
            padded[i] = image.padded[0]
        if spread:
            mesh = jax.make_mesh(
                (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
            )
            if self._everywhere is None:
                self._everywhere = jax.device_put(values, NamedSharding(mesh, PartitionSpec()))
            values = self._everywhere
            padded = jax.device_put(padded, NamedSharding(mesh, PartitionSpec("data")))
        encoding = {name: part for name, part in values.items() if name != _DECODERS}
        names = tuple(task.name for task in wanted)
        embeddings, positions = _embed(self._model, encoding, padded, names)
        maps = []
        for n, task in enumerate(wanted):
            t, rows = self._rows[task.name]
            at_once = _channels_at_once(room, embeddings.shape[2:], len(rows))
            decoders = values[_DECODERS]
            maps.append(_maps(self._model, decoders, t, embeddings, n, positions, rows, at_once))
        found = [_image(maps, i) for i in range(len(images))]
        if not spread:
            return found
        # Where they were computed, and not on all devices.
        return [jax.device_put(x, devices[i * len(devices) // room]) for i, x in enumerate(found)]

    def _together(self, asked: int | None, images: int | None) -> tuple[int, int]:
        """How many images a program computes together, and how many programs at a time.

        The cores of a CPU are busier with a program each than with their shares of a batch.

        Args:
          asked: by the user.
          images: how many there are, where that is known.

        Raises:
          UserError: what was asked for is below 1.
        """
        if asked is not None and not is_whole(asked):
            raise UserError(f"batch_size is {asked!r}, expected a whole number from 1 on")
        if asked is not None and asked < 1:
            raise UserError(f"batch_size is {asked}, expected 1 or more")
        devices = jax.local_devices()
        if asked is not None:
            size = int(asked)
            if size > len(devices):
                size -= size % len(devices)
        else:
            encoder = self._base.sam.encoder
            # q, k, v and the hidden layer of the MLP of all tokens, twice.
            one = self._embeddings * encoder.grid**2 * 14 * encoder.width * 4
            size = max(1, min(_BATCH, _memory(devices[0]) // one))
            if devices[0].platform == "cpu" and len(devices) == 1:
                return 1, min(size, threads(), images or size)
            size *= len(devices)
        if not images:
            return size, 1
        # Batches of equal numbers, as few as can be, of which every device has as many.
        even = -(-images // -(-images // size))
        return min(size, -(-even // len(devices)) * len(devices)), 1

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
    with uncollected():
        base = read_base_of(file, path, base, force=force)
        return TrainedModel(file, base.astype(resolve_dtype(file.param_dtype)), path)


def tasks_of(file: AdapterFile) -> tuple[Task, ...]:
    """An adapter's tasks, in the order of U3's rows."""
    return tuple(make_task(t, class_names=file.class_names.get(t, ())) for t in file.tasks)


def raised(result: Result | UserError) -> Result:
    """A result of `TrainedModel.each`.

    Raises:
      UserError: it is one.
    """
    if isinstance(result, UserError):
        raise result
    return result


# The steps of `MSam`, each a program of its own. `model` has no values and is one object for all
# that share programs, see `in_use`: a graph definition would be hashed and compared node by node,
# and the variables of a state taken apart, at every call.


def _with_values(model: MSam, values: Values) -> MSam:
    """The model with values, but for parts that these lack."""
    graphdef, state = nnx.split(model)
    for name, part in values.items():
        state[name] = jax.tree.unflatten(jax.tree.structure(state[name]), part)
    return nnx.merge(graphdef, state)


@functools.partial(jax.jit, static_argnames=("model", "tasks"))
def _embed(model, values, padded, tasks):
    model = _with_values(model, values)
    embeddings = model.embed(padded, tasks)
    return embeddings, model.grid_positions(*embeddings.shape[2:4])


@functools.partial(jax.jit, static_argnames=("model", "at_once"))
def _maps(model, decoders, t, embeddings, n, positions, rows, at_once):
    """The raw maps [B, C, 4h, 4w] of task t, whose embeddings are the n-th; `at_once` channels at
    once."""
    take = functools.partial(jax.lax.dynamic_index_in_dim, index=t, keepdims=False)
    structure = jax.tree.structure(nnx.state(model)[_DECODERS])
    decoder = jax.tree.unflatten(structure, map(take, decoders))
    # What the decoder gives last are channels; of planes, resizing makes larger ones.
    decode = functools.partial(model.decode_channels, decoder, embeddings[n], positions)
    if at_once >= len(rows):
        return jnp.moveaxis(decode(rows), -1, 1)
    calls = -(-len(rows) // at_once)
    filled_up = jnp.zeros((calls * at_once, rows.shape[1]), rows.dtype).at[: len(rows)].set(rows)
    maps = jax.lax.map(decode, filled_up.reshape(calls, at_once, -1))
    return rearrange(maps, "n b y x c -> b (n c) y x")[:, : len(rows)]


@jax.jit
def _image(maps, i):
    """One image's of a batch, all tasks' in one array."""
    return jnp.concatenate([jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for x in maps])


def _channels_at_once(images: int, grid: tuple[int, int, int], channels: int) -> int:
    """How many channels a call of the decoder takes.

    Args:
      grid: h, w and D of the embeddings.
    """
    height, width, dim = grid
    # Tokens twice, keys and values of half the width, and both stages of upscaling.
    one = images * height * width * 8 * dim * 4
    return max(1, min(channels, _memory(jax.local_devices()[0]) // one))


def _memory(device: jax.Device) -> int:
    """Bytes that activations may take on a device."""
    stats = device.memory_stats() or {}
    return max(stats.get("bytes_limit", 0) // 4, _LEAST_MEMORY)
