"""The train step compiled for TPUs that need not be here: memory, communication, compile time.

XLA compiles ahead of time for a topology given by name, such as v5e:2x4 (eight chips), and tells
what the program needs. It is the project's own step: forward, losses, backward, Adam, in bfloat16
with frozen weights in bfloat16, laid over the mesh as in training. Nothing is computed.

    python -m benchmarks.tpu --topology v5e:2x4 --config configs/nyuv2.py:vit_l
    python -m benchmarks.tpu --topology v5e:8x8 v6e:8x8 v5p:4x4x4 --size vit_h --tasks 5
    python -m benchmarks.tpu --topology v5e:4x4 --slices 2              two slices of 16 chips
    python -m benchmarks.tpu --topology v5e:1x1 --size vit_b vit_h      compile times compared
    python -m benchmarks.tpu --topology cpu:8 --size tiny               without libtpu

A size takes minutes to compile: ViT-L for v5e:8x8 takes a processor four, most of them for machine
code. Several slices are joined by the data centre's network; `data` runs over them. What XLA tells
of a step's cost counts the body of a loop once, so operations and collectives are counted here,
with every turn. Any field of the config can be changed as in training: --config.model.remat=dots
"""

import argparse
import dataclasses
import math
import re
import statistics
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_collections
from rich.table import Table

from benchmarks import arguments, report
from talora_jax.command_line import parse
from talora_jax.errors import UserError, one_line, run_command, short
from talora_jax.experiments import accelerators


@dataclasses.dataclass
class Measured:
    """What the step of one size takes. Bytes are of one chip, but for those of the parameters.

    Attributes:
      chips, batch: how many chips, and images of a step over all of them.
      trainable: parameters in float32.
      frozen: the other parameters, as stored.
      arguments: state, frozen parameters and batch; what the step returns takes their place.
      temporaries: what else is alive at the worst moment.
      peak: arguments, results that take nobody's place, and temporaries.
      program: the machine code.
      flops: of the matrix products and convolutions, over all chips.
      collectives: by kind, {"bytes", "calls"} of one step on one chip.
      reduced_ratio: all-reduced bytes ÷ `trainable`.
      trace_seconds, lower_seconds, compile_seconds: one entry per repeat.
    """

    chips: int
    batch: int
    trainable: int
    frozen: int
    arguments: int
    temporaries: int
    peak: int
    program: int
    flops: int
    collectives: dict[str, dict[str, int]]
    reduced_ratio: float
    trace_seconds: list[float] = dataclasses.field(default_factory=list)
    lower_seconds: list[float] = dataclasses.field(default_factory=list)
    compile_seconds: list[float] = dataclasses.field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    args, config = _parse(argv)
    _prepare(args)
    # From here on JAX may be imported: it reads the environment only once.
    import jax

    from talora_jax import config_checks
    from talora_jax.models import attention_kernels
    from talora_jax.models.remat import choose_remat

    jax.config.update("jax_enable_compilation_cache", False)
    meshes = {name: _mesh(args.mesh, _devices(name, args.slices)) for name in args.topology}
    device = next(iter(meshes.values())).devices.flat[0]
    config_checks.check(config)
    # What `auto` means depends on the machine that trains, not on this one.
    for field in ("dtype", "param_dtype"):
        if config.model[field] == "auto":
            config.model[field] = "float32" if device.platform == "cpu" else "bfloat16"
    attention_kernels.check(config.model.attention, device, config.model.dtype)
    config.model.attention = attention_kernels.choose(config.model.attention, device.platform)
    config.model.remat = choose_remat(config.model.remat, device.platform)
    tasks = choose_tasks(tuple(config.tasks), args.tasks or len(config.tasks), args.classes)
    if len(tasks) != len(config.tasks):
        config.weighting.task_weights = (1.0,) * len(tasks)

    sizes = args.size or [config.model.size]
    console = report.make_console()
    head = report.print_head(
        console,
        "train step, compiled ahead of time",
        {
            "topology": args.topology,
            "slices": args.slices,
            "device": [
                f"{mesh.size} {mesh.devices.flat[0].device_kind}" for mesh in meshes.values()
            ],
            "mesh": [list(mesh.shape.values()) for mesh in meshes.values()],
            "tasks": len(tasks),
            "channels": sum(task.channels for task in tasks),
            "dtype": config.model.dtype,
            "frozen": config.model.param_dtype,
            "attention": config.model.attention,
            "remat": config.model.remat,
        },
    )

    measured = {}
    for name, mesh in meshes.items():
        # The first program that a compiler sees also starts the compiler.
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        one = jax.ShapeDtypeStruct((), "float32", sharding=replicated)
        jax.jit(lambda x: x + 1).lower(one).compile()
        images = args.batch_per_chip * mesh.shape["data"] * mesh.shape["fsdp"]
        config.batch_size = config.eval_batch_size = images * config.accumulate
        for size in sizes:
            config.model.size = size
            hlo = args.hlo and Path(args.hlo) / f"{name.replace(':', '_')}_{size}.hlo"
            # In a table of one topology sizes are the columns' names.
            column = size if len(meshes) == 1 else f"{name} {size}"
            measured[column] = measure(config, mesh, tasks, args.repeats, hlo)
    console.print(_table(measured))
    numbers = {"sizes": {name: dataclasses.asdict(m) for name, m in measured.items()}}
    report.write_json(args, head | numbers, console)
    return 0


