"""Finds a SAM's weights in what training loops save, and takes the prefixes of wrappers off.

What is saved is a dict of dicts: the weights under `state_dict`, `model`, `ema` or any other word,
beside an optimizer, counters and settings. Where one of the dicts has an image encoder in it, that
is the SAM; where several have, none is guessed.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from talora_jax.errors import UserError, listed, printable

# The modules of a SAM: the encoder under its two names, then the others.
_ENCODERS = ("image_encoder", "vision_encoder")
_PARTS = (*_ENCODERS, "prompt_encoder", "mask_decoder", "shared_image_embedding")
_ENCODER = re.compile(rf"(?:^|\.)(?:{'|'.join(_ENCODERS)})\.")
_PREFIX = re.compile(rf"^((?:.*?\.)??)(?:{'|'.join(_PARTS)})\.")
# Modules that PyTorch puts around others, which then have this before their own names.
_WRAPPER = re.compile(
    r"(?<=\.)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_MAX_DEPTH = 4


def weights_in(
    saved: Any, is_tensor: Callable[[Any], bool], key: str | None, name: str
) -> tuple[dict[str, Any], list[str]]:
    """The tensors of the one SAM that was saved, by name, and what is to be told about it.

    Args:
      saved: what the file holds.
      is_tensor: whether a value is a tensor.
      key: which of several dicts, by the keys that lead to it with dots between them.
      name: of the file, for messages.

    Raises:
      UserError: there is no dict of tensors, or there are several and none is named.
    """
    found = list(_dicts(saved, is_tensor)) if isinstance(saved, Mapping) else []
    sams = [(place, state) for place, state in found if any(map(_ENCODER.search, state))]
    chosen = sams or found
    if key is not None:
        chosen = [(place, state) for place, state in found if ".".join(place) == key]
    if len(chosen) == 1:
        place, state = chosen[0]
        return state, _notes(saved, place, state)
    if found:
        places = listed(".".join(place) or "its top" for place, _ in found)
        if key is not None:
            raise UserError(f"{name} has no weights under {key}; it has some under {places}")
        raise UserError(
            f"{name} holds several sets of weights, under {places}: name one with --key=KEY"
        )
    if isinstance(saved, Mapping):
        keys = listed(map(str, saved))
        held = f"no tensor under {keys}" if keys else "nothing"
    else:
        held = type(saved).__name__
    raise UserError(f"{name} holds no state dict: expected tensors by name, found {held}")


def prefix_of(names: Iterable[str], name: str) -> str:
    """What stands before the modules of the one SAM in these names: `module.sam.`, or nothing.

    Raises:
      UserError: there are several SAMs.
    """
    names = [n for n in names if _ENCODER.search(n)] or list(names)
    prefixes = sorted({match[1] for match in map(_PREFIX.match, names) if match})
    if len(prefixes) > 1:
        raise UserError(
            f"{name} holds several models, under {listed(p or 'no prefix' for p in prefixes)}: "
            "save the one to convert by itself"
        )
    return prefixes[0] if prefixes else ""


def unwrapped(name: str) -> str:
    """The name of a tensor without the wrappers of modules in it, as `torch.compile` of an encoder
    alone leaves them."""
    return _WRAPPER.sub("", name)


def _dicts(
    saved: Mapping, is_tensor: Callable[[Any], bool], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every dict of tensors by name, with the keys that lead to it."""
    tensors = {k: x for k, x in saved.items() if isinstance(k, str) and is_tensor(x)}
    inside = {k: x for k, x in saved.items() if isinstance(k, str) and isinstance(x, Mapping)}
    parts = {k: x for k, x in inside.items() if k in _PARTS}
    if parts.keys() & set(_ENCODERS) and len(parts) > 1:
        # Saved module by module.
        for part, state in parts.items():
            tensors |= {f"{part}.{k}": x for k, x in state.items() if is_tensor(x)}
        inside = {k: x for k, x in inside.items() if k not in parts}
    if tensors:
        yield place, tensors
    if len(place) < _MAX_DEPTH:
        for k, x in inside.items():
            yield from _dicts(x, is_tensor, (*place, k))


def _notes(saved: Mapping, place: tuple[str, ...], state: Mapping) -> list[str]:
    """What was taken, and what stood beside it and was left."""
    notes = []
    inner = saved
    for step in place:
        inner = inner[step]
    if place:
        beside = listed(str(k) for k in saved if k != place[0])
        notes.append(
            f"took what is under {printable('.'.join(place))}"
            + (f", and left {beside}" if beside else "")
        )
    others = [str(k) for k in inner if k not in state and k not in _PARTS]
    if others:
        notes.append(f"left {listed(others)}: no tensors")
    return notes
