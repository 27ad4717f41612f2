"""mSAM: one SAM encoder with TA-LoRA, one mask decoder per task, all tasks in one pass.

Source: arXiv 2403.10971 and the official MTSAM release. What differs: one pass serves any number of
tasks and images (the official joint mode mixes them when the batch is larger than 1), pixels are
normalised as SAM's were unless switched off, and decoders take turns in a scan.

A forward pass is four steps, each a method of `MSam`, and every forward pass composes them: its own
`__call__`, the gradients of single tasks in training, and a trained model in use.

    images [B,H,W,3] ─ to_padded ─▶ [B,Y,X,3] ─ embed ─▶ [n,B,h,w,D]
                         maps [B,H,W,C] ◀─ from_padded ─ [B,4h,4w,C] ◀─ decode, by decode_channels
"""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from talora_jax.models.adapters import ORTHOGONAL_PARTS, AdapterConfig, TaskParam
from talora_jax.models.encoder_block import NORMS
from talora_jax.models.geometry import Geometry
from talora_jax.models.image_encoder import ImageEncoder
from talora_jax.models.keys import Rngs
from talora_jax.models.mask_decoder import MaskDecoder
from talora_jax.models.prompt_encoder import RandomFourierPositions
from talora_jax.models.sam import SamConfig
from talora_jax.sharding import constrain

_ADDED = nnx.Any(TaskParam, nnx.PathContains("mask_decoders"))


def norms(adapter: AdapterConfig) -> nnx.filterlib.Filter:
    """The filter that names the LayerNorms that train: those of the encoder's adapted blocks.

    `neck_norm1` and `neck_norm2` are other names, so the neck stays frozen, as in the released
    recipe.
    """
    place = "image_encoder" if adapter.blocks is None else "adapted"
    return nnx.All(nnx.PathContains(place), NORMS)


def trainable(adapter: AdapterConfig) -> nnx.filterlib.Filter:
    """The filter that names what trains: `nnx.split(model, trainable(adapter), ...)`."""
    if adapter.kind == "full":
        return nnx.Any(_ADDED, nnx.PathContains("image_encoder"))
    return nnx.Any(_ADDED, norms(adapter))


def shared(adapter: AdapterConfig) -> nnx.filterlib.Filter:
    """The filter that names, among what trains, what serves all tasks in the encoder."""
    return nnx.All(
        nnx.PathContains("image_encoder"), lambda path, _: task_axis(adapter, path) is None
    )


def task_axis(adapter: AdapterConfig, path: Sequence[str | int]) -> int | None:
    """Along which axis a trained parameter has entries for each task; None if tasks share it.

    Those are rows of U3 (or the LoRAs of `lora_per_task`), mask decoders, and no-mask rows, of
    which a task has one per output channel. They are all that a new task adds to a trained model.
    """
    if path[0] in ("mask_decoders", "no_mask_embed"):
        return 0
    return adapter.task_axes.get(path[-1]) if "adapter" in path else None


def new_tasks(adapter: AdapterConfig) -> nnx.filterlib.Filter:
    """The filter that names what trains when tasks are added to a trained adapter."""
    return lambda path, _: task_axis(adapter, path) is not None


