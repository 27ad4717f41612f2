"""Fixtures that several test files share."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from talora_jax.base import build
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.geometry import Geometry
from talora_jax.models.msam import MSam
from weights_convert.official import from_official

GOLDEN = Path(__file__).parent / "goldens" / "mtsam_tiny.npz"
KINDS = {"semantic": "semantic", "depth": "depth", "normal": "normals"}


@dataclasses.dataclass(frozen=True)
class Golden:
    """Numbers of the official PyTorch code at a tiny size, and the model built from its weights."""

    arrays: dict[str, np.ndarray]
    config: dict
    model: MSam
    tasks: tuple[str, ...]

    def geometry(self) -> Geometry:
        c = self.config
        return Geometry(tuple(c["original_hw"]), tuple(c["resized_hw"]), c["img_size"])

    def squares(self):
        """The official input: resized images in [0, 1], here padded to the square."""
        c = self.config
        height, width = c["resized_hw"]
        images = self.arrays["input/image_resized"].transpose(0, 2, 3, 1)
        pad = ((0, 0), (0, c["img_size"] - height), (0, c["img_size"] - width), (0, 0))
        return jnp.asarray(np.pad(images, pad))

    def state_dict(self) -> dict[str, np.ndarray]:
        return under(self.arrays, "state_dict/")

    def ours(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Official tensors (values, gradients, …) by our names. What is not there counts as zero."""
        zeros = {k: np.zeros_like(v) for k, v in self.state_dict().items()}
        return from_official(zeros | tensors, self.tasks)[0]


def under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


@pytest.fixture(scope="session")
def golden() -> Golden:
    with np.load(GOLDEN) as file:
        arrays = dict(file)
    config = json.loads(str(arrays.pop("config")))
    tasks = tuple(KINDS[kind] for kind in config["kinds"])
    base, architecture = from_official(under(arrays, "state_dict/"), tasks)
    sam = architecture.sam
    heads = config["decoder_heads"]
    sam = dataclasses.replace(sam, decoder=dataclasses.replace(sam.decoder, heads=heads))
    adapter = AdapterConfig("talora", tuple(config["ranks"]), config["scaling"], config["dropout"])
    channels = dict(zip(tasks, config["channels"], strict=True))
    model = build(
        lambda: MSam(sam, adapter, channels, pixel_normalisation=False, rngs=nnx.Rngs(0)), base
    )
    return Golden(arrays, config, model, tasks)
