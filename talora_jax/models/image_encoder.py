"""SAM's image encoder, a ViT with windowed and global attention, carrying one adapter per block.

Source: `segment_anything/modeling/image_encoder.py`. What differs:

- Activations are [T, B, h, w, D]: one encoding per task, all tasks in one program; on a single
  device, large images are encoded for one task after the other.
- Blocks are stacked. SAM's depth is periodic (n window blocks, then a global one), so the encoder
  is a scan over stages around a scan over window blocks: compile time does not grow with depth.
  With global blocks in other places it is a scan over each run of like blocks.
- qkv is projected before windows are padded and the output after they are joined: padding carries
  the projection's bias, which is what projecting zeros gives, and costs no matrix product.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from talora_jax.models.adapters import AdapterConfig, make_adapter
from talora_jax.models.attention import join_windows, split_windows
from talora_jax.models.attention_kernels import KERNELS
from talora_jax.models.geometry import Geometry
from talora_jax.models.patch_conv import PatchConv
from talora_jax.sharding import constrain

# What a backward pass computes again, the least first: nothing; all but the products with frozen
# kernels; all of a block but what its attention gave; all of a block.
REMAT = ("none", "dots", "block_but_attention", "block")
ATTENDED = "attended"
# Tokens that keep a device busy: half of a 1024×1024 image's.
FILLING = 2**11


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig:
    """Sizes of the encoder. `depth` = `stages` × (`window_blocks` + 1 global block).

    Attributes:
      window: tokens along a window's side; 0 where no block has windows.
      global_blocks: the numbers of the global blocks, where these are not each stage's last. Then
        there is one stage, whose `window_blocks` + 1 blocks are window and global ones.
    """

    image_size: int = 1024
    patch_size: int = 16
    width: int = 768
    heads: int = 12
    stages: int = 4
    window_blocks: int = 2
    window: int = 14
    out_channels: int = 256
    global_blocks: tuple[int, ...] | None = None

    @property
    def grid(self) -> int:
        """Tokens along one side of the padded square."""
        return self.image_size // self.patch_size

    @property
    def depth(self) -> int:
        return self.stages * (self.window_blocks + 1)

    @property
    def periodic(self) -> bool:
        """Whether the blocks are stages of window blocks and a global one."""
        return self.global_blocks is None and self.window_blocks > 0

    @property
    def places(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Of every block, in order, the stack that holds it and its index there."""
        if self.periodic:
            return tuple(
                ("window_blocks", (stage, place))
                if place < self.window_blocks
                else ("global_blocks", (stage,))
                for stage in range(self.stages)
                for place in range(self.window_blocks + 1)
            )
        everywhere = self.global_blocks is None
        counts = {"window_blocks": 0, "global_blocks": 0}
        places = []
        for block in range(self.depth):
            is_global = everywhere or block in self.global_blocks
            name = "global_blocks" if is_global else "window_blocks"
            places.append((name, (counts[name],)))
            counts[name] += 1
        return tuple(places)

    @property
    def global_places(self) -> tuple[int, ...]:
        """The numbers of the blocks without windows."""
        return tuple(i for i, (stack, _) in enumerate(self.places) if stack == "global_blocks")

    @property
    def stacks(self) -> dict[str, tuple[int, ...]]:
        """The stacks of blocks that there are, and the axes along which each is stacked."""
        last = dict(self.places)
        return {
            name: tuple(i + 1 for i in last[name])
            for name in ("window_blocks", "global_blocks")
            if name in last
        }

    def geometry(self, size: tuple[int, int], *, native_aspect: bool) -> Geometry:
        """How an image of this (H, W) is encoded."""
        patch = self.patch_size if native_aspect else None
        return Geometry.of(size, self.image_size, patch)


