"""The train step compiled for TPUs that need not be here: memory, communication, compile time.

XLA compiles ahead of time for a topology given by name, such as v5e:2x4 (eight chips), and tells
what the program needs. It is the project's own step: forward, losses, backward, Adam, in bfloat16
with frozen weights in bfloat16, laid over the mesh as in training. Nothing is computed.

    python -m benchmarks.tpu --topology v5e:2x4 --config configs/nyuv2.py:vit_l
    python -m benchmarks.tpu --topology v5e:2x4 --size vit_h --tasks 5
    python -m benchmarks.tpu --topology v5e:1x1 --size vit_b vit_h      compile times compared
    python -m benchmarks.tpu --topology cpu:8 --size tiny               without libtpu

A size takes minutes to compile on a few cores. Any field of the config can be changed as in
training: --config.model.remat=dots
"""

import argparse
import dataclasses
import importlib.util
import os
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.table import Table

from benchmarks import arguments, report
from talora_jax.command_line import parse
from talora_jax.errors import run_command

# By generation: the name of eight chips that libtpu wants to hear, and how many sides a shape has.
GENERATIONS = {"v5e": ("v5litepod-8", 2), "v5p": ("v5p-16", 3), "v6e": ("v6e-8", 2)}
TOPOLOGIES = (
    f"GENERATION:SHAPE, with generation one of {', '.join(GENERATIONS)} and a shape such as 2x4 "
    "(v5p: 2x2x1), or cpu:DEVICES"
)


@dataclasses.dataclass
class Measured:
    """What the step of one size takes. Bytes are of one chip, but for those of the parameters.

    Attributes:
      trainable: parameters in float32.
      frozen: the other parameters, as stored.
      arguments: state, frozen parameters and batch; what the step returns takes their place.
      temporaries: what else is alive at the worst moment.
      peak: arguments, results that take nobody's place, and temporaries.
      program: the machine code.
      flops: of the matrix products and convolutions, over all chips.
      collectives: by kind, {"bytes", "calls"} of one step.
      reduced_ratio: all-reduced bytes ÷ `trainable`.
      trace_seconds, lower_seconds, compile_seconds: one entry per repeat.
    """

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
    generation, shape = _check_topology(args.topology)
    _set_environment(generation, shape)
    # From here on JAX may be imported: it reads the environment only once.
    import jax

    from benchmarks import abstract_step
    from talora_jax import config as config_lib
    from talora_jax.models import attention_kernels

    jax.config.update("jax_enable_compilation_cache", False)
    devices = _devices(args.topology, generation)
    mesh = _mesh(args.mesh, devices)
    config_lib.check(config)
    # What `auto` means depends on the machine that trains, not on this one.
    for field in ("dtype", "param_dtype"):
        if config.model[field] == "auto":
            config.model[field] = "float32" if generation == "cpu" else "bfloat16"
    attention_kernels.check(config.model.attention, devices[0], config.model.dtype)
    config.model.attention = attention_kernels.choose(config.model.attention, devices[0].platform)
    images = args.batch_per_chip * mesh.shape["data"] * mesh.shape["fsdp"]
    config.batch_size = config.eval_batch_size = images * config.accumulate
    tasks = abstract_step.choose_tasks(
        tuple(config.tasks), args.tasks or len(config.tasks), args.classes
    )
    if len(tasks) != len(config.tasks):
        config.weighting.task_weights = (1.0,) * len(tasks)

    sizes = args.size or [config.model.size]
    console = report.make_console()
    head = report.print_head(
        console,
        "train step, compiled ahead of time",
        {
            "topology": args.topology,
            "device": f"{len(devices)} {devices[0].device_kind}",
            "mesh": list(mesh.shape.values()),
            "batch": config.batch_size,
            "tasks": len(tasks),
            "channels": sum(task.channels for task in tasks),
            "dtype": config.model.dtype,
            "frozen": config.model.param_dtype,
            "attention": config.model.attention,
            "remat": config.model.remat,
        },
    )
    # The first program that a compiler sees also starts the compiler.
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    one = jax.ShapeDtypeStruct((), "float32", sharding=replicated)
    jax.jit(lambda x: x + 1).lower(one).compile()

    measured = {}
    for size in sizes:
        config.model.size = size
        measured[size] = measure(config, mesh, tasks, args.repeats, args.hlo)
    console.print(_table(measured, len(devices)))
    numbers = {"sizes": {size: dataclasses.asdict(m) for size, m in measured.items()}}
    report.write_json(args, head | numbers, console)
    return 0


