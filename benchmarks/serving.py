"""Contenders that use a trained model, of this checkout or of another one."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

_CHANNELS = {"semantic": 13, "depth": 1, "normals": 3}


def make_adapter(path: str) -> tuple[None, dict[str, Any]]:
    """Writes an adapter like those of `rooms_tiny`, which has learnt nothing."""
    import talora_jax

    config = talora_jax.AdapterConfig(ranks=(32, 64, 3), scale=1.0, dropout=0.0)
    model = talora_jax.load_msam("sam_small", config, _CHANNELS, native_aspect=True)
    names = {"semantic": tuple(f"class {i}" for i in range(_CHANNELS["semantic"]))}
    talora_jax.save_adapter(model, path, "sam_small", class_names=names)
    return None, {}


def predict(
    adapter: str,
    images: int,
    size: tuple[int, int],
    probabilities: bool,
    in_batches: bool,
    checkout: str | None = None,
) -> tuple[Callable[[], None], dict[str, Any]]:
    """Predicts on random images, in batches or one by one; what is found is not kept."""
    if checkout:
        sys.path.insert(0, checkout)
    import talora_jax

    # An earlier version may have had other weights under the name of this base.
    model = talora_jax.load(adapter, force=True)
    shape = (images, *size, 3)
    given = list(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    def step() -> None:
        if in_batches:
            for _ in model.predict(iter(given), probabilities=probabilities):
                pass
        else:
            for image in given:
                model.predict(image, probabilities=probabilities)

    return step, {"package": talora_jax.__file__}


def first_prediction(adapter: str) -> tuple[None, dict[str, Any]]:
    """Loads a model and predicts once."""
    import talora_jax

    talora_jax.load(adapter).predict(np.zeros((480, 640, 3), np.uint8))
    return None, {}
