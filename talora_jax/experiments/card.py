"""The card of an adapter or a base on the Hugging Face Hub, made from what its header tells."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from talora_jax.errors import listed, printable
from talora_jax.weights import hub
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.base_file import SHIPPED, Description

_OURS = "[talora_jax](https://arxiv.org/abs/2403.10971)"


def of_adapter(
    file: AdapterFile,
    name: str,
    metrics: Mapping[str, float],
    *,
    picture: str | None = None,
    license: str | None = None,
) -> str:
    """The card of an adapter, in Markdown.

    Args:
      name: of the repository.
      metrics: of the validation split, by `<task>/<metric>`.
      picture: a file in the repository.
      license: the Hub's word for it.
    """
    weights = file.weights
    known = weights in SHIPPED or hub.is_name(weights)
    # Where a base lies with whoever pushed, it lies with nobody else.
    base = "" if known or not weights else f", base={json.dumps(Path(weights).name)}"
    adapter, data = file.adapter, file.config.get("data")
    front = {
        "library_name": "talora_jax",
        "pipeline_tag": "depth-estimation" if file.tasks == ("depth",) else "image-segmentation",
        "tags": ["segment-anything", adapter["kind"], *file.tasks],
        "base_model": weights.partition("@")[0] if hub.is_name(weights) else None,
        "metrics": sorted({metric.partition("/")[2] for metric in metrics}),
        "license": license,
    }
    about = {
        "adapter": f"{adapter['kind']}, ranks {adapter['ranks']}, scale {adapter['scale']}",
        "base": f"{file.base}{f', {weights}' if known else ''}",
        "the base's fingerprint": file.base_fingerprint,
    }
    if isinstance(data, dict) and "name" in data and "steps" in file.config:
        about["trained"] = f"{file.config['steps']} steps on {data['name']}"
    classes = {task: listed(file.class_names.get(task, ())) for task in file.tasks}
    tasks = [(task, channels, classes[task]) for task, channels in file.channels.items()]
    use = f'model = talora_jax.load("{name}"{base})\nprediction = model.predict("photo.jpg")'
    return _card(
        front,
        name,
        f"An adapter on a frozen Segment Anything Model, trained with {_OURS}.",
        picture,
        use,
        {
            "Tasks": _table(("task", "channels", "classes"), tasks),
            "Validation": _validation(metrics),
            "Made of": _table(("what", "which"), about.items()),
        },
    )


def of_base(
    description: Description,
    name: str,
    fingerprint: str,
    metrics: Mapping[str, float],
    *,
    picture: str | None = None,
    license: str | None = None,
) -> str:
    """The card of a base, in Markdown.

    Args:
      name: of the repository.
      fingerprint: SHA-256 of its tensors.
      metrics, picture, license: as of an adapter.
    """
    tasks = description.tasks
    front = {
        "library_name": "talora_jax",
        "pipeline_tag": "mask-generation" if tasks is None else "image-segmentation",
        "tags": ["segment-anything", *(tasks or ())],
        "license": license,
    }
    about = {
        "sizes": description.config.in_words(),
        "images": "padded to whole patches" if description.native_aspect else "padded to a square",
        "mask decoders": "for prompts" if tasks is None else listed(tasks),
        "SHA-256 of the tensors": fingerprint,
        **{key: str(value) for key, value in description.source.items()},
    }
    use = (
        f'predictor = talora_jax.SamPredictor(talora_jax.load_sam("{name}"))\n'
        'predictor.set_image("photo.jpg")\n'
        "masks = predictor.predict(points=[[[320, 200]]], labels=[[1]]).masks()"
    )
    if tasks is not None:
        channels = ", ".join(f"{json.dumps(task)}: …" for task in tasks)
        use = (
            "adapter = talora_jax.AdapterConfig()\n"
            f'model = talora_jax.load_msam("{name}", adapter, {{{channels}}})'
        )
    return _card(
        front,
        name,
        f"A Segment Anything Model in the form of {_OURS}.",
        picture,
        use,
        {
            "Validation": _validation(metrics),
            "Made of": _table(("what", "which"), about.items()),
        },
    )


def _card(
    front: Mapping[str, Any],
    name: str,
    summary: str,
    picture: str | None,
    use: str,
    sections: Mapping[str, str],
) -> str:
    """What the Hub reads, then what people read; what is empty is left out."""
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items() if value)]
    lines += ["---", "", f"# {name}", "", summary, ""]
    if picture:
        lines += [f"![image, truth and prediction]({picture})", ""]
    lines += ["```python", "import talora_jax", "", use, "```", ""]
    for title, section in sections.items():
        if section:
            lines += [f"## {title}", "", section, ""]
    return "\n".join(lines)


def _validation(metrics: Mapping[str, float]) -> str:
    return _table(("metric", "value"), [(metric, f"{x:.4g}") for metric, x in metrics.items()])


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    rows = [" | ".join(map(_cell, row)) for row in rows]
    if not rows:
        return ""
    return "\n".join(
        f"| {row} |" for row in (" | ".join(head), " | ".join(["---"] * len(head)), *rows)
    )


def _cell(value: object) -> str:
    """A name from a file as text: it makes neither columns nor HTML."""
    return html.escape(printable(value, 400), quote=False).replace("|", "\\|")
