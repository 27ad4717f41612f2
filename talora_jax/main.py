"""python -m talora_jax.main --config configs/rooms_tiny.py --workdir /tmp/rooms_tiny

Trains, or evaluates, what a config describes. The same command again resumes; a finished run says
so. Any field can be overridden: --config.batch_size=8 --config.adapter.kind=lora_shared

What a config describes is told beforehand, for any number of devices, and nothing is allocated:

python -m talora_jax.main --mode describe --config configs/nyuv2.py:vit_l --config.mesh.data=4
python -m talora_jax.main --mode describe --config configs/nyuv2.py:vit_l --device a100-40

A run goes on to more steps, with the learning rate of a run that had as many from the start, where
they are given explicitly: the same command with --config.steps=2000. It is evaluated again on its
own data, or on other data:

python -m talora_jax.main --mode evaluate --workdir /tmp/rooms_tiny
python -m talora_jax.main --mode evaluate --workdir /tmp/mine --config.data.path=OTHER \\
    --split all --out found

What was trained predicts on images, from the workdir or from the adapter file it left:

python -m talora_jax.main --mode predict --workdir /tmp/rooms_tiny --images photo.jpg album/ \\
    --out seen
python -m talora_jax.main --mode predict --adapter adapter.safetensors \\
    --base sam_vit_b.safetensors --images 'album/*.png' --out seen
"""

import argparse
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections
from absl import logging

from talora_jax import config as config_lib
from talora_jax import config_checks, storage
from talora_jax.command_line import fields_of, override, parse
from talora_jax.compiled import keep_programs
from talora_jax.errors import ArgumentParser, UserError, run_command
from talora_jax.experiments import accelerators
from talora_jax.files import check_folder

Config = ml_collections.ConfigDict | None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--mode",
        choices=_MODES,
        default="train",
        metavar="|".join(_MODES),
        help="train: train (or resume) and evaluate. evaluate: metrics and pictures of the newest "
        "checkpoint in --workdir, with the config it was trained with, or on other data by "
        "--config.data.FIELD=VALUE and --split; or metrics of what a run of "
        "--config starts from. predict: files and a "
        "picture of what the finished run in --workdir, or --adapter, sees in --images. describe: "
        "the model of --config (or of the run in --workdir) as tables: parts, shapes, parameters, "
        "what trains, and memory on each device of config.mesh, whether such devices are here or "
        "not. Default: train.",
    )
    for add_arguments in (_add_config, _add_workdir, *_OF_MODES):
        add_arguments(parser)
    args, config = parse(parser, arguments)
    for add_arguments, modes in _OF_MODES.items():
        if args.mode not in modes:
            _refuse_arguments(args, " or ".join(modes), add_arguments)
    _run(_MODES[args.mode], args, config)


def _refuse_arguments(
    args: argparse.Namespace, modes: str, add_arguments: Callable[[ArgumentParser], None]
) -> None:
    """Refuses the arguments of some modes in another one, where they would do nothing.

    Raises:
      UserError: names the first.
    """
    theirs = ArgumentParser("")
    add_arguments(theirs)
    for name, default in vars(theirs.parse_args([])).items():
        if getattr(args, name) != default:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is for --mode {modes}, and --mode is {args.mode}")


def train(arguments: Sequence[str] | None = None) -> None:
    """talora_jax train --config rooms_tiny --workdir DIR [--config.FIELD=VALUE …]

    Trains what a config describes, and evaluates it. The same command again resumes; a finished run
    says so. Any field can be overridden: --config.batch_size=8 --config.adapter.kind=lora_shared
    A run resumes with other fields that its numbers do not depend on (data.path of the same data,
    log_every, checkpoint_every, mesh, …), and with a larger --config.steps, if given explicitly:
    it goes on with the learning rate of a run that had as many steps from the start.
    """
    _command(train, _train, (_add_config, _add_workdir), arguments)