class MSam(nnx.Module):
    """Multi-task SAM.

    >>> import talora_jax
    >>> adapter = talora_jax.AdapterConfig(ranks=(4, 4, 2))
    >>> sam = talora_jax.load_sam("sam_nano.safetensors").config
    >>> model = talora_jax.MSam(sam, adapter, {"depth": 1, "normals": 3}, rngs=nnx.Rngs(0))
    >>> {task: maps.shape for task, maps in model(jnp.zeros((2, 60, 80, 3))).items()}
    {'depth': (2, 60, 80, 1), 'normals': (2, 60, 80, 3)}

    Attributes:
      tasks, channels: names and output channels of every task; their order is that of U3's rows.
    """

    def __init__(
        self,
        config: SamConfig,
        adapter: AdapterConfig,
        channels: Mapping[str, int],
        *,
        pixel_normalisation: bool = True,
        native_aspect: bool = False,
        attention: str = "xla",
        remat: str = "block_but_attention",
        dtype: DTypeLike = jnp.float32,
        rngs: Rngs,
    ):
        self.config = config
        self.adapter = adapter
        self.tasks = tuple(channels)
        self.channels = tuple(channels.values())
        self.pixel_normalisation = pixel_normalisation
        self.native_aspect = native_aspect
        self.image_encoder = ImageEncoder(
            config.encoder,
            adapter,
            len(self.tasks),
            attention=attention,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.positions = RandomFourierPositions(config.decoder.dim, rngs=rngs)
        # A base gives every output channel a copy of SAM's "no mask" row; without one, rows drawn
        # apart tell channels apart from the start.
        rows = jax.random.normal(rngs.params(), (sum(self.channels), config.decoder.dim))
        self.no_mask_embed = TaskParam(rows)
        self.remat = remat
        # One decoder per task, stacked. All start from the same weights: SAM's, or the same random.
        graphdef, decoder = nnx.split(MaskDecoder(config.decoder, dtype=dtype, rngs=rngs))
        stacked = jax.tree.map(lambda x: jnp.stack([x] * len(self.tasks)), decoder)
        self.mask_decoders = nnx.merge(graphdef, stacked)

    def __call__(
        self,
        images: Float[Array | np.ndarray, "B H W 3"],
        tasks: Sequence[str] | None = None,
        *,
        key: PRNGKeyArray | None = None,
        trunk: Float[Array, "B h w D"] | None = None,
    ) -> dict[str, Float[Array, "B H W C"]]:
        """Raw maps of each task at the images' own size, in float32, before any activation.

        Args:
          images: RGB in [0, 1], any height and width.
          tasks: which tasks, in any order; None means all.
          key: for dropout; None when not training.
          trunk: what `trunk` gives of them, where it is known.

        Raises:
          KeyError: a task that the model does not have.
        """
        size = images.shape[1:3]
        tasks = self.tasks if tasks is None else tuple(tasks)
        trunk = self.trunk(images) if trunk is None else trunk
        low_res = self.decode(self._embed(trunk, tasks, key), tasks)
        return {task: self.from_padded(maps, size) for task, maps in low_res.items()}

    def trunk(self, images: Float[Array | np.ndarray, "B H W 3"]) -> Float[Array, "B h w D"]:
        """What the image encoder's trunk gives of images, RGB in [0, 1]."""
        return self.image_encoder.trunk(self.to_padded(images))

    def geometry(self, size: tuple[int, int]) -> Geometry:
        """How an image of this (H, W) is encoded."""
        return self.config.encoder.geometry(size, native_aspect=self.native_aspect)

    def takes_turns(self, images: int, size: tuple[int, int]) -> bool:
        """Whether so many images of this (H, W) are encoded for one task after the other."""
        height, width = self.geometry(size).padded
        tokens = images * height * width // self.config.encoder.patch_size**2
        return self.image_encoder.takes_turns(tokens)

    def to_padded(self, images: Float[Array | np.ndarray, "B H W 3"]) -> Float[Array, "B Y X 3"]:
        """Images, RGB in [0, 1], as the encoder takes them: resized, normalised, padded."""
        geometry = self.geometry(images.shape[1:3])
        return geometry.to_padded(images, normalise=self.pixel_normalisation)

    def from_padded(
        self, maps: Float[Array, "*b h w C"], size: tuple[int, int]
    ) -> Float[Array, "*b H W C"]:
        """Maps of padded images, at any resolution, at the images' own (H, W)."""
        return self.geometry(size).from_padded(maps)

    def embed(
        self,
        padded: Float[Array, "B Y X 3"],
        tasks: Sequence[str],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "n B h w D"]:
        """Image embeddings of padded images, one for each of the tasks."""
        return self._embed(self.image_encoder.trunk(padded), tasks, key)

    def _embed(self, trunk, tasks, key):
        embeddings = self.image_encoder.from_trunk(trunk, self.task_ids(tasks), key=key)
        return jnp.broadcast_to(embeddings, (len(tasks), *embeddings.shape[1:]))

    def decode(
        self, embeddings: Float[Array, "n B h w D"], tasks: Sequence[str]
    ) -> dict[str, Float[Array, "B 4*h 4*w C"]]:
        """Raw maps of image embeddings, one for each of the tasks, 4×4 to a token."""
        # From here on tasks take turns: the batch alone is spread over the mesh.
        embeddings = constrain(embeddings, None, ("data", "fsdp"))
        positions = self.grid_positions(*embeddings.shape[2:4])

        # Output channels are decoded one after the other, each by its task's decoder. Their numbers
        # differ by task, so a task axis would be mostly padding; a scan compiles one decoder once,
        # whatever the tasks, and holds one channel's activations.
        ends = list(itertools.accumulate(self.channels))
        scanned = [
            (i, t, row)
            for i, t in enumerate(self.task_ids(tasks))
            for row in range(ends[t] - self.channels[t], ends[t])
        ]
        rows, decoders = self.no_mask_embed[...], nnx.state(self.mask_decoders)

        def channel(place):
            # Slices are taken in here, where it is checkpointed: no backward pass keeps one.
            i, t, row = place
            take = functools.partial(jax.lax.dynamic_index_in_dim, index=t, keepdims=False)
            decoder = jax.tree.map(take, decoders)
            return self.decode_channels(decoder, embeddings[i], positions, rows[row][None])[..., 0]

        if self.remat != "none":
            channel = jax.checkpoint(channel, prevent_cse=False)
        maps = jax.lax.map(channel, tuple(jnp.array(scanned).T))
        widths = [self.channels[t] for t in self.task_ids(tasks)]
        per_task = jnp.split(jnp.moveaxis(maps, 0, -1), list(itertools.accumulate(widths))[:-1], -1)
        return dict(zip(tasks, per_task, strict=True))

    def decode_channels(
        self,
        decoder: nnx.State,
        embeddings: Float[Array, "B h w D"],
        positions: Float[Array, "h w D"],
        rows: Float[Array, "C D"],
    ) -> Float[Array, "B 4*h 4*w C"]:
        """The raw maps of output channels of one task.

        Args:
          decoder: the parameters of the task, of `mask_decoders`.
          embeddings: of that task.
          positions: from `grid_positions`.
          rows: the channels', of `no_mask_embed`.
        """
        decoder = nnx.merge(nnx.graphdef(self.mask_decoders), decoder)
        return decoder.channel_maps(embeddings, positions, rows)

    def grid_positions(self, height: int, width: int) -> Float[Array, "height width D"]:
        """The decoder's positions of a grid of tokens, the upper left part of the square's."""
        return self.positions.grid(height, width, self.config.encoder.grid)

    def task_ids(self, tasks: Iterable[str]) -> tuple[int, ...]:
        """The tasks' rows of U3."""
        unknown = [name for name in tasks if name not in self.tasks]
        if unknown:
            raise KeyError(f"no task {', '.join(unknown)}; this model has {', '.join(self.tasks)}")
        return tuple(self.tasks.index(name) for name in tasks)

    def orthogonality(self, parts: Sequence[str] = ORTHOGONAL_PARTS) -> Float[Array, ""]:
        """The image encoder's."""
        return self.image_encoder.orthogonality(parts)
