"""The gradient of a step from prompts.

Each mask is asked for by a click or a box, then corrected by clicks where the last answer was wrong
and with that answer as a mask prompt. Of the first answer's three masks the best counts; token 0,
which answers several prompts at once, counts in every round. The IoU head learns what the masks'
IoUs are. Source: Segment Anything (Kirillov et al. 2023, section 3 and appendix A). What differs:
token 0 learns from first prompts, too, for mSAM's decoders start from it; no round goes without a
new click. Where TA-LoRA trains, λ times its orthogonal regulariser comes on top, as of tasks.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from talora_jax.data.masks import masks_of
from talora_jax.models.geometry import normalise, shown
from talora_jax.models.sam import Sam
from talora_jax.prompting import draw
from talora_jax.prompting.losses import intersection_over_union, mask_loss
from talora_jax.training.gradients import Gradient, GradientOf, accumulate
from talora_jax.training.prompted.learner import FINE, Learner
from talora_jax.training.setup import Run, sizes


class Asked(NamedTuple):
    """P masks of each image, as fine as the decoder's answers.

    Attributes:
      full: in pixels of the padded image.
      fine: at four pixels to a token's side; a pixel that is half in the mask is in it.
      inside: which of these pixels show the image.
    """

    full: Bool[Array, "B P Y X"]
    fine: Bool[Array, "B P y x"]
    inside: Bool[Array, "B 1 y x"]

    @property
    def stride(self) -> int:
        """Pixels of the padded image to one of the fine ones."""
        return self.full.shape[-1] // self.fine.shape[-1]

    @property
    def known(self) -> Bool[Array, "B P"]:
        """Whether there is a mask: images have fewer than the arrays have room for."""
        return self.full.any((-2, -1))


def ask(masks: Bool[Array, "B P Y X"], size: Int[Array, "B 2"], stride: int) -> Asked:
    """Masks of padded images whose own sizes are `size`."""
    cells = rearrange(masks, "b p (y i) (x j) -> b p y x (i j)", i=stride, j=stride)
    fine = 2 * cells.sum(-1) >= stride**2
    return Asked(masks, fine, shown(size, fine.shape[-2:], stride)[:, None])


class Answer(NamedTuple):
    """What is wrong with an answer, for each prompt.

    Attributes:
      loss: 20 focal + dice of the masks that learn from it, plus the IoU head's squared error.
      iou: of the mask that goes on to the next round.
      logits: of that mask; None where no round follows.
    """

    loss: Float[Array, "B P"]
    iou: Float[Array, "B P"]
    logits: Float[Array, "B P y x"] | None


def first_answer(
    sam: Sam, embeddings: Float[Array, "B h w D"], asked: Asked, prompts: draw.Prompts
) -> Answer:
    """All four masks of the first prompts; the one that is expected to be the best goes on."""
    logits, expected = sam.decode(embeddings, *prompts, multimask=None)
    mask, inside = asked.fine[:, :, None], asked.inside[:, :, None]
    losses = mask_loss(logits, mask, inside)
    ious = intersection_over_union(logits > 0, mask, inside)
    # Not `min`: its slope is shared among all that equal it, and where a compiler rounds the losses
    # in another way for that comparison, none does, and the share is 0 / 0.
    best = 1 + jnp.argmin(losses[..., 1:], axis=-1)[..., None]
    loss = losses[..., 0] + jnp.take_along_axis(losses, best, axis=-1)[..., 0]
    loss += jnp.mean((expected - ious) ** 2, axis=-1)
    chosen = 1 + jnp.argmax(expected[..., 1:], axis=-1)[..., None]
    iou = jnp.take_along_axis(ious, chosen, axis=-1)[..., 0]
    logits = jnp.take_along_axis(logits, chosen[..., None, None], axis=2)[:, :, 0]
    return Answer(loss, iou, logits)


def next_answer(
    sam: Sam,
    embeddings: Float[Array, "B h w D"],
    asked: Asked,
    prompts: draw.Prompts,
    last: Float[Array, "B P y x"],
) -> Answer:
    """The single mask of several prompts and the last mask."""
    logits, expected = sam.decode(embeddings, *prompts, last, multimask=False)
    logits, expected = logits[:, :, 0], expected[:, :, 0]
    iou = intersection_over_union(logits > 0, asked.fine, asked.inside)
    loss = mask_loss(logits, asked.fine, asked.inside) + (expected - iou) ** 2
    return Answer(loss, iou, logits)


def _remat(answer, sam: Sam):
    """The answer, computed again in the backward pass unless the encoder keeps all, too."""
    if sam.image_encoder.remat == "none":
        return functools.partial(answer, sam)
    graphdef, state = nnx.split(sam)
    again = jax.checkpoint(lambda state, *arguments: answer(nnx.merge(graphdef, state), *arguments))
    return functools.partial(again, state)


def rounds(
    sam: Sam, embeddings: Float[Array, "B h w D"], asked: Asked, clicks: int, key: Key[Array, ""]
) -> list[Answer]:
    """The first answer and one for each corrective click."""
    first_key, *keys = jax.random.split(key, 1 + clicks)
    prompts = draw.first_prompts(first_key, asked.full, sam.config.encoder.image_size)
    first = _remat(first_answer, sam)(embeddings, asked, prompts)
    if not clicks:
        return [first]
    given = prompts.labels.shape[-1]

    def correct(carry, turn):
        (prompts, last), (n, key) = carry, turn
        last = jax.lax.stop_gradient(last)
        click = draw.corrective_click(key, last > 0, asked.fine, asked.inside, asked.stride)
        prompts = draw.with_click(prompts, given + n, *click)
        answer = _remat(next_answer, sam)(embeddings, asked, prompts, last)
        return (prompts, answer.logits), (answer.loss, answer.iou)

    # One program for all rounds: compiling takes longer than a hundred steps.
    start = (draw.with_room(prompts, clicks), first.logits)
    _, corrected = jax.lax.scan(correct, start, (jnp.arange(clicks), jnp.stack(keys)))
    return [first, *(Answer(*(x[n] for x in corrected), None) for n in range(clicks))]


def per_embedding(
    sam: Sam, padded: Float[Array, "B Y X 3"], masks: Array, key: Key[Array, ""] | None
) -> list[tuple[Float[Array, "B h w D"], Array]]:
    """Embeddings, and the masks [B, P, Y, X] of the domains that each serves."""
    if not sam.adapter.per_task:
        return [(sam.encode(padded, key=key), rearrange(masks, "b d m y x -> b (d m) y x"))]
    trunk, encoder = sam.image_encoder.trunk(padded), sam.image_encoder
    return [
        (encoder.from_trunk(trunk, (d,), key=key)[0], masks[:, d]) for d in range(masks.shape[1])
    ]


def init_weighting(run: Run) -> tuple[dict[str, Array], PyTree]:
    """There is nothing to weigh."""
    del run
    return {}, {}


def make_gradient(run: Run) -> GradientOf:
    """The function (trainable, (), frozen, batch, step, key) → `Gradient`."""
    config = run.config
    stride = sizes(config).encoder.patch_size // FINE

    def gradient_of(trainable, state, frozen, batch, step, key):
        del step
        asked_for = functools.partial(masks_of, count=config.prompts.masks)
        known = jnp.maximum(jnp.sum(asked_for(batch["asked"]).any((-2, -1))), 1)
        thinned = {task.name: _thin(batch[task.name], stride) for task in run.tasks}
        counts = {task.name: jnp.maximum(task.count(thinned[task.name]), 1) for task in run.tasks}

        def objective(trainable, part, key):
            learner: Learner = nnx.merge(run.graphdef, trainable["model"], frozen)
            dropout_key, key = jax.random.split(key)
            padded = normalise(part["image"].astype(jnp.float32), part["size"])
            pairs = per_embedding(learner.sam, padded, asked_for(part["asked"]), dropout_key)
            scalars: dict[str, Array] = {}
            objective = jnp.zeros(())
            for i, (embeddings, masks) in enumerate(pairs):
                asked = ask(masks, part["size"], stride)
                answers = rounds(
                    learner.sam,
                    embeddings,
                    asked,
                    config.prompts.clicks,
                    jax.random.fold_in(key, i),
                )
                for n, answer in enumerate(answers):
                    for name, values in (("loss", answer.loss), ("iou", answer.iou)):
                        mean = jnp.sum(jnp.where(asked.known, values, 0)) / known
                        name = f"prompts/{name}" if not n else f"prompts/{name}_after_{n}_clicks"
                        scalars[name] = scalars.get(name, 0) + mean
                        objective += mean / len(answers) if "loss" in name else 0
            orthogonal = learner.image_encoder.orthogonality(config.orthogonal_parts)
            scalars["orthogonal"] = orthogonal / config.accumulate
            objective += config.orthogonal_weight * scalars["orthogonal"]
            maps = learner.auxiliary_maps(pairs[0][0])
            for task in run.tasks:
                target = _thin(part[task.name], stride)
                loss = task.loss(maps[task.name], target)[0] / counts[task.name]
                scalars[f"{task.name}/loss"] = loss
                objective += config.prompts.auxiliary_weight * loss
            return objective, scalars

        (value, scalars), gradient = accumulate(
            lambda part, key: jax.value_and_grad(objective, has_aux=True)(trainable, part, key),
            batch,
            key,
            config.accumulate,
        )
        return Gradient(gradient, scalars | {"objective": value}, state)

    return gradient_of


def _thin(target: Array, stride: int) -> Array:
    """A target at the middle of each `stride` × `stride` pixels."""
    return target[:, stride // 2 :: stride, stride // 2 :: stride]