def evaluate(arguments: Sequence[str] | None = None) -> None:
    """talora_jax evaluate --workdir DIR, or --config CONFIG [--config.FIELD=VALUE …]

    Metrics and pictures of the newest checkpoint of a run, with the config it was trained with; or
    metrics of what a run of a config starts from, such as the base of config.model.weights.

    A run is evaluated on other data by --config.data.FIELD=VALUE and --split; then nothing is
    written but in --out, and the run's own results stay:

      talora_jax evaluate --workdir /tmp/mine --config.data.path=OTHER --split all --out found
    """
    _command(evaluate, _evaluate, (_add_config, _add_workdir, _add_evaluate, _add_out), arguments)


def predict(arguments: Sequence[str] | None = None) -> None:
    """talora_jax predict --workdir DIR --images PATH … --out OUT

    Writes what a finished run, or an adapter file, sees in images: a PNG per task and image, whose
    text chunks say what its values mean, a picture of all tasks per image, and summary.json.
    Processes that --config.hosts.FIELD=VALUE brings together share the images out.

      talora_jax predict --workdir /tmp/rooms_tiny --images photo.jpg album/ --out seen
      talora_jax predict --adapter adapter.safetensors --base sam_vit_b.safetensors \\
          --images 'album/*.png' --out seen
    """
    _command(predict, _predict, (_add_workdir, _add_predict, _add_out), arguments)


def describe(arguments: Sequence[str] | None = None) -> None:
    """talora_jax describe --config nyuv2:vit_l [--config.FIELD=VALUE …], or --workdir DIR

    The model of a config, or of a run, as tables: parts, shapes, parameters, what trains, and
    memory on each device of config.mesh, whether such devices are here or not. With --device, also
    whether a training step fits such a device, and if not, what takes less:

      talora_jax describe --config nyuv2:vit_l --device a100-40 --config.accumulate=4
    """
    _command(describe, _describe, (_add_config, _add_workdir, _add_describe), arguments)


def _command(
    command: Callable,
    work: Callable[[argparse.Namespace, Config], None],
    add: Sequence[Callable[[ArgumentParser], None]],
    arguments: Sequence[str] | None,
) -> None:
    """A command that is one mode: its docstring is its help."""
    parser = ArgumentParser(inspect.getdoc(command))
    for add_arguments in add:
        add_arguments(parser)
    args, config = parse(parser, arguments)
    _run(work, args, config)


def _run(
    work: Callable[[argparse.Namespace, Config], None], args: argparse.Namespace, config: Config
) -> None:
    # `_evaluate` changes the config of a workdir, and `_predict` takes hosts.
    if config is None and args.overrides and work is not _evaluate:
        hosts = work is _predict and all(f.startswith("hosts.") for f in fields_of(args.overrides))
        if not hosts:
            raise UserError(f"{args.overrides[0]!r} changes a field of --config, which is missing")
    # Orbax and TFDS log every file they touch.
    logging.set_verbosity(logging.WARNING)
    keep_programs()
    work(args, config)


def _add_config(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="CONFIG",
        help="the experiment, a file in configs/ or its name; all its fields: talora_jax/config.py",
    )


def _add_workdir(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="where the run leaves checkpoints, metrics, pictures and the adapter; may be gs://…",
    )


def _add_evaluate(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        default="val",
        help="evaluate: val, train, or all for every sample of the data. Default: val",
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="evaluate: what is best by config.best so far, in place of the newest checkpoint",
    )


def _add_out(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        metavar="OUT",
        help="the folder to write to. predict: a PNG per task and image, whose text chunks say "
        "what its values mean, a picture of all tasks per image (of a video only these, as a "
        "video), and summary.json. evaluate: metrics.json, per_class.csv, confusion.csv and .png, "
        "pictures",
    )


def _add_describe(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=tuple(accelerators.ACCELERATORS),
        metavar="|".join(accelerators.ACCELERATORS),
        help="describe: whether a step fits such a device, which need not be here, on config.mesh "
        "(-1 is one); compiling it takes minutes",
    )


