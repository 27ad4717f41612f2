"""SAM's image encoder, a ViT with windowed and global attention, carrying one adapter per block, or
adapters in some of its blocks alone.

Source: `segment_anything/modeling/image_encoder.py`. What differs:

- Activations are [T, B, h, w, D]: one encoding per task, all tasks in one program; on a single
  device, large images are encoded for one task after the other.
- Blocks are stacked. SAM's depth is periodic (n window blocks, then a global one), so the encoder
  is a scan over stages around a scan over window blocks: compile time does not grow with depth.
  With global blocks in other places, or adapters from a block within a stage on, it is such a scan
  over each run of like stages.
- Where the first blocks have no adapters, they are a trunk: computed once, for all tasks.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from talora_jax.models.adapters import ORTHOGONAL_PARTS, Adapter, AdapterConfig, TaskParam
from talora_jax.models.encoder_block import NORMS, Adapted, Block
from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.models.keys import Keys, Rngs
from talora_jax.models.norm import LayerNorm
from talora_jax.models.patch_conv import PatchConv
from talora_jax.models.remat import checkpointed
from talora_jax.sharding import constrain, devices_of_mesh

Module = TypeVar("Module", bound=nnx.Module)
# Tokens that keep a device busy: half of a 1024×1024 image's.
FILLING = 2**11


class Neck(nnx.Module):
    """To the decoder's width: 1×1 and 3×3 convolutions, each with a LayerNorm over channels."""

    def __init__(self, config, *, dtype, rngs):
        unbiased = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.conv1 = PatchConv(config.width, config.out_channels, 1, **unbiased)
        self.neck_norm1 = LayerNorm(config.out_channels, dtype=dtype, rngs=rngs)
        self.conv2 = nnx.Conv(config.out_channels, config.out_channels, (3, 3), **unbiased)
        self.neck_norm2 = LayerNorm(config.out_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.neck_norm2(self.conv2(self.neck_norm1(self.conv1(x))))


class ImageEncoder(nnx.Module):
    """Images to embeddings, one per task.

    The global blocks attend by the kernel `attention` (see `attention_kernels`), windows by `xla`.

    Without a checkpoint, linear layers start LeCun-normal, relative positions at zero and absolute
    positions as MAE's sines and cosines, from which SAM's own encoder started.

    Attributes:
      blocks: the numbers of the adapted blocks.
      adapted: what these have of their own, by stack, where the adapter's config names blocks; the
        stacks then are the base's, adapters and all that trains apart.
    """

    def __init__(
        self,
        config: ImageEncoderConfig,
        adapter: AdapterConfig,
        num_tasks: int,
        *,
        attention: str = "xla",
        remat: str = "block_but_attention",
        dtype: DTypeLike = jnp.float32,
        rngs: Rngs,
    ):
        self.config = config
        self.remat = remat
        self.dtype = dtype
        self.per_task = adapter.per_task
        self.full = adapter.kind == "full"
        self.blocks = adapter.adapted(config.depth)
        self.patch_embed = PatchConv(3, config.width, config.patch_size, dtype=dtype, rngs=rngs)
        self.pos_embed = nnx.Param(sincos_positions(config.grid, config.width))
        apart = adapter.blocks is not None
        inside = AdapterConfig("none") if apart else adapter
        make = functools.partial(Block, config, inside, num_tasks, dtype=dtype)
        kinds = {"window_blocks": (config.window, "xla"), "global_blocks": (0, attention)}
        for name, axes in config.stacks.items():
            kind = kinds[name]
            setattr(self, name, _stack(lambda rngs, kind=kind: make(*kind, rngs=rngs), rngs, *axes))
        self.neck = Neck(config, dtype=dtype, rngs=rngs)
        make_adapted = functools.partial(Adapted, config, adapter, num_tasks, dtype=dtype)
        self.adapted = nnx.Dict(
            {
                name: _stack(lambda rngs: make_adapted(rngs=rngs), rngs, len(numbers))
                for name in config.stacks
                if apart and (numbers := config.numbers(name, self.blocks))
            }
        )

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        task_ids: tuple[int | Int[Array, ""], ...],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "n B h w C"]:
        """Embeddings of normalised, padded images.

        Args:
          images: sides are multiples of the patch size, at most `image_size`.
          task_ids: the tasks to encode for, as rows of U3; traced numbers will do.
          key: for the adapters' dropout; None when not training, for a program that is faster
            without a backward pass.

        Returns:
          n = len(task_ids), or n = 1 when the adapter kind does not tell tasks apart.
        """
        return self.from_trunk(self.trunk(images), task_ids, key=key)

    def trunk(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        """What all tasks have in common of normalised, padded images: patches with their positions,
        gone through the blocks before the first adapted one."""
        x = self.patch_embed(images)
        height, width = x.shape[1:3]
        x += self.pos_embed[:height, :width].astype(x.dtype)
        before = range(self.blocks.start)
        return self._through(before, x[None], jnp.zeros(1, int), None)[0] if before else x

    def from_trunk(
        self,
        x: Float[Array, "B h w D"],
        task_ids: tuple[int | Int[Array, ""], ...],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "n B h w C"]:
        """Embeddings, as of a call, of what `trunk` gave."""
        task_ids = task_ids if self.per_task else (0,)
        encode = functools.partial(self._encode, x, key=key)
        if len(task_ids) == 1 or not self.takes_turns(math.prod(x.shape[:3])):
            return encode(jnp.array(task_ids))
        return jax.lax.map(lambda task: encode(task[None])[0], jnp.array(task_ids))

    def takes_turns(self, tokens: int) -> bool:
        """Whether tasks are encoded one after the other: each for itself, and so many tokens of one
        task keep this machine's only device busy.

        That is no slower, and activations are one task's. On a mesh tasks are encoded together:
        `task` may share them out, and `fsdp` gathers each kernel once for all of them.
        """
        return self.per_task and devices_of_mesh() == 1 and tokens >= FILLING

    def _encode(
        self, x: Float[Array, "B h w D"], task_ids: Int[Array, "n"], key: PRNGKeyArray | None
    ) -> Float[Array, "n B h w C"]:
        """Embeddings of these tasks, computed together, from what `trunk` gave."""
        x = jnp.broadcast_to(x, (len(task_ids), *x.shape))
        for blocks in (self.blocks, range(self.blocks.stop, self.config.depth)):
            x = self._through(blocks, x, task_ids, key)
        # Images lead: an axis laid over the mesh keeps its layout only as the outer one of a merge.
        embeddings = self.neck(rearrange(x, "t b h w d -> (b t) h w d"))
        return rearrange(embeddings, "(b t) h w c -> t b h w c", t=len(task_ids))

    def _through(
        self,
        blocks: range,
        x: Float[Array, "n B h w D"],
        task_ids: Int[Array, "n"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "n B h w D"]:
        """These blocks, all of them adapted or none, one after the other."""
        config, positions = self.config, np.array(self.config.positions)
        stacks = {name: self._flat(getattr(self, name), name) for name in config.stacks}
        adapted = {name: nnx.split(own) for name, own in self.adapted.items()}
        keys = None if key is None else jax.random.split(key, config.depth)

        def scanned(name, numbers):
            """What a scan over these blocks takes: where the stack has them; their parameters that
            train; what they have of their own; keys."""
            if not numbers.size:
                return None
            part = functools.partial(_part, shape=numbers.shape)
            rows = positions[numbers]
            first = int(rows.min())
            params = jax.tree.map(lambda x: part(x, first), stacks[name][1])
            own = None
            if name in adapted and blocks == self.blocks:
                start = first - config.rows(name, blocks).start
                own = jax.tree.map(lambda x: part(x, start), adapted[name][1])
            return rows, params, own, None if keys is None else keys[numbers]

        def block(name, x, row, params, own, key):
            # The task axis is laid over the mesh's `task`, the batch over `data` and `fsdp`.
            x = constrain(x, "task" if len(task_ids) > 1 else None, ("data", "fsdp"))
            graphdef, _, frozen = stacks[name]
            # Taken in here, where it is checkpointed: no slice is kept for the backward pass, and
            # none is made for a whole stage. The row waits for x, or JAX takes all blocks' slices
            # ahead of the loop over tasks.
            x, row = jax.lax.optimization_barrier((x, row))
            take = functools.partial(jax.lax.dynamic_index_in_dim, index=row, keepdims=False)
            own = None if own is None else nnx.merge(adapted[name][0], own)
            block = nnx.merge(graphdef, params, jax.tree.map(take, frozen))
            return block(x, task_ids, key, own)

        block = checkpointed(block, self.remat)

        def stage(x, scanned):
            windows, last = scanned
            if windows is not None:
                x, _ = jax.lax.scan(lambda x, s: (block("window_blocks", x, *s), None), x, windows)
            return x if last is None else block("global_blocks", x, *last), None

        for windows, last in config.stages_of(blocks):
            parts = scanned("window_blocks", windows), scanned("global_blocks", last)
            x, _ = jax.lax.scan(stage, x, parts)
        return x

    def _flat(self, blocks: Block, name: str) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        """A stack, its axes made one: its graph, what trains of it, what is frozen."""
        axes = len(self.config.stacks[name])
        graphdef, *states = nnx.split(blocks, self._trains, ...)
        return graphdef, *(
            jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[axes:])), state) for state in states
        )

    @property
    def _trains(self) -> nnx.filterlib.Filter:
        """What may train of a stack. A scan adds up gradients of its slices at once; those of what
        is taken from a whole stack it would add up as whole stacks."""
        if self._apart:
            return nnx.Nothing()
        if self.full:
            return nnx.Everything()
        return nnx.Any(TaskParam, NORMS)

    @property
    def _apart(self) -> bool:
        """Whether what trains stands apart from the blocks, in `adapted`."""
        return len(self.adapted) > 0

    def adapters(self) -> dict[str, Adapter]:
        """The adapters of window blocks and of global blocks, as stacked."""
        found = {name: getattr(self, name).attn.adapter for name in self.config.stacks}
        found |= {name: own.adapter for name, own in self.adapted.items()}
        return {name: adapter for name, adapter in found.items() if adapter is not None}

    def relative_updates(self) -> Float[Array, "adapted"]:
        """‖ΔW‖_F / ‖W‖_F of every adapted block's qkv kernel, of the task that moves it the most.

        Zeros without adapters.
        """
        config, ratios = self.config, {}
        for name, adapter in self.adapters().items():
            graphdef, params = nnx.split(adapter)
            axes = 1 if self._apart else len(config.stacks[name])
            params = jax.tree.map(lambda x, n=axes: x.reshape(-1, *x.shape[n:]), params)
            kernels = getattr(self, name).attn.qkv.kernel[...]
            kernels = kernels.reshape(-1, *kernels.shape[-2:])

            def ratio(params, graphdef=graphdef):
                params, kernel = params
                norm = nnx.merge(graphdef, params).norm().max()
                return norm / jnp.linalg.norm(kernel.astype(jnp.float32))

            # One block after the other: dense updates of all would not fit.
            kernels = kernels[config.rows(name, self.blocks)]
            found = jax.lax.map(ratio, (params, kernels))
            ratios |= zip(config.numbers(name, self.blocks), found, strict=True)
        return jnp.stack([ratios.get(number, jnp.zeros(())) for number in self.blocks])

    def orthogonality(self, parts: Sequence[str] = ORTHOGONAL_PARTS) -> Float[Array, ""]:
        """The orthogonal regulariser: the mean of ‖AᵀA − I‖_F over every U1, U2 and G[:, :, j], or
        over those of them that `parts` names."""
        terms = [adapter.orthogonality(parts) for adapter in self.adapters().values()]
        return sum((t[0] for t in terms), jnp.zeros(())) / max(1, sum(t[1] for t in terms))

    def merge(self, task_id: int) -> "ImageEncoder":
        """A task's encoder as a plain SAM encoder: W + ΔW[t] in place of W and the adapter.

        Called with the task ids (0,), it gives what this one gives with (task_id,).
        """
        plain = nnx.eval_shape(
            lambda: ImageEncoder(
                self.config,
                AdapterConfig("none"),
                1,
                remat=self.remat,
                dtype=self.dtype,
                rngs=Keys(0),
            )
        )
        merged = {p: v for p, v in nnx.to_flat_state(nnx.state(self)) if "adapter" not in p}
        for path in [path for path in merged if path[0] == "adapted"]:
            # LayerNorms of adapted blocks, in place of the base's.
            own, of_base = merged.pop(path), merged[path[1:]]
            merged[path[1:]] = self._with_rows(path[1], of_base, lambda _, own=own: own[...])
        for name, adapter in self.adapters().items():
            update = adapter.merge((task_id,))[..., 0, :, :]
            path = (name, "attn", "qkv", "kernel")
            update = update.reshape(-1, *update.shape[-2:])
            merged[path] = self._with_rows(name, merged[path], lambda x, u=update: x + u)
        nnx.update(plain, nnx.from_flat_state(merged))
        return plain

    def _with_rows(self, name: str, variable: nnx.Variable, new: Callable) -> nnx.Variable:
        """A stack's parameter with `new` of its adapted blocks' rows [n, ...] in their place."""
        x = variable[...]
        flat = x.reshape(-1, *x.shape[len(self.config.stacks[name]) :])
        rows = self.config.rows(name, self.blocks)
        flat = flat.at[rows].set(new(flat[rows]).astype(x.dtype))
        return variable.replace(flat.reshape(x.shape))


