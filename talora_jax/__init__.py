"""talora_jax: Task-Aware Low-Rank Adaptation of the Segment Anything Model, in JAX.

    model = talora_jax.load("runs/mine")                    # what a run trained
    prediction = model.predict(Image.open("photo.jpg"))     # arrays at the photo's own size
    talora_jax.picture(photo, prediction, model.tasks).save("seen.png")

Names are loaded when first used: importing the package imports neither JAX nor anything else.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# What the package gives, and the module that it is in.
_EXPORTS = {
    "load": "inference.model",
    "TrainedModel": "inference.model",
    "picture": "inference.pictures",
    "load_sam": "weights.build",
    "load_msam": "weights.build",
    "save_adapter": "weights.assemble",
    "MSam": "models.msam",
    "AdapterConfig": "models.adapters",
    "make_task": "tasks",
    "SamPredictor": "inference.prompts",
    "AutomaticMasks": "inference.masks.automatic",
    "name_masks": "inference.masks.named",
    "AdapterFile": "weights.adapter_file",
    "push": "experiments.push",
    "UserError": "errors",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
