"""IoUs after clicks and from boxes, what answers without a model are worth, and pictures."""

import functools
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from talora_jax.data.masks import masks_of
from talora_jax.models.geometry import normalise, resize, resize_matrix, shown
from talora_jax.models.prompt_encoder import (
    ABSENT,
    FOREGROUND,
    LOWER_RIGHT,
    NOT_A_POINT,
    UPPER_LEFT,
)
from talora_jax.prompting import measure
from talora_jax.prompting.draw import Prompts
from talora_jax.prompting.losses import intersection_over_union
from talora_jax.sharding import batch_rows, batch_sharding, local_rows, shard_batch
from talora_jax.training.evaluate import Measured, over_processes, split_batches
from talora_jax.training.prompted.panels import panel
from talora_jax.training.prompted.setup import asked_masks
from talora_jax.training.setup import Run

# After how many clicks an IoU is told.
CLICKS = (1, 2, 3, 5)
# Of a prompt's masks: the one of three that is expected to be the best, the best of three, and
# token 0's.
ANSWERS = ("picked", "best", "single")


class Evaluator:
    """Evaluates parameters on the validation split. Compiles once for all calls."""

    def __init__(self, run: Run):
        self._run = run
        self._asked = asked_masks(run.config, run.dataset, "val")
        self._counted = batch_rows(run.mesh, run.config.eval_batch_size).counted
        sharding = batch_sharding(run.mesh)

        @functools.partial(jax.jit, out_shardings=sharding)
        def embed(trainable, frozen, batch):
            sam = nnx.merge(run.graphdef, trainable, frozen).sam
            padded = normalise(batch["image"].astype(jnp.float32), batch["size"])
            domains = range(len(self._asked.domains))
            if not sam.adapter.per_task:
                return (sam.encode(padded),) * len(domains)
            trunk, encoder = sam.image_encoder.trunk(padded), sam.image_encoder
            return tuple(encoder.from_trunk(trunk, (domain,))[0] for domain in domains)

        @functools.partial(jax.jit, out_shardings=sharding)
        def answer(trainable, frozen, embeddings, masks, size, prompts, last):
            """IoUs [B, P, 3], as `ANSWERS`; the mask to go on with, and its logits."""
            sam = nnx.merge(run.graphdef, trainable, frozen).sam
            logits, expected = sam.decode(embeddings, *prompts, last, multimask=None)
            whole = _enlarged(logits, masks.shape[-2:])
            inside = shown(size, masks.shape[-2:])[:, None, None]
            ious = intersection_over_union(whole, masks[:, :, None], inside)
            picked = 1 + jnp.argmax(expected[..., 1:], axis=-1)
            # Several prompts mean one thing: token 0.
            chosen = (jnp.zeros_like(picked) if last is not None else picked)[..., None]
            take = functools.partial(jnp.take_along_axis, axis=2)
            told = [take(ious, picked[..., None])[..., 0], ious[..., 1:].max(-1), ious[..., 0]]
            return (
                jnp.stack(told, axis=-1),
                take(whole & inside, chosen[..., None, None])[:, :, 0],
                take(logits, chosen[..., None, None])[:, :, 0],
            )

        self._embed, self._answer = embed, answer

    def measured(self, trainable: nnx.State) -> Measured:
        """The metrics; there are no classes."""
        return Measured(self.metrics(trainable), {})

    def metrics(self, trainable: nnx.State) -> dict[str, float]:
        """IoUs as `<domain>/<prompt>/<answer>`, means over all masks of the validation split, and
        how many there are, `<domain>/masks`; no IoU where there is none."""
        totals: dict[str, np.ndarray] = {}
        for batch in split_batches(self._run, "val", self._asked):
            for domain, told in self._measured(trainable, batch).items():
                for prompt, ious in told.items():
                    key = f"{domain}/{prompt}"
                    totals[key] = totals.get(key, 0) + ious.sum(0, dtype=np.float64)
                key = f"{domain}/masks"
                totals[key] = totals.get(key, 0) + np.array([len(told["box"])], np.float64)
        totals = over_processes(totals)
        metrics: dict[str, float] = {}
        for domain in self._asked.domains:
            count = totals[f"{domain}/masks"][0]
            metrics[f"{domain}/masks"] = count
            if not count:
                continue
            for prompt in ("box", *map(_clicks, CLICKS)):
                for answer, total in zip(ANSWERS, totals[f"{domain}/{prompt}"], strict=True):
                    metrics[f"{domain}/{prompt}/{answer}"] = float(total / count)
        return metrics

    def pictures(self, trainable: nnx.State, count: int) -> list[np.ndarray]:
        """Panels [Y, X, 3] of the first images of the validation split."""
        panels: list[np.ndarray] = []
        # By their number, which all processes know: each of them draws its own rows.
        batches = -(-count // self._run.config.eval_batch_size)
        for batch in itertools.islice(split_batches(self._run, "val", self._asked), batches):
            drawn = self._drawn(trainable, batch)
            panels += [
                panel(
                    batch["image"][i],
                    tuple(batch["size"][i]),
                    {domain: rows[i] for domain, rows in drawn.items()},
                )
                for i in np.flatnonzero(batch["valid"])
            ]
        return panels[:count]

    def _embeddings(self, trainable: nnx.State, batch: Mapping[str, np.ndarray]):
        images = {name: batch[name] for name in ("image", "size")}
        return self._embed(trainable, self._run.frozen, shard_batch(images, self._run.mesh))

    def _measured(
        self, trainable: nnx.State, batch: Mapping[str, np.ndarray]
    ) -> dict[str, dict[str, Float[np.ndarray, "n 3"]]]:
        """For each domain the IoUs of the masks that this process counts, by prompt."""
        told = {}
        embeddings = self._embeddings(trainable, batch)
        for d, domain in enumerate(self._asked.domains):
            masks = masks_of(batch["asked"][:, d], self._asked.count)
            known = masks.any((-2, -1))
            counted = known & self._counted[:, None]
            ask = functools.partial(self._ask, trainable, embeddings[d], masks, batch["size"])
            told[domain] = {"box": ask(_boxes(masks, known), None)[0][counted]}
            prompts, last = _first_clicks(masks, known), None
            for n in range(1, 1 + CLICKS[-1]):
                if last is not None:
                    prompts = _corrected(prompts, answers, masks, known)
                ious, answers, last = ask(prompts, last)
                if n in CLICKS:
                    told[domain][_clicks(n)] = ious[counted]
        return told

    def _drawn(self, trainable: nnx.State, batch: Mapping[str, np.ndarray]):
        """For each domain of a batch: masks [B, M, Y, X], boxes, clicks, and the answers."""
        drawn = {}
        embeddings = self._embeddings(trainable, batch)
        for d, domain in enumerate(self._asked.domains):
            masks = masks_of(batch["asked"][:, d], self._asked.count)
            known = masks.any((-2, -1))
            ask = functools.partial(self._ask, trainable, embeddings[d], masks, batch["size"])
            boxes, clicks = _boxes(masks, known), _first_clicks(masks, known)
            rows = zip(
                masks,
                boxes.points.reshape(*known.shape, 4),
                ask(boxes, None)[1],
                clicks.points[:, :, 0],
                ask(clicks, None)[1],
                strict=True,
            )
            drawn[domain] = [tuple(x[k] for x in row) for row, k in zip(rows, known, strict=True)]
        return drawn

    def _ask(self, trainable, embeddings, masks, size, prompts: Prompts, last):
        """`answer`'s arrays for this process's rows; the logits stay on the devices."""
        mesh = self._run.mesh
        placed = shard_batch(
            {"masks": masks, "size": size, "points": prompts.points, "labels": prompts.labels}, mesh
        )
        ious, answers, logits = self._answer(
            trainable,
            self._run.frozen,
            embeddings,
            placed["masks"],
            placed["size"],
            Prompts(placed["points"], placed["labels"]),
            last,
        )
        return local_rows(ious), local_rows(answers), logits


def trivial_answers(run: Run) -> dict[str, float]:
    """What answers without a model are worth, by the names of the metrics beside which they stand:
    a box filled, and about one click the disc whose radius is the best for all masks.
    """
    asked = asked_masks(run.config, run.dataset, "val")
    totals: dict[str, np.ndarray] = {
        f"{domain}/{what}": np.zeros(n)
        for domain in asked.domains
        for what, n in (("masks", 1), ("box", 1), ("discs", len(measure.RADII)))
    }
    counted = batch_rows(run.mesh, run.config.eval_batch_size).counted
    for batch in split_batches(run, "val", asked):
        for d, domain in enumerate(asked.domains):
            for numbers, size in zip(
                batch["asked"][counted, d], batch["size"][counted], strict=True
            ):
                # Without the padding, as of a model's answers: no disc is wrong there.
                masks = masks_of(numbers[: size[0], : size[1]], asked.count)
                for mask in masks[masks.any((-2, -1))]:
                    click, _ = measure.centre(mask)
                    totals[f"{domain}/masks"] += 1
                    totals[f"{domain}/box"] += measure.box_filled(mask)
                    totals[f"{domain}/discs"] += measure.discs(mask, click, max(asked.frame))
    totals = over_processes(totals)
    answers = {}
    for domain in asked.domains:
        count = totals[f"{domain}/masks"][0]
        for name in ANSWERS if count else ():
            answers[f"{domain}/box/{name}"] = float(totals[f"{domain}/box"][0] / count)
            answers[f"{domain}/1_click/{name}"] = float(totals[f"{domain}/discs"].max() / count)
    return answers


def _clicks(n: int) -> str:
    return f"{n}_click{'s' if n > 1 else ''}"


def _enlarged(logits: Float[Array, "B P m y x"], size: tuple[int, int]) -> Bool[Array, "B P m Y X"]:
    """What logits say at the padded image's size."""
    rows, columns = (
        jnp.asarray(resize_matrix(low, high, antialias=False), jnp.float32)
        for low, high in zip(logits.shape[-2:], size, strict=True)
    )
    return resize(logits[..., None], rows, columns)[..., 0] > 0


def _boxes(masks: np.ndarray, known: np.ndarray) -> Prompts:
    points = np.zeros((*known.shape, 2, 2), np.float32)
    for i in zip(*np.nonzero(known), strict=True):
        points[i] = measure.box_around(masks[i]).reshape(2, 2)
    return Prompts(points, _labels(known, UPPER_LEFT, LOWER_RIGHT))


def _first_clicks(masks: np.ndarray, known: np.ndarray) -> Prompts:
    points = np.zeros((*known.shape, 2, 2), np.float32)
    for i in zip(*np.nonzero(known), strict=True):
        points[i][0] = measure.centre(masks[i])[0]
    return Prompts(points, _labels(known, FOREGROUND, NOT_A_POINT))


def _corrected(
    prompts: Prompts, answers: np.ndarray, masks: np.ndarray, known: np.ndarray
) -> Prompts:
    """The prompts and the next click."""
    points = np.zeros((*known.shape, 1, 2), np.float32)
    labels = np.full((*known.shape, 1), ABSENT, np.int32)
    for i in zip(*np.nonzero(known), strict=True):
        points[i][0], labels[i][0] = measure.next_click(answers[i], masks[i])
    return Prompts(
        np.concatenate([prompts.points, points], -2), np.concatenate([prompts.labels, labels], -1)
    )


def _labels(known: np.ndarray, *labels: int) -> np.ndarray:
    return np.broadcast_to(np.array(labels, np.int32), (*known.shape, len(labels))).copy()
