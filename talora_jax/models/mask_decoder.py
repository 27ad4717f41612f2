"""SAM's mask decoder: a two-way transformer, upscaling and hypernetworks.

Source: `segment_anything/modeling/mask_decoder.py` and `transformer.py`. What differs:

- Many prompts of one image share its projections. In the first layer all prompts see the same
  image, and a prompt that is constant over the grid adds one vector to it: as a key it drops out of
  the softmax over the image, as a value and as a query it adds one vector to the result.
- A few tokens meet thousands of pixels, so projections are moved to the tokens' side by
  associativity: q·(W x) = (Wᵀq)·x. No projected copy of the image is ever made.
- Absent prompt tokens are masked out of the attention, so that prompts of different lengths fit one
  program. In the official code every prompt of a call has the same number of tokens.
- A transposed convolution whose stride is its kernel is a matrix product per pixel; the 2×2 blocks
  are put in their places once, after the hypernetwork has contracted the channels.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float

from talora_jax.models.gelu import gelu
from talora_jax.models.keys import Rngs
from talora_jax.models.norm import LayerNorm, without_unit_axes

# How much larger than drawn the kernels of queries and keys are that start alike: 1.4² at a logit.
_ALIKE_GAIN = 1.4
# Of the transformer's LayerNorms: PyTorch's default.
_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class MaskDecoderConfig:
    """Sizes of the decoder."""

    dim: int = 256
    heads: int = 8
    mlp_dim: int = 2048
    depth: int = 2
    mask_tokens: int = 4


class TokenAttention(nnx.Module):
    """SAM's `Attention` between a few tokens (q) and the image (N), or among tokens.

    B images, C prompts of each (mSAM: output channels). Image features are shared by the prompts,
    [B, N, D], or one copy each, [B, C, N, D].

    From random numbers, attention between tokens and the image starts with queries and keys of one
    projection: a click and the pixels about it have like positions, so they attend to each other
    from the first step. Training from prompts finds its first masks in half the steps.
    """

    def __init__(self, config: MaskDecoderConfig, internal_dim: int, *, dtype, rngs):
        linear = functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
        self.heads = config.heads
        self.scale = 1 / math.sqrt(internal_dim // config.heads)
        self.q_proj = linear(config.dim, internal_dim)
        self.k_proj = linear(config.dim, internal_dim)
        self.v_proj = linear(config.dim, internal_dim)
        self.out_proj = linear(internal_dim, config.dim)
        if internal_dim < config.dim:  # not among tokens
            self.q_proj.kernel[...] *= _ALIKE_GAIN
            self.k_proj.kernel[...] = self.q_proj.kernel[...]

    def among_tokens(self, q, k, v, present=None):
        """Attention of tokens to tokens, all [B, C, q, D]; `present` [B, C, q] masks the keys."""
        q, k, v = (
            self._heads(p(x)) for p, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        logits = jnp.einsum("bcqkh,bcskh->bckqs", q * self.scale, k)
        if present is not None:
            logits = jnp.where(present[:, :, None, None], logits, -jnp.inf)
        weights = _softmax(logits, axis=-1)
        return self.out_proj(self._join(jnp.einsum("bckqs,bcskh->bcqkh", weights, v)))

    def tokens_to_image(self, q, k, v, dense=None):
        """Tokens q [B, C, q, D] attend to the image, keys k and values v [B, (C,) N, D].

        `dense` [C, D] is a prompt that is constant over the image and belongs to both k and v.
        Along the softmax's axis it shifts every logit alike, and so does the bias of `k_proj`:
        neither appears.
        """
        image = "bcnd" if k.ndim == 4 else "bnd"
        q = self._heads(self.q_proj(q)) * self.scale
        q = jnp.einsum("bcqkh,dkh->bckqd", q, self._in_kernel(self.k_proj, q.dtype))
        weights = _softmax(jnp.einsum(f"bckqd,{image}->bckqn", q, k), axis=-1)
        context = jnp.einsum(f"bckqn,{image}->bckqd", weights, v)
        if dense is not None:
            context += dense[:, None, None]
        out = jnp.einsum("bckqd,dkh->bcqkh", context, self._in_kernel(self.v_proj, q.dtype))
        out += self._heads(self.v_proj.bias[...]).astype(q.dtype)
        return self.out_proj(self._join(out))

    def image_to_tokens(self, q, k, v, dense=None, present=None):
        """The image q [B, (C,) N, D] attends to tokens, keys k and values v [B, C, q, D].

        `dense` [C, D] is a prompt that is constant over the image and belongs to q; `present`
        [B, C, q] masks the keys.
        """
        image = "bcnd" if q.ndim == 4 else "bnd"
        k = self._heads(self.k_proj(k)) * self.scale
        projected = jnp.einsum("bcqkh,dkh->bckqd", k, self._in_kernel(self.q_proj, k.dtype))
        logits = jnp.einsum(f"bckqd,{image}->bckqn", projected, q)
        bias = self._heads(self.q_proj.bias[...]).astype(k.dtype)
        offset = jnp.einsum("bcqkh,kh->bckq", k, bias)
        if dense is not None:
            offset += jnp.einsum("bckqd,cd->bckq", projected, dense)
        if present is not None:
            offset = jnp.where(present[:, :, None], offset, -jnp.inf)
        weights = _softmax(logits + offset[..., None], axis=-2)
        v = self._heads(self.v_proj(v))
        out_kernel = rearrange(self.out_proj.kernel[...], "(k h) d -> k h d", k=self.heads)
        v = jnp.einsum("bcqkh,khd->bckqd", v, out_kernel.astype(v.dtype))
        return jnp.einsum("bckqn,bckqd->bcnd", weights, v) + self.out_proj.bias[...].astype(v.dtype)

    def _heads(self, x):
        return rearrange(x, "... (k h) -> ... k h", k=self.heads)

    def _join(self, x):
        return rearrange(x, "... k h -> ... (k h)")

    def _in_kernel(self, linear, dtype):
        return self._heads(linear.kernel[...]).astype(dtype)


class TwoWayLayer(nnx.Module):
    """Tokens attend to themselves and to the image, then the image to the tokens."""

    def __init__(self, config: MaskDecoderConfig, *, first: bool, dtype, rngs):
        attention = functools.partial(TokenAttention, config, dtype=dtype, rngs=rngs)
        norm = functools.partial(LayerNorm, config.dim, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.first = first
        self.self_attn = attention(config.dim)
        self.norm1 = norm()
        self.cross_attn_token_to_image = attention(config.dim // 2)
        self.norm2 = norm()
        self.lin1 = nnx.Linear(config.dim, config.mlp_dim, dtype=dtype, rngs=rngs)
        self.lin2 = nnx.Linear(config.mlp_dim, config.dim, dtype=dtype, rngs=rngs)
        self.norm3 = norm()
        self.cross_attn_image_to_token = attention(config.dim // 2)
        self.norm4 = norm()

    def __call__(self, tokens, image, token_pe, image_pe, dense=None, present=None):
        """tokens [B, C, q, D], image [B, (C,) N, D] → tokens, image [B, C, N, D]."""
        if self.first:
            # The first layer has no positions for its queries and no residual, as in SAM.
            tokens = self.norm1(self.self_attn.among_tokens(tokens, tokens, tokens, present))
        else:
            q = tokens + token_pe
            tokens = self.norm1(tokens + self.self_attn.among_tokens(q, q, tokens, present))
        keys = image + image_pe
        tokens = self.norm2(
            tokens
            + self.cross_attn_token_to_image.tokens_to_image(tokens + token_pe, keys, image, dense)
        )
        tokens = self.norm3(tokens + self.lin2(jax.nn.relu(self.lin1(tokens))))
        update = self.cross_attn_image_to_token.image_to_tokens(
            keys, tokens + token_pe, tokens, dense, present
        )
        image = image if image.ndim == 4 else image[:, None]
        if dense is not None:
            image = image + dense[:, None]
        return tokens, self.norm4(image + update)


class TwoWayTransformer(nnx.Module):
    """Layers of two-way attention and a last look of the tokens at the image."""

    def __init__(self, config: MaskDecoderConfig, *, dtype, rngs):
        self.layers = nnx.List(
            [TwoWayLayer(config, first=i == 0, dtype=dtype, rngs=rngs) for i in range(config.depth)]
        )
        self.final_attn_token_to_image = TokenAttention(
            config, config.dim // 2, dtype=dtype, rngs=rngs
        )
        self.norm_final_attn = LayerNorm(config.dim, epsilon=_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, tokens, image, image_pe, dense, *, wanted: slice, present=None):
        """The `wanted` tokens [B, C, q, D] and the image [B, C, N, D] after all layers."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, dense, present)
            dense = None  # the image carries it from here on
        tokens, token_pe = tokens[:, :, wanted], token_pe[:, :, wanted]
        update = self.final_attn_token_to_image.tokens_to_image(
            tokens + token_pe, image + image_pe, image
        )
        return self.norm_final_attn(tokens + update), image