def choose_tasks(names: tuple[str, ...], count: int, num_classes: int) -> tuple[Any, ...]:
    """`count` tasks: those of the config, then the kinds it leaves out, then kinds once more."""
    from talora_jax.tasks import TASKS

    kinds = [*names, *(kind for kind in TASKS if kind not in names)]
    classes = tuple(f"class {i}" for i in range(num_classes))
    tasks = []
    for i in range(count):
        kind, again = kinds[i % len(kinds)], i // len(kinds)
        name = f"{kind}_{again + 1}" if again else kind
        tasks.append(TASKS[kind].make(name, classes))
    return tuple(tasks)


def program_text(compiled: Any) -> str:
    """A compiled program (`jax.stages.Compiled`) as text.

    Raises:
      UserError: libtpu has written it in a way that JAX does not know.
    """
    import jax

    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"JAX {jax.__version__} cannot read what libtpu has compiled, which may be of another "
            f"version than goes with it: {accelerators.INSTALL_LIBTPU} ({one_line(error)})"
        ) from None


def measure(config: Any, mesh: Any, tasks: Any, repeats: int, hlo: Path | None) -> Measured:
    """Compiles the step of one config; see `Measured`.

    Args:
      config: a checked config; `batch_size` is of the whole mesh.
      mesh: a mesh over the devices to compile for.
      tasks: what the model is for, which may be more than `config.tasks` can name.
      repeats: compilations, each from the beginning.
      hlo: the file to write the compiled program to, as text; None writes nothing.
    """
    from benchmarks.collectives import find_collectives, totals
    from benchmarks.flops import jaxpr_flops
    from talora_jax import config_checks
    from talora_jax.models.sam import SIZES
    from talora_jax.training import ahead_of_time, setup

    config_checks.check_mesh(config, mesh.shape)
    runs = []
    for _ in range(repeats):
        run = setup.abstract(config, mesh, tasks, SIZES[config.model.size]())
        step = ahead_of_time.make_step(run)
        runs.append(ahead_of_time.compile_step(step))
    text = program_text(runs[-1].compiled)
    if hlo:
        hlo.parent.mkdir(parents=True, exist_ok=True)
        hlo.write_text(text)
    memory = runs[-1].memory
    collectives = totals(find_collectives(text))
    return Measured(
        chips=mesh.size,
        batch=config.batch_size,
        trainable=step.trainable_bytes,
        frozen=step.frozen_bytes,
        arguments=memory.arguments,
        temporaries=memory.temporaries,
        peak=memory.peak,
        program=memory.program,
        # The while loops of a step are over the channels of a task, once for each task.
        flops=jaxpr_flops(
            runs[-1].jaxpr, Fraction(sum(task.channels for task in tasks), len(tasks))
        ),
        collectives=collectives,
        reduced_ratio=collectives.get("all-reduce", {"bytes": 0})["bytes"] / step.trainable_bytes,
        trace_seconds=[run.trace_seconds for run in runs],
        lower_seconds=[run.lower_seconds for run in runs],
        compile_seconds=[run.compile_seconds for run in runs],
    )