def measure(config: Any, mesh: Any, tasks: Any, repeats: int, hlo: str | None) -> Measured:
    """Compiles the step of one config; see `Measured`.

    Args:
      config: a checked config; `batch_size` is of the whole mesh.
      mesh: a mesh over the devices to compile for.
      tasks: what the model is for, which may be more than `config.tasks` can name.
      repeats: compilations, each from the beginning.
      hlo: where to write the compiled program, as text; None writes nothing.
    """
    from benchmarks import abstract_step
    from benchmarks.collectives import find_collectives, totals
    from benchmarks.flops import jaxpr_flops
    from talora_jax import config as config_lib

    config_lib.check_mesh(config, mesh.shape)
    runs = []
    for _ in range(repeats):
        step = abstract_step.make_step(config, mesh, tasks)
        runs.append(abstract_step.compile_step(step))
    text = runs[-1].compiled.as_text()
    if hlo:
        Path(hlo).mkdir(parents=True, exist_ok=True)
        Path(hlo, f"{config.model.size}.hlo").write_text(text)
    memory = runs[-1].compiled.memory_analysis()
    collectives = totals(find_collectives(text))
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Measured(
        trainable=step.trainable_bytes,
        frozen=step.frozen_bytes,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.argument_size_in_bytes + new + memory.temp_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        flops=jaxpr_flops(runs[-1].jaxpr),
        collectives=collectives,
        reduced_ratio=collectives.get("all-reduce", {"bytes": 0})["bytes"] / step.trainable_bytes,
        trace_seconds=[run.trace_seconds for run in runs],
        lower_seconds=[run.lower_seconds for run in runs],
        compile_seconds=[run.compile_seconds for run in runs],
    )


def _table(measured: dict[str, Measured], chips: int) -> Table:
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

    row("trainable parameters, float32, GB", gigabytes("trainable"))
    row("frozen parameters, GB", gigabytes("frozen"))
    row("arguments, GB", gigabytes("arguments"))
    row("temporaries, GB", gigabytes("temporaries"))
    row("arguments, new results and temporaries, GB", gigabytes("peak"))
    row("program, GB", gigabytes("program"))
    row("operations per step, TFLOP", lambda m: f"{m.flops / 1e12:.2f}")
    row("operations per step and chip, TFLOP", lambda m: f"{m.flops / chips / 1e12:.2f}")
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
        default="v5e:2x4",
        help=f"what to compile for: {TOPOLOGIES}, fake devices of this machine (default: "
        "%(default)s)",
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
    for name in ("batch_per_chip", "repeats", "classes", "tasks"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}, expected at least 1")
    return args, config


def _check_topology(name: str) -> tuple[str, str]:
    """Generation and shape; ends the program with one line if there is no such topology."""
    generation, _, shape = name.partition(":")
    sides = {g: n for g, (_, n) in GENERATIONS.items()} | {"cpu": 1}
    number = "[1-9][0-9]*"
    wanted = "x".join([number] * sides.get(generation, 1))
    if generation not in sides or not re.fullmatch(wanted, shape):
        sys.exit(f"--topology: unknown {name!r}, expected {TOPOLOGIES}")
    if generation != "cpu" and importlib.util.find_spec("libtpu") is None:
        sys.exit(f"--topology={name} needs libtpu, which is not installed: pip install libtpu")
    return generation, shape


def _set_environment(generation: str, shape: str) -> None:
    """What JAX and libtpu read when they are loaded."""
    # Whatever this machine has, programs are traced on its CPU and compiled for the topology.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if generation == "cpu":
        flags = os.environ.get("XLA_FLAGS", "")
        count = f"--xla_force_host_platform_device_count={shape}"
        os.environ["XLA_FLAGS"] = f"{flags} {count}".strip()
        return
    os.environ |= {
        # Without these libtpu asks a metadata server, which only TPU machines have.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": GENERATIONS[generation][0],
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Nothing is run, so nothing is in the way of another process.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def _devices(topology: str, generation: str) -> list[Any]:
    """The devices to compile for; ends the program with one line if they cannot be."""
    import jax

    if generation == "cpu":
        return jax.devices()
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        sys.exit(f"--topology: {topology!r} cannot be: {str(error).splitlines()[0]}")


def _mesh(sizes: str | None, devices: list[Any]) -> Any:
    import jax

    from talora_jax import sharding

    shape = (len(devices), 1, 1)
    if sizes is not None:
        if not re.fullmatch(r"\d+,\d+,\d+", sizes):
            sys.exit(f"--mesh is {sizes!r}, expected three numbers: data,fsdp,task")
        shape = tuple(map(int, sizes.split(",")))
        if shape[0] * shape[1] * shape[2] != len(devices):
            sys.exit(f"--mesh is {sizes}, but the topology has {len(devices)} devices")
    auto = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, sharding.AXES, devices=devices, axis_types=auto)


if __name__ == "__main__":
    run_command(main)