class Upscaling(nnx.Module):
    """Two transposed convolutions of stride 2, as matrix products per pixel."""

    def __init__(self, dim: int, *, dtype, rngs):
        init = nnx.initializers.lecun_normal(in_axis=0, out_axis=(1, 2, 3))
        self.dtype = dtype
        self.kernel1 = nnx.Param(init(rngs.params(), (dim, 2, 2, dim // 4)))
        self.bias1 = nnx.Param(jnp.zeros(dim // 4))
        self.norm = LayerNorm(dim // 4, dtype=dtype, rngs=rngs)
        self.kernel2 = nnx.Param(init(rngs.params(), (dim // 4, 2, 2, dim // 8)))
        self.bias2 = nnx.Param(jnp.zeros(dim // 8))

    def __call__(self, image, hyper, grid):
        """image [B, C, N, D] and hyper [B, C, m, D/8] → maps [B, C, m, 4h, 4w]."""
        cast = functools.partial(jnp.asarray, dtype=self.dtype)
        # A 2×2 block's rows and columns (i, j, then x, y) share an axis, p, then q, until they are
        # put in their places in two steps: no array has more than six axes.
        kernel1, kernel2 = (
            rearrange(cast(kernel[...]), "d i j e -> d (i j) e")
            for kernel in (self.kernel1, self.kernel2)
        )
        x = jnp.einsum("bcnd,dpe->bcnpe", image, kernel1)
        x = gelu(self.norm(x + cast(self.bias1[...])))
        x = jnp.einsum("bcnpe,eqf->bcnpqf", x, kernel2)
        x = gelu(x + cast(self.bias2[...]))
        maps = jnp.einsum("bcnpqf,bcmf->bcmnpq", x, hyper)
        shape = dict(zip("bcm", maps.shape, strict=False))
        maps = rearrange(maps, "b c m n p q -> (b c m) n p q")
        maps = rearrange(maps, "l n (i j) (x y) -> l n (i x) (j y)", i=2, x=2)
        maps = rearrange(maps, "l (h w) u v -> l (h u) (w v)", h=grid[0], w=grid[1])
        return rearrange(maps, "(b c m) y x -> b c m y x", **shape)


class MLP(nnx.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, sizes: tuple[int, ...], *, dtype, rngs):
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nnx.List([nnx.Linear(i, o, dtype=dtype, rngs=rngs) for i, o in pairs])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class MaskDecoder(nnx.Module):
    """Image embeddings and prompts to low-resolution mask logits."""

    def __init__(self, config: MaskDecoderConfig, *, dtype: DTypeLike = jnp.float32, rngs: Rngs):
        dim, masks = config.dim, config.mask_tokens
        mlp = functools.partial(MLP, dtype=dtype, rngs=rngs)
        self.dtype = dtype
        self.iou_token = nnx.Param(jax.random.normal(rngs.params(), (1, dim)))
        self.mask_tokens = nnx.Param(jax.random.normal(rngs.params(), (masks, dim)))
        self.transformer = TwoWayTransformer(config, dtype=dtype, rngs=rngs)
        self.output_upscaling = Upscaling(dim, dtype=dtype, rngs=rngs)
        self.output_hypernetworks_mlps = nnx.List(
            [mlp((dim, dim, dim, dim // 8)) for _ in range(masks)]
        )
        self.iou_prediction_head = mlp((dim, dim, dim, masks))

    def __call__(
        self,
        embeddings: Float[Array, "B h w D"],
        positions: Float[Array, "h w D"],
        sparse: Float[Array, "B P n D"],
        present: Bool[Array, "B P n"],
        dense: Float[Array, "D"] | Float[Array, "B P h w D"],
        *,
        multimask: bool | None,
    ) -> tuple[Float[Array, "B P m Y X"], Float[Array, "B P m"]]:
        """SAM's masks for P prompts of each image, and how good each mask is expected to be.

        Args:
          embeddings: of the images.
          positions: the dense positional encoding.
          sparse: prompt tokens, from points and box corners.
          present: which of the tokens count; the others change nothing.
          dense: the no-mask row, or the embedding of a mask for every prompt.
          multimask: three masks (tokens 1-3) for prompts that can mean several things, or one
            (token 0); None for all four, in the order of the tokens.

        Returns:
          Mask logits at Y = 4h, X = 4w, and predicted IoUs, both float32; m = 3, 1 or 4, or as many
          as another number of mask tokens gives.
        """
        batch, prompts, _, dim = sparse.shape
        grid = embeddings.shape[1:3]
        cast = functools.partial(jnp.asarray, dtype=self.dtype)
        outputs = jnp.concatenate([self.iou_token[...], self.mask_tokens[...]])
        tokens = jnp.broadcast_to(outputs, (batch, prompts, *outputs.shape))
        tokens = jnp.concatenate([cast(tokens), cast(sparse)], axis=2)
        always = jnp.ones((batch, prompts, len(outputs)), bool)
        image = rearrange(cast(embeddings), "b h w d -> b (h w) d")
        if dense.ndim == 1:
            row = jnp.broadcast_to(cast(dense), (prompts, dim))
        else:
            image = image[:, None] + rearrange(cast(dense), "b p h w d -> b p (h w) d")
            row = None
        tokens, image = self.transformer(
            tokens,
            image,
            rearrange(cast(positions), "h w d -> (h w) d"),
            row,
            wanted=slice(0, len(outputs)),
            present=jnp.concatenate([always, present], axis=2),
        )
        masks = len(outputs) - 1
        # With a single token there is one mask, whatever is asked for.
        several = range(1, masks) if masks > 1 else range(1)
        chosen = {True: several, False: range(1), None: range(masks)}[multimask]
        hyper = [self.output_hypernetworks_mlps[i](tokens[:, :, 1 + i]) for i in chosen]
        logits = self.output_upscaling(image, jnp.stack(hyper, axis=2), grid)
        iou = self.iou_prediction_head(tokens[:, :, 0])[..., chosen.start : chosen.stop]
        return logits.astype(jnp.float32), iou.astype(jnp.float32)

    def channel_maps(
        self,
        embeddings: Float[Array, "B h w D"],
        positions: Float[Array, "h w D"],
        no_mask: Float[Array, "C D"],
    ) -> Float[Array, "B Y X C"]:
        """mSAM's use of the decoder: one map per no-mask row, from mask token 0 (Y = 4h, X = 4w).

        Args:
          embeddings: of one task.
          positions: the dense positional encoding.
          no_mask: the rows of the task's output channels, the only prompt.
        """
        grid = embeddings.shape[1:3]
        tokens = jnp.concatenate([self.iou_token[...], self.mask_tokens[...]]).astype(self.dtype)
        tokens = jnp.broadcast_to(tokens, (embeddings.shape[0], no_mask.shape[0], *tokens.shape))
        tokens, image = self.transformer(
            tokens,
            rearrange(embeddings, "b h w d -> b (h w) d").astype(self.dtype),
            rearrange(positions, "h w d -> (h w) d").astype(self.dtype),
            no_mask.astype(self.dtype),
            wanted=slice(1, 2),
        )
        hyper = self.output_hypernetworks_mlps[0](tokens)
        maps = self.output_upscaling(image, hyper, grid)
        return rearrange(maps, "b c 1 y x -> b y x c")


def _softmax(logits, axis):
    weights = without_unit_axes(jax.nn.softmax, logits.astype(jnp.float32), axis)
    return weights.astype(logits.dtype)
