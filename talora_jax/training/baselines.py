"""What answers score that never look at an image: measured once for the same data and tasks.

It takes every training image, and the runs of a sweep differ in nothing that it depends on. So
commands keep it beside their programs (see `talora_jax.compiled`), in `baselines`, a small file
each. Its name is a digest of all that the numbers may depend on, this package's code among it: a
file that is found is of the same data, tasks and code, or it would not be found. Its first line is
a digest of the rest, which is JSON: a file that was damaged is none.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax

from talora_jax import compiled, hosts
from talora_jax import config as config_lib
from talora_jax.errors import UserError
from talora_jax.files import write_atomically
from talora_jax.training import agreement
from talora_jax.training.code import digest_of
from talora_jax.training.setup import Run, sizes

# Fields that no answer depends on which was never trained.
_OF_TRAINING = (
    *config_lib.PLACE,
    "config.seed",
    "config.init",
    "config.augment.",
    "config.adapter.",
    "config.optimizer.",
    "config.weighting.",
    "config.class_weights.",
    "config.orthogonal_",
    "config.batch_size",
    "config.accumulate",
    "config.steps",
    "config.best",
    "config.patience",
)


def measured(
    run: Run, measure: Callable[[Run], dict[str, float]], tell: Callable[[str], None]
) -> dict[str, float]:
    """What `measure` finds of a run; what is kept of the same is not measured again.

    All processes call this, and process 0 says what is kept.

    Args:
      measure: of `Job.baselines`.
      tell: is given a line, if it takes time.
    """
    path = _place(run)
    values = hosts.gathered(_kept(path))[0]
    if values is None:
        tell("measuring what answers score that never look at an image")
        values = measure(run)
        if path and jax.process_index() == 0:
            # A home that is full or read-only: to measure again is no failure.
            with contextlib.suppress(OSError, UserError):
                path.parent.mkdir(exist_ok=True)
                content = json.dumps(values).encode()
                write_atomically(path, _digest(content) + b"\n" + content)
    return values


def _place(run: Run) -> Path | None:
    """Where a run's baselines are kept; None where they are not, or may be another's."""
    folder = compiled.kept_in()
    ours = all(type(task).__module__.startswith("talora_jax.") for task in run.tasks)
    if folder is None or not run.dataset.contents or not ours:
        return None
    fields = config_lib.flat_fields(config_lib.plain(run.config))
    about = {
        "code": digest_of(),
        "jax": jax.__version__,
        "platform": jax.default_backend(),
        "fields": {k: x for k, x in fields.items() if not k.startswith(_OF_TRAINING)},
        "tasks": [repr(task) for task in run.tasks],
        "image_size": run.dataset.image_size,
        # A base at the same path may be another; masks for prompts are of its image size.
        "sizes": sizes(run.config).fields(),
        **agreement.of_data(run.dataset),
    }
    name = _digest(json.dumps(about, sort_keys=True).encode()).decode()
    return folder / "baselines" / name


def _kept(path: Path | None) -> dict[str, float] | None:
    if path is None:
        return None
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:  # there is none
        return None
    return json.loads(content) if digest == _digest(content) else None


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
