"""What the page asks of models: maps of an image, the mask of a click or a box, all masks.

Images are held a while, a few of them, so that clicks need not send theirs again. One question is
answered at a time.
"""

import base64
import collections
import dataclasses
import functools
import io
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from talora_jax.errors import UserError, one_line, short
from talora_jax.inference.masks.automatic import AutomaticMasks, check_number
from talora_jax.inference.masks.named import name_masks, numbered
from talora_jax.inference.model import TrainedModel, load
from talora_jax.inference.prompts import SamPredictor
from talora_jax.models.prompt_encoder import ABSENT
from talora_jax.models.sam import Sam
from talora_jax.rgb import as_rgb
from talora_jax.tasks import Semantic, Task, palette
from talora_jax.tasks.legends import Bar, Key, Legend, Swatches
from talora_jax.tasks.png import Png
from talora_jax.weights.adapter_file import AdapterFile, find

# Pixels of an image: more are refused, unread; a longer side than this is made shorter.
MOST_PIXELS = 50_000_000
LONGEST_SIDE = 1280
# Images that are held; the oldest goes first.
HELD = 8
# Shapes that programs are compiled for before anybody asks: cameras', upright ones, square.
COMMON_SHAPES = ((480, 640), (640, 480), (360, 640), (640, 640))
# The grid of *Everything*, and how stable masks must be; how well they must fit the page asks.
_POINTS_PER_SIDE, _STABILITY = 16, 0.5
# What the page calls a bound, and AutomaticMasks.
_IOU = "expected IoU (pred_iou_thresh)"
# Points of one question; up to the first of these, beside a box, they share a program.
_ONE_PROGRAM, _MOST_POINTS = 14, 64
# What browsers send, and cameras. Other readers of Pillow's start programs of other people.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


@dataclasses.dataclass
class Held:
    """An image, and what models have seen in it by their number."""

    image: UInt8[np.ndarray, "H W 3"]
    predictions: dict[int, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)


class NotThere(UserError):
    """What is asked for is not there, or not any more."""


