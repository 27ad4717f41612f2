"""python -m talora_jax.main --config configs/rooms_tiny.py --workdir /tmp/rooms_tiny

Trains, or evaluates, what a config describes. The same command again resumes; a finished run says
so. Any field can be overridden: --config.batch_size=8 --config.adapter.kind=lora_shared

What a config describes is told beforehand, for any number of devices, and nothing is allocated:

python -m talora_jax.main --mode describe --config configs/nyuv2_vit_l.py --config.mesh.data=8

What was trained predicts on images, from the workdir or from the adapter file it left:

python -m talora_jax.main --mode predict --workdir /tmp/rooms_tiny --images photo.jpg album/
    --out seen
python -m talora_jax.main --mode predict --adapter adapter.safetensors --base sam_vit_b.safetensors
    --images 'album/*.png' --out seen
"""

from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from talora_jax import command_line
from talora_jax import config as config_lib
from talora_jax.errors import UserError, run_command

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, a file in configs/. All its fields: talora_jax/config.py."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run leaves checkpoints, metrics, pictures and the adapter."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "predict", "describe"],
    "train: train (or resume) and evaluate. evaluate: metrics and pictures of the newest "
    "checkpoint in --workdir, with the config it was trained with. predict: files and a picture "
    "of what the finished run in --workdir, or --adapter, sees in --images. describe: the model of "
    "--config (or of the run in --workdir) as tables: parts, shapes, parameters, what trains, and "
    "memory on each device of config.mesh, whether such devices are here or not.",
)
_IMAGES = flags.DEFINE_multi_string(
    "images",
    [],
    "predict: files, folders (with all below them) and quoted globs, as many as you "
    "like after the one flag.",
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "predict: the folder to write to: a PNG per task and image, whose text chunks say "
    "what its values mean, a picture of all tasks per image, and summary.json.",
)
_ADAPTER = flags.DEFINE_string(
    "adapter", None, "predict: an adapter.safetensors, in place of --workdir."
)
_BASE = flags.DEFINE_string(
    "base",
    None,
    "predict: the base that the adapter was trained on, where it is not at the path "
    "that its config names.",
)
_TASKS = flags.DEFINE_list("tasks", None, "predict: which of the tasks; all if not given.")
_NPY = flags.DEFINE_bool(
    "npy", False, "predict: write the arrays, too, unrounded and with class probabilities."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "predict: replace files that exist in --out.")
_FORCE = flags.DEFINE_bool(
    "force", False, "predict: use the adapter on another base than it was trained on."
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    # Orbax and TFDS log every file they touch.
    logging.set_verbosity(logging.WARNING)
    if _MODE.value == "describe":
        return _describe()
    if _MODE.value == "predict":
        return _predict()
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: where should the run leave what it makes?")
    workdir = Path(_WORKDIR.value).expanduser()
    # Imported here: --help and a mistyped flag need not wait for JAX.
    if _MODE.value == "train":
        from talora_jax.training.loop import train

        if _CONFIG.value is None:
            raise UserError("--config is missing: name a file in configs/")
        train(_CONFIG.value, workdir)
    else:
        from talora_jax.training.evaluate import evaluate
        from talora_jax.training.setup import prepare

        evaluate(prepare(config_lib.read(workdir / "config.json")), workdir, print)


def _describe() -> None:
    if _CONFIG.value is None and not _WORKDIR.value:
        raise UserError("--config is missing: name a file in configs/, or --workdir of a run")
    from rich.console import Console

    from talora_jax.experiments.describe import describe

    console = Console(highlight=False, markup=False)
    # Wide enough for the tables where the output is no terminal.
    if not console.is_terminal:
        console.width = 120
    config = _CONFIG.value
    if config is None:
        config = config_lib.read(Path(_WORKDIR.value).expanduser() / "config.json")
    describe(config, console)


def _predict() -> None:
    if bool(_WORKDIR.value) == bool(_ADAPTER.value):
        raise UserError("--mode predict needs --workdir or --adapter, one of them")
    if not _OUT.value:
        raise UserError("--out is missing: where should the predictions go?")
    from talora_jax.inference.model import load
    from talora_jax.inference.to_files import find_images, predict

    out = Path(_OUT.value).expanduser()
    inputs = find_images(_IMAGES.value, out)
    model = load(_WORKDIR.value or _ADAPTER.value, _BASE.value, force=_FORCE.value)
    predict(model, inputs, out, tasks=_TASKS.value, npy=_NPY.value, overwrite=_OVERWRITE.value)


def cli() -> None:
    """`main`, with the command line read."""
    run_command(lambda: app.run(main, flags_parser=lambda a: command_line.parse(a, __doc__)))


if __name__ == "__main__":
    cli()