def _add_predict(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--images", nargs="+", action="extend", default=[], metavar="PATH",
        help="predict: files, folders (with all images below them), quoted globs; videos are named "
        "as files are")  # fmt: skip
    add("--adapter", metavar="FILE",
        help="predict: an adapter.safetensors, in place of --workdir")  # fmt: skip
    add("--base", metavar="FILE",
        help="predict: the base that the adapter was trained on, where it is not at the path that "
        "its config names")  # fmt: skip
    add("--tasks", type=lambda text: text.split(","), metavar="TASK,TASK,…",
        help="predict: which of the tasks; all if not given")  # fmt: skip
    add("--npy", action="store_true",
        help="predict: write the arrays, too, unrounded and with class probabilities")  # fmt: skip
    add("--batch-size", type=int, metavar="N",
        help="predict: images computed together at most; as many as memory and device make worth "
        "while if not given")  # fmt: skip
    add("--overwrite", action="store_true",
        help="predict: replace files that exist in --out")  # fmt: skip
    add("--force", action="store_true",
        help="predict: use the adapter on another base than it was trained on")  # fmt: skip


def _train(args: argparse.Namespace, config: Config) -> None:
    workdir = _workdir(args)
    if config is None:
        raise UserError("--config is missing: name a file in configs/")
    # Imported here, as below: --help and a mistyped flag need not wait for JAX.
    from talora_jax.training.loop import train

    # A run gets more steps where they are asked for, not where a config file has more by default.
    train(config, workdir, more_steps="steps" in fields_of(args.overrides))


def _evaluate(args: argparse.Namespace, config: Config) -> None:
    if config is None and args.workdir is None:
        raise UserError(
            "evaluate needs --workdir of a run, or --config for what a run of it starts from"
        )
    if args.workdir is None:
        if args.best:
            raise UserError("--best is of a run: give its --workdir")
        from talora_jax.training.evaluate_run import evaluate_start

        evaluate_start(config, args.split, print, args.out)
        return
    workdir = _workdir(args)
    own = config_lib.read(workdir / "config.json")
    if config is None:
        config = config_lib.read(workdir / "config.json")
        # Those that the run was trained on are not here again.
        config.hosts.update(config_lib.default().hosts.to_dict())
        config = override(config, args.overrides)
    from talora_jax.training.evaluate_run import evaluate_run

    evaluate_run(workdir, own, config, args.split, print, best=args.best, out=args.out)


def _workdir(args: argparse.Namespace) -> Path:
    if not args.workdir:
        raise UserError("--workdir is missing: where should the run leave what it makes?")
    return storage.place(args.workdir)


def _predict(args: argparse.Namespace, config: Config) -> None:
    if config is not None:
        raise UserError("predict takes the config that the run was trained with, and no --config")
    if bool(args.workdir) == bool(args.adapter):
        raise UserError("predict needs --workdir or --adapter, one of them")
    if not args.out:
        raise UserError("--out is missing: where should the predictions go?")
    out = storage.local(args.out)
    check_folder("--out", out)  # before a model is loaded
    from talora_jax import hosts
    from talora_jax.inference.model import load
    from talora_jax.inference.to_files import find_images, predict

    how = {"npy": args.npy, "overwrite": args.overwrite, "batch_size": args.batch_size}
    with hosts.joined(override(config_lib.default(), args.overrides).hosts):
        inputs = find_images(args.images, out)
        model = load(args.workdir or args.adapter, args.base, force=args.force)
        predict(model, inputs, out, tasks=args.tasks, **how)


def _describe(args: argparse.Namespace, config: Config) -> None:
    if (config is None) == (not args.workdir):
        raise UserError(
            "describe needs --config, a file in configs/, or --workdir of a run: one of them"
        )
    if config is None:
        config = config_lib.read(_workdir(args) / "config.json")
    if args.device is not None:
        accelerators.prepare_for(args.device, accelerators.devices_of(config.mesh))
    if args.workdir:
        config = config_checks.forget_unread(config, config)
        config.init = None  # it has begun
    from rich.console import Console

    from talora_jax.experiments.describe import describe

    console = Console(highlight=False, markup=False)
    # Wide enough for the tables where the output is no terminal.
    if not console.is_terminal:
        console.width = 120
    describe(config, console, args.device)


_MODES = {"train": _train, "evaluate": _evaluate, "predict": _predict, "describe": _describe}
# Arguments that do nothing in other modes.
_OF_MODES = {
    _add_evaluate: ("evaluate",),
    _add_predict: ("predict",),
    _add_describe: ("describe",),
    _add_out: ("evaluate", "predict"),
}


if __name__ == "__main__":
    run_command(main)