def _table(measured: dict[str, Measured]) -> Table:
    table = Table(caption="GB are 10⁹ bytes; each chip's, but for the parameters")
    table.add_column("")
    for size in measured:
        table.add_column(size, justify="right")

    def row(name, value):
        table.add_row(name, *(value(m) for m in measured.values()))

    def gigabytes(field):
        return lambda m: f"{getattr(m, field) / 1e9:.3f}"

    def seconds(field):
        return lambda m: f"{statistics.median(getattr(m, field)):.1f}"

    row("chips", lambda m: str(m.chips))
    row("images per step", lambda m: str(m.batch))
    row("trainable parameters, float32, GB", gigabytes("trainable"))
    row("frozen parameters, GB", gigabytes("frozen"))
    row("arguments, GB", gigabytes("arguments"))
    row("temporaries, GB", gigabytes("temporaries"))
    row("arguments, new results and temporaries, GB", gigabytes("peak"))
    row("program, GB", gigabytes("program"))
    row("operations per step and chip, TFLOP", lambda m: f"{m.flops / m.chips / 1e12:.2f}")
    for kind in dict.fromkeys(kind for m in measured.values() for kind in m.collectives):
        row(
            f"{kind}: GB per step (calls)",
            lambda m, kind=kind: (
                f"{m.collectives[kind]['bytes'] / 1e9:.4f} ({m.collectives[kind]['calls']})"
                if kind in m.collectives
                else "none"
            ),
        )
    row("all-reduced ÷ trainable parameters", lambda m: f"{m.reduced_ratio:.3f}")
    row("trace, seconds", seconds("trace_seconds"))
    row("lower, seconds", seconds("lower_seconds"))
    row("compile, seconds", seconds("compile_seconds"))
    first = statistics.median(next(iter(measured.values())).compile_seconds)
    if len(measured) > 1:
        name = f"compile ÷ {next(iter(measured))}'s"
        row(name, lambda m: f"{statistics.median(m.compile_seconds) / first:.2f}")
    return table


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
    """The command line, and the config that it gives."""
    parser = arguments.parser(__doc__)
    parser.add_argument(
        "--topology",
        nargs="+",
        default=["v5e:2x4"],
        help=f"what to compile for: {accelerators.TOPOLOGIES}, fake devices of this machine; "
        "several are compared (default: v5e:2x4)",
    )
    parser.add_argument(
        "--slices",
        type=int,
        default=1,
        metavar="N",
        help="of the topology each, over which the mesh's data axis runs (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        default="configs/nyuv2.py:vit_l",
        help="the experiment, a file in configs/ (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        nargs="+",
        choices=arguments.SIZES,
        help="which SAM; several are compared with the first of them (default: the config's)",
    )
    parser.add_argument(
        "--tasks",
        type=int,
        metavar="T",
        help="number of tasks: the config's first, then the kinds it leaves out, then kinds once "
        "more (default: the config's)",
    )
    parser.add_argument(
        "--classes",
        type=int,
        default=13,
        metavar="N",
        help="of semantic segmentation, each an output channel (default: %(default)s, NYUv2's)",
    )
    parser.add_argument(
        "--mesh",
        metavar="DATA,FSDP,TASK",
        help="how the chips are shared out (default: all to data)",
    )
    parser.add_argument(
        "--batch-per-chip",
        type=int,
        default=1,
        metavar="N",
        help="images for each member of data × fsdp (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        metavar="N",
        help="compilations of each size; the median is shown (default: %(default)s)",
    )
    parser.add_argument(
        "--hlo", metavar="FOLDER", help="also write the compiled programs here, as text"
    )
    args, config = parse(parser, argv)
    for name in ("batch_per_chip", "repeats", "classes", "tasks", "slices"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}, expected at least 1")
    return args, config


def _prepare(args: argparse.Namespace) -> None:
    """Checks the topologies, and sets the environment that JAX starts in.

    Raises:
      UserError: there is no such topology, or not beside another one.
    """
    named = {name: accelerators.split_topology(name) for name in args.topology}
    on_cpu = [int(shape) for generation, shape in named.values() if generation == "cpu"]
    if on_cpu and (len(named) > 1 or args.slices > 1):
        raise UserError("--topology: cpu:DEVICES stands alone, and in one slice")
    accelerators.prepare_for_tpus()
    if on_cpu:
        accelerators.prepare_for_cpus(on_cpu[0])


def _devices(topology: str, slices: int) -> list[Any]:
    """The devices to compile for, of a topology that `split_topology` knows."""
    if topology.startswith("cpu:"):
        import jax

        return jax.devices()
    return accelerators.tpus(topology, slices)


def _mesh(sizes: str | None, devices: list[Any]) -> Any:
    from talora_jax import sharding

    shape = (len(devices), 1, 1)
    if sizes is not None:
        if not re.fullmatch(r"\d+,\d+,\d+", sizes):
            raise UserError(f"--mesh is {short(sizes, 80)}, expected three numbers: data,fsdp,task")
        shape = tuple(map(int, sizes.split(",")))
        if math.prod(shape) != len(devices):
            raise UserError(f"--mesh is {sizes}, but the topology has {len(devices)} devices")
    return sharding.make_mesh(*shape, devices)


if __name__ == "__main__":
    run_command(main)