class Attention(nnx.Module):
    """Multi-head attention with decomposed relative positions and an adapted qkv projection."""

    def __init__(self, config, adapter, num_tasks, size, attention, *, dtype, rngs):
        head_width = config.width // config.heads
        self.heads = config.heads
        self.attention = attention
        self.qkv = nnx.Linear(config.width, 3 * config.width, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(config.width, config.width, dtype=dtype, rngs=rngs)
        self.rel_pos_h = nnx.Param(jnp.zeros((2 * size - 1, head_width)))
        self.rel_pos_w = nnx.Param(jnp.zeros((2 * size - 1, head_width)))
        self.adapter = nnx.data(make_adapter(adapter, config.width, num_tasks, rngs=rngs))

    def __call__(self, x, window, task_ids, key):
        grid = x.shape[2:4]
        qkv = jnp.einsum("...d,dk->...k", x, self.qkv.kernel[...].astype(x.dtype))
        if self.adapter is not None:
            qkv += self.adapter(x, task_ids, key)
        if window:
            qkv = split_windows(qkv, window)
        qkv += self.qkv.bias[...].astype(x.dtype)
        q, k, v = (
            rearrange(x, "t m h w (k d) -> t m k h w d", k=self.heads)
            for x in jnp.split(qkv, 3, axis=-1)
        )
        out = KERNELS[self.attention](q, k, v, self.rel_pos_h[...], self.rel_pos_w[...])
        out = rearrange(out, "t m k h w d -> t m h w (k d)")
        out = join_windows(out, grid) if window else out
        return self.proj(checkpoint_name(out, ATTENDED))


class Block(nnx.Module):
    """A pre-norm transformer block; `window` = 0 attends to the whole grid."""

    def __init__(self, config, adapter, num_tasks, window, attention, *, dtype, rngs):
        # use_fast_variance=False: E[x²] − E[x]² loses what 1e-5 parity needs.
        norm = functools.partial(
            nnx.LayerNorm, config.width, epsilon=1e-6, use_fast_variance=False, dtype=dtype
        )
        self.window = window
        self.norm1 = norm(rngs=rngs)
        self.attn = Attention(
            config, adapter, num_tasks, window or config.grid, attention, dtype=dtype, rngs=rngs
        )
        self.norm2 = norm(rngs=rngs)
        self.lin1 = nnx.Linear(config.width, 4 * config.width, dtype=dtype, rngs=rngs)
        self.lin2 = nnx.Linear(4 * config.width, config.width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "n B h w D"],
        task_ids: Int[Array, "n"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "n B h w D"]:
        x += self.attn(self.norm1(x), self.window, task_ids, key)
        return x + self.lin2(jax.nn.gelu(self.lin1(self.norm2(x)), approximate=False))


class Neck(nnx.Module):
    """To the decoder's width: 1×1 and 3×3 convolutions, each with a LayerNorm over channels."""

    def __init__(self, config, *, dtype, rngs):
        unbiased = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        norm = functools.partial(
            nnx.LayerNorm,
            config.out_channels,
            epsilon=1e-6,
            use_fast_variance=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.conv1 = PatchConv(config.width, config.out_channels, 1, **unbiased)
        self.neck_norm1 = norm()
        self.conv2 = nnx.Conv(config.out_channels, config.out_channels, (3, 3), **unbiased)
        self.neck_norm2 = norm()

    def __call__(self, x):
        return self.neck_norm2(self.conv2(self.neck_norm1(self.conv1(x))))


class ImageEncoder(nnx.Module):
    """Images to embeddings, one per task.

    The global blocks attend by the kernel `attention` (see `attention_kernels`), windows by `xla`.

    Without a checkpoint, linear layers start LeCun-normal, relative positions at zero and absolute
    positions as MAE's sines and cosines, from which SAM's own encoder started.
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
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.remat = remat
        self.dtype = dtype
        self.per_task = adapter.per_task
        self.patch_embed = PatchConv(3, config.width, config.patch_size, dtype=dtype, rngs=rngs)
        self.pos_embed = nnx.Param(sincos_positions(config.grid, config.width))
        make = functools.partial(Block, config, adapter, num_tasks, dtype=dtype)
        kinds = {"window_blocks": (config.window, "xla"), "global_blocks": (0, attention)}
        for name, axes in config.stacks.items():
            kind = kinds[name]
            setattr(self, name, _stack(lambda rngs, kind=kind: make(*kind, rngs=rngs), rngs, *axes))
        self.neck = Neck(config, dtype=dtype, rngs=rngs)

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
          key: for the adapters' dropout; None when not training.

        Returns:
          n = len(task_ids), or n = 1 when the adapter kind does not tell tasks apart.
        """
        task_ids = task_ids if self.per_task else (0,)
        x = self.patch_embed(images)
        height, width = x.shape[1:3]
        x += self.pos_embed[:height, :width].astype(x.dtype)
        encode = functools.partial(self._encode, x, key=key)
        if len(task_ids) == 1 or not _fills_a_device(x):
            return encode(jnp.array(task_ids))
        return jax.lax.map(lambda task: encode(task[None])[0], jnp.array(task_ids))

    def _encode(
        self, x: Float[Array, "B h w D"], task_ids: Int[Array, "n"], key: PRNGKeyArray | None
    ) -> Float[Array, "n B h w C"]:
        """Embeddings of these tasks, computed together, from patches with their positions."""
        x = jnp.broadcast_to(x, (len(task_ids), *x.shape))

        def block(graphdef, x, params, key):
            # The task axis is laid over the mesh's `task`, the batch over `data` and `fsdp`.
            x = constrain(x, "task" if len(task_ids) > 1 else None, ("data", "fsdp"))
            return nnx.merge(graphdef, params)(x, task_ids, key)

        block = _checkpointed(block, self.remat)
        x = (self._stages if self.config.periodic else self._runs)(block, x, key)
        # Images lead: an axis laid over the mesh keeps its layout only as the outer one of a merge.
        embeddings = self.neck(rearrange(x, "t b h w d -> (b t) h w d"))
        return rearrange(embeddings, "(b t) h w c -> t b h w c", t=len(task_ids))

    def _stages(self, block: Callable, x: Array, key: PRNGKeyArray | None) -> Array:
        """All blocks, stage by stage."""
        window_graph, window_params = nnx.split(self.window_blocks)
        global_graph, global_params = nnx.split(self.global_blocks)
        stages, window_blocks = self.config.stages, self.config.window_blocks
        keys = None if key is None else jax.random.split(key, (stages, window_blocks + 1))

        def stage(x, scanned):
            window_params, global_params, keys = scanned
            window_keys = None if keys is None else keys[:-1]
            x, _ = jax.lax.scan(
                lambda x, scanned: (block(window_graph, x, *scanned), None),
                x,
                (window_params, window_keys),
                length=window_blocks,
            )
            return block(global_graph, x, global_params, None if keys is None else keys[-1]), None

        return jax.lax.scan(stage, x, (window_params, global_params, keys), length=stages)[0]

    def _runs(self, block: Callable, x: Array, key: PRNGKeyArray | None) -> Array:
        """All blocks, one run of window blocks or of global ones after the other."""
        places = self.config.places
        keys = None if key is None else jax.random.split(key, len(places))
        done = 0
        for name, run in itertools.groupby(places, key=lambda place: place[0]):
            indices = [index for _, (index,) in run]
            graphdef, params = nnx.split(getattr(self, name))
            part = slice(indices[0], indices[-1] + 1)
            params = jax.tree.map(lambda x, part=part: x[part], params)
            part = None if keys is None else keys[done : done + len(indices)]
            x, _ = jax.lax.scan(
                lambda x, scanned, graphdef=graphdef: (block(graphdef, x, *scanned), None),
                x,
                (params, part),
                length=len(indices),
            )
            done += len(indices)
        return x

    def relative_updates(self) -> Float[Array, "depth"]:
        """‖ΔW‖_F / ‖W‖_F of every block's qkv kernel, of the task that moves it the most.

        Zeros without adapters.
        """
        ratios = {}
        for name, axes in self.config.stacks.items():
            graphdef, params = nnx.split(getattr(self, name).attn)

            def ratio(params, graphdef=graphdef):
                attention = nnx.merge(graphdef, params)
                if attention.adapter is None:
                    return jnp.zeros(())
                kernel = attention.qkv.kernel[...].astype(jnp.float32)
                return attention.adapter.norm().max() / jnp.linalg.norm(kernel)

            # One block after the other: dense updates of all would not fit.
            for _ in axes:
                ratio = functools.partial(jax.lax.map, ratio)
            ratios[name] = ratio(params)
        return jnp.stack([ratios[name][index] for name, index in self.config.places])

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
                rngs=nnx.Rngs(0),
            )
        )
        merged = {p: v for p, v in nnx.to_flat_state(nnx.state(self)) if "adapter" not in p}
        for blocks in self.config.stacks:
            adapter = getattr(self, blocks).attn.adapter
            if adapter is not None:
                update = adapter.merge((task_id,))[..., 0, :, :]
                path = (blocks, "attn", "qkv", "kernel")
                kernel = merged[path][...]
                merged[path] = merged[path].replace((kernel + update).astype(kernel.dtype))
        nnx.update(plain, nnx.from_flat_state(merged))
        return plain


