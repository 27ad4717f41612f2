"""What of a block of the image encoder its backward pass computes again."""

from collections.abc import Callable

import jax

from talora_jax.models.attention import ATTENDED

# The least first: nothing; all but the products with frozen kernels and what attention gave; all of
# a block but what its attention gave; all of a block.
REMAT = ("none", "dots", "block_but_attention", "block")


def choose_remat(word: str, platform: str) -> str:
    """Which of `REMAT` a word of the config means on a platform, as JAX names it.

    `auto` is `dots` on a CPU, whose time goes into products and whose memory is large: a step of
    ViT-B takes 0.87 of the time. Elsewhere it is `block_but_attention`, which keeps a fifth as
    much.
    """
    if word == "auto":
        return "dots" if platform == "cpu" else "block_but_attention"
    return word


def checkpointed(block: Callable, remat: str) -> Callable:
    """A block whose forward pass leaves for its backward pass what a word of `REMAT` says.

    Args:
      block: its first argument is static.
    """
    if remat == "none":
        return block
    policies = jax.checkpoint_policies
    attended = policies.save_only_these_names(ATTENDED)
    products = policies.dots_with_no_batch_dims_saveable
    policy = {
        "dots": policies.save_from_both_policies(products, attended),
        "block_but_attention": attended,
        "block": policies.nothing_saveable,
    }[remat]
    # prevent_cse guards against a merge of the two passes that scan rules out already.
    return jax.checkpoint(block, static_argnums=0, policy=policy, prevent_cse=False)
