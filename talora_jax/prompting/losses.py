"""What is wrong with mask logits, and how good a mask is.

Source: Segment Anything (Kirillov et al. 2023, section 3 and appendix A): 20 focal + dice, the IoU
head by squared error. Each is a number for each mask, over the pixels of the image alone.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

FOCAL_WEIGHT = 20.0


def focal(
    logits: Float[Array, "*b y x"], mask: Bool[Array, "*#b y x"], inside: Bool[Array, "*#b y x"]
) -> Float[Array, "*b"]:
    """The focal loss, α = 0.25 and γ = 2 (Lin et al. 2017): the mean over the pixels."""
    loss = optax.sigmoid_focal_loss(logits, mask.astype(logits.dtype), alpha=0.25, gamma=2.0)
    count = jnp.maximum(inside.sum((-2, -1)), 1)
    return jnp.sum(jnp.where(inside, loss, 0), axis=(-2, -1)) / count


def dice(
    logits: Float[Array, "*b y x"], mask: Bool[Array, "*#b y x"], inside: Bool[Array, "*#b y x"]
) -> Float[Array, "*b"]:
    """1 − (2 Σ p m + 1) / (Σ p + Σ m + 1) of probabilities p (Milletari et al. 2016)."""
    p = jnp.where(inside, jax.nn.sigmoid(logits), 0)
    m = (mask & inside).astype(p.dtype)
    both = jnp.sum(p * m, axis=(-2, -1))
    return 1 - (2 * both + 1) / (p.sum((-2, -1)) + m.sum((-2, -1)) + 1)


def mask_loss(
    logits: Float[Array, "*b y x"], mask: Bool[Array, "*#b y x"], inside: Bool[Array, "*#b y x"]
) -> Float[Array, "*b"]:
    """20 focal + dice."""
    return FOCAL_WEIGHT * focal(logits, mask, inside) + dice(logits, mask, inside)


def intersection_over_union(
    answer: Bool[Array, "*b y x"], mask: Bool[Array, "*#b y x"], inside: Bool[Array, "*#b y x"]
) -> Float[Array, "*b"]:
    """How much of an answer and its mask is in both; 1 if both are empty."""
    both = jnp.sum(answer & mask & inside, axis=(-2, -1))
    either = jnp.sum((answer | mask) & inside, axis=(-2, -1))
    return jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0)