class Answers:
    """Trained models, and the images that they are asked about."""

    def __init__(self, sources: Sequence[Path], base: str | None = None):
        """Loads the models.

        Raises:
          UserError: as of `talora_jax.load`.
        """
        self._models: list[TrainedModel] = []
        for source in sources:
            self._models.append(self._load(source, base))
        self._names = [source.expanduser().resolve().name for source in sources]
        # Adapters of one base share what asks it, and which image that has embedded.
        self._prompted: dict[str, _Prompted | UserError] = {}
        self._embedded: dict[str, str] = {}
        self._held: collections.OrderedDict[str, Held] = collections.OrderedDict()
        self._lock = threading.Lock()

    def _load(self, source: Path, base: str | None) -> TrainedModel:
        """A model; it shares its base with one that is there, if both have the same."""
        fingerprint = AdapterFile.read(find(source)).base_fingerprint
        for model in self._models:
            if model.file.base_fingerprint == fingerprint:
                return model.with_adapter(source)
        return load(source, base)

    def warm_up(self, shape: tuple[int, int]) -> None:
        """Compiles what an image of this shape needs."""
        key = self.hold(np.zeros((*shape, 3), np.uint8))["id"]
        for number, model in enumerate(self._models):
            self.maps(key, number)
            if self._answers_prompts(model):
                for points in ([[1, 1]], [[1, 1]] * 2):
                    self.mask(key, number, {"points": points, "labels": [1] * len(points)})
        with self._lock:
            self._held.pop(key, None)

    def models(self) -> list[dict[str, Any]]:
        """What there is to choose from."""
        return [
            {
                "name": name,
                "tasks": [task.name for task in model.tasks],
                "promptable": self._answers_prompts(model),
                "names": any(isinstance(task, Semantic) for task in model.tasks),
            }
            for name, model in zip(self._names, self._models, strict=True)
        ]

    def receive(self, content: bytes) -> dict[str, Any]:
        """Holds an encoded image.

        Raises:
          UserError: it is none, or too large.
        """
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise UserError(
                        f"an image of {width}×{height} pixels; expected at most "
                        f"{MOST_PIXELS / 1e6:.0f} megapixels"
                    )
                rgb = as_rgb(image)
        except UnidentifiedImageError:
            raise UserError(
                "what was sent is not an image that can be read; expected JPEG, PNG or another"
            ) from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"the image cannot be read: {one_line(error)}") from None
        scale = LONGEST_SIDE / max(rgb.shape[:2])
        if scale < 1:
            size = tuple(max(1, round(side * scale)) for side in (rgb.shape[1], rgb.shape[0]))
            rgb = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))
        return self.hold(rgb)

    def hold(self, image: UInt8[np.ndarray, "H W 3"]) -> dict[str, Any]:
        """Holds an image; its id, width and height."""
        key = secrets.token_urlsafe(12)
        with self._lock:
            self._held[key] = Held(image)
            while len(self._held) > HELD:
                self._held.popitem(last=False)
        return {"id": key, "width": image.shape[1], "height": image.shape[0]}

    def image(self, key: str) -> bytes:
        """The image as a PNG.

        Raises:
          NotThere: it is not held.
        """
        return Png(self._of(key).image).encode()

    def maps(self, key: str, number: int) -> list[dict[str, Any]]:
        """Of every task its picture, its legend and how its values are to be read.

        Raises:
          NotThere: there is no such image or model.
          UserError: the model cannot take an image of this shape.
        """
        model, prediction = self._predicted(key, number)
        return [
            {
                "name": task.name,
                "legend": _legend(task.legend(prediction[task.name])),
                "classes": list(getattr(task, "class_names", ())),
                "channels": 1 if (x := prediction[task.name]).ndim == 2 else x.shape[2],
                "dtype": _values(x).dtype.name,
            }
            for task in model.tasks
        ]

    def picture(self, key: str, number: int, task: str) -> bytes:
        """A task's map in colour, as a PNG.

        Raises:
          NotThere: there is no such image, model or task.
        """
        found, prediction = self._task(key, number, task)
        return Png(found.show(prediction[task])).encode()

    def values(self, key: str, number: int, task: str) -> bytes:
        """A task's map, row by row, in little-endian of the dtype that `maps` names.

        Raises:
          NotThere: there is no such image, model or task.
        """
        return _values(self._task(key, number, task)[1][task]).tobytes()

    def mask(self, key: str, number: int, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The mask of clicks, or of a box, or of both.

        Args:
          asked: `points` [n, 2] with `labels` [n], 1 on the object and 0 off it; `box` [4].

        Raises:
          NotThere: there is no such image or model.
          UserError: nothing is asked, or something else; or the base answers no prompts.
        """
        points, labels, box = (asked.get(name) or [] for name in ("points", "labels", "box"))
        if not all(isinstance(x, list) for x in (points, labels, box)) or not (points or box):
            raise UserError(f"a prompt of {short(dict(asked), 80)}; expected points or a box")
        if len(points) > _MOST_POINTS:
            raise UserError(f"{len(points)} points; expected at most {_MOST_POINTS}")
        if len(points) != len(labels):
            raise UserError(f"{len(labels)} labels for {len(points)} points; expected one for each")
        several = len(points) + 2 * bool(box) > 1
        if points:
            absent = max(_ONE_PROGRAM - len(points), 0)
            points, labels = points + [[0, 0]] * absent, labels + [ABSENT] * absent
        held, model = self._of(key), self._model(number)
        with self._lock:
            predictor = self._embed(key, held, model)
            prompts = {}
            if points:
                prompts |= {"points": [points], "labels": [labels]}
            if box:
                prompts |= {"boxes": [box]}
            # What several prompts mean is plain, and the single mask is made for that.
            found = predictor.predict(**prompts, multimask=not several)
        best = int(found.iou[0].argmax())
        mask = found.masks()[0, best]
        return {
            "iou": float(found.iou[0, best]),
            "area": int(mask.sum()),
            "numbers": _base64(mask.astype("<u2")),
        }

    def everything(self, key: str, number: int, asked: Mapping[str, Any]) -> dict[str, Any]:
        """All masks of an image, named where the model has classes.

        Args:
          asked: `expected_iou`, below which masks are left out.

        Raises:
          NotThere: there is no such image or model.
          UserError: the base answers no prompts, or `expected_iou` is no number from 0 to 1.
        """
        held, model = self._of(key), self._model(number)
        least = check_number(_IOU, asked.get("expected_iou", 0.5), 0, 1)
        with self._lock:
            # All of them: how sure is sure enough changes no program. A mask takes no better one
            # away with it, so that it may go afterwards as well.
            found = self._prompts(model).masks.generate(held.image)
            found = [mask for mask in found if mask.predicted_iou > least or not least]
            names = [{} for _ in found]
            if any(isinstance(task, Semantic) for task in model.tasks):
                names = [
                    {"name": mask.name, "probability": mask.probability, "depth": mask.depth}
                    for mask in name_masks(found, model.predict(held.image), model.tasks)
                ]
        return {
            "numbers": _base64(numbered(found, held.image.shape[:2]).astype("<u2")),
            "colours": [_hex(colour) for colour in palette(len(found))],
            "masks": [{"area": mask.area, **name} for mask, name in zip(found, names, strict=True)],
        }

    def _of(self, key: str) -> Held:
        with self._lock:
            if key not in self._held:
                raise NotThere("this image is not held any more: send it again")
            return self._held[key]

    def _model(self, number: int) -> TrainedModel:
        if type(number) is not int or not 0 <= number < len(self._models):
            raise NotThere(
                f"there is no model {short(number, 40)}; expected 0 to {len(self._models) - 1}"
            )
        return self._models[number]

    def _predicted(self, key: str, number: int) -> tuple[TrainedModel, dict[str, np.ndarray]]:
        held, model = self._of(key), self._model(number)
        with self._lock:
            if number not in held.predictions:
                held.predictions[number] = model.predict(held.image, probabilities=False)
        return model, held.predictions[number]

    def _task(self, key: str, number: int, name: str) -> tuple[Task, dict[str, np.ndarray]]:
        model, prediction = self._predicted(key, number)
        for task in model.tasks:
            if task.name == name:
                return task, prediction
        raise NotThere(f"this model has no task {short(name, 40)}")

    def _prompts(self, model: TrainedModel) -> "_Prompted":
        """What asks the model's base.

        Raises:
          UserError: the base answers no prompts, and why.
        """
        base = model.file.base_fingerprint
        if base not in self._prompted:
            try:
                self._prompted[base] = _Prompted(model.promptable())
            except UserError as error:
                self._prompted[base] = error
        found = self._prompted[base]
        if isinstance(found, UserError):
            raise found
        return found

    def _answers_prompts(self, model: TrainedModel) -> bool:
        try:
            return bool(self._prompts(model))
        except UserError:
            return False

    def _embed(self, key: str, held: Held, model: TrainedModel) -> SamPredictor:
        predictor, base = self._prompts(model).predictor, model.file.base_fingerprint
        if self._embedded.get(base) != key:
            predictor.set_image(held.image)
            self._embedded[base] = key
        return predictor


class _Prompted:
    """A SAM that is asked by clicks and boxes, and for everything; programs are compiled once."""

    def __init__(self, sam: Sam):
        self._sam, self.predictor = sam, SamPredictor(sam)

    @functools.cached_property
    def masks(self) -> AutomaticMasks:
        return AutomaticMasks(
            self._sam,
            points_per_side=_POINTS_PER_SIDE,
            pred_iou_thresh=0,
            stability_score_thresh=_STABILITY,
        )


def _values(
    output: Shaped[np.ndarray, "H W *C"],
) -> Float[np.ndarray, "H W *C"] | Int[np.ndarray, "H W"]:
    """An output in a dtype that JavaScript has."""
    return output.astype("<i4" if output.dtype.kind in "iub" else "<f4")


def _legend(legend: Legend) -> dict[str, Any]:
    match legend:
        case Swatches():
            rows = zip(legend.entries, legend.colours, strict=True)
            return {"swatches": [[entry, _hex(colour)] for entry, colour in rows]}
        case Bar():
            stops = legend.colours[np.linspace(0, len(legend.colours) - 1, 12).astype(int)]
            return {
                "bar": [_hex(colour) for colour in stops],
                "low": float(legend.low),
                "high": float(legend.high),
                "unit": legend.unit,
            }
        case Key():
            picture = Png(legend.picture).encode()
            return {"picture": _base64(picture), "lines": list(legend.lines)}


def _hex(colour: Shaped[np.ndarray, "3"]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*map(int, colour))


def _base64(content: bytes | np.ndarray) -> str:
    return base64.b64encode(content if isinstance(content, bytes) else content.tobytes()).decode()