def sincos_positions(grid: int, width: int) -> Float[Array, "grid grid width"]:
    """Fixed 2-D sine-cosine positions (He et al. 2022, MAE): half the width for each axis."""
    quarter = width // 4
    angles = jnp.arange(grid)[:, None] / 10_000 ** (jnp.arange(quarter) / quarter)
    axis = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    rows = jnp.broadcast_to(axis[:, None], (grid, grid, 2 * quarter))
    positions = jnp.concatenate([jnp.swapaxes(rows, 0, 1), rows], axis=-1)
    return jnp.pad(positions, ((0, 0), (0, 0), (0, width - 4 * quarter)))


def _stack(make: Callable[[Keys], Module], rngs: Rngs, *sizes: int) -> Module:
    """A module whose every parameter has the leading axes `sizes`, each entry drawn on its own."""

    def init(key):
        return nnx.state(make(Keys(key)))

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(Keys(0))))
    keys = jax.random.split(rngs.params(), math.prod(sizes)).reshape(sizes)
    for _ in sizes:
        init = jax.vmap(init)
    return nnx.merge(graphdef, init(keys))


def _part(x: Array | np.ndarray, first: int, *, shape: tuple[int, ...]) -> Array | np.ndarray:
    """The entries from `first` on along the leading axis, as many as an array of a shape has."""
    return x[first : first + math.prod(shape)].reshape(*shape, *x.shape[1:])