def sincos_positions(grid: int, width: int) -> Float[Array, "grid grid width"]:
    """Fixed 2-D sine-cosine positions (He et al. 2022, MAE): half the width for each axis."""
    quarter = width // 4
    angles = jnp.arange(grid)[:, None] / 10_000 ** (jnp.arange(quarter) / quarter)
    axis = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    rows = jnp.broadcast_to(axis[:, None], (grid, grid, 2 * quarter))
    positions = jnp.concatenate([jnp.swapaxes(rows, 0, 1), rows], axis=-1)
    return jnp.pad(positions, ((0, 0), (0, 0), (0, width - 4 * quarter)))


def _stack(make: Callable[[nnx.Rngs], Block], rngs: nnx.Rngs, *sizes: int) -> Block:
    """A block whose every parameter has the leading axes `sizes`, each entry drawn on its own."""

    def init(key):
        return nnx.state(make(nnx.Rngs(key)))

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    keys = jax.random.split(rngs.params(), math.prod(sizes)).reshape(sizes)
    for _ in sizes:
        init = jax.vmap(init)
    return nnx.merge(graphdef, init(keys))


def _fills_a_device(x: Float[Array, "B h w D"]) -> bool:
    """Whether one task's tokens keep this machine's only device busy.

    Then tasks are encoded one after the other: no slower, and with one task's activations at a
    time. On a mesh they are encoded together: `task` may share them out, and `fsdp` gathers each
    kernel once for all of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return (mesh.empty or mesh.size == 1) and math.prod(x.shape[:3]) >= FILLING


def _checkpointed(block, remat: str):
    """Decides what a block's forward pass leaves for its backward pass, by `config.model.remat`."""
    if remat == "none":
        return block
    policies = jax.checkpoint_policies
    policy = {
        "dots": policies.dots_with_no_batch_dims_saveable,
        "block_but_attention": policies.save_only_these_names(ATTENDED),
        "block": policies.nothing_saveable,
    }[remat]
    # prevent_cse guards against a merge of the two passes that scan rules out already.
    return jax.checkpoint(block, static_argnums=0, policy=policy, prevent_cse=False)
