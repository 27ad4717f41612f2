"""python -m tests.kills --seed 0 --kills 100 [--nano]

Kills tiny runs at random moments, and says whether that left a trace.

One run goes through unbroken. Others, each in a workdir and with records of its own, are killed
some times (SIGKILL, SIGTERM or SIGINT; a phase is drawn, and a moment in it), and then go on to
their end. They must end as the unbroken one: the same rows of metrics, each once; the same adapter
and the same pictures, bit by bit; no temporary file. What is found, and a table of the kills by
phase and signal, is printed; the exit status is 1 if anything differs.

A run is a fork of this process, which has all modules loaded, so that one starts in no time. What
it trains is linear in an image's colours: a model takes ten times as long to trace, and what is
written and read is the same. --nano trains one with adapters all the same.
"""

import argparse
import collections
import dataclasses
import gc
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TESTS = Path(__file__).parent
# Before JAX starts: what one process has compiled, none compiles again.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(TESTS.parent / ".jax_cache"))
sys.path.insert(0, str(TESTS))

# With all that a run needs; none of it starts a thread, which a fork would lose.
import jax
import jax.numpy as jnp
import micro  # noqa: F401  # adds the size
import tensorboardX  # noqa: F401
from flax import nnx

import talora_jax.data.folder  # noqa: F401
import talora_jax.training.loop  # noqa: F401
from talora_jax.errors import ArgumentParser, run_command
from talora_jax.main import main as talora
from talora_jax.models.adapters import TaskParam
from talora_jax.training import setup
from talora_jax.training.log import read_metrics

STEPS, EVAL_EVERY = 12, 4
CONFIG = (
    "--config=configs/rooms_tiny.py",
    "--config.data.name=folder",
    "--config.data.image_size=(24, 32)",
    "--config.tasks=('semantic', 'depth')",
    "--config.weighting.task_weights=(1.0, 1.0)",
    "--config.model.size=nano",
    "--config.model.weights=",
    "--config.model.remat=none",
    "--config.adapter.ranks=(4, 4, 2)",
    "--config.batch_size=4",
    "--config.eval_batch_size=4",
    f"--config.steps={STEPS}",
    f"--config.eval_every={EVAL_EVERY}",
    "--config.checkpoint_every=2",
    "--config.log_every=1",
    "--config.num_pictures=2",
)
# In the order in which a run comes by them first.
PHASES = (
    "preparation",
    "start",
    "steps",
    "checkpoint",
    "evaluation",
    "pictures",
    "adapter's write",
    "end",
)
# A run is past these for good once it is at the number of a later one.
_RANKS = dict(zip(PHASES, (0, 1, 2, 2, 2, 3, 4, 5), strict=True))
# The statuses that each signal may end a run with: where nothing waits for it, the signal's own.
SIGNALS = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {-signal.SIGTERM, 128 + signal.SIGTERM},
    signal.SIGINT: {128 + signal.SIGINT},
}
_SHORT = ("pictures", "adapter's write")
_MOST_KILLS = 8  # of one run
_POLL = 3e-3  # seconds
_PATIENCE = 300  # seconds
_LITTER = ("partial-", "incomplete.", "tmp", "unreadable_")


class Linear(nnx.Module):
    """Stands for MSam: a pixel's maps are linear in its colour."""

    def __init__(self, channels: dict[str, int], rngs: nnx.Rngs):
        self.tasks = tuple(channels)
        self.kernels = TaskParam(rngs.params.normal((3, sum(channels.values()))) / 10)
        self.ends = tuple(itertools.accumulate(channels.values()))[:-1]

    def __call__(self, images, *, key=None, trunk=None):
        # Kernels of each row, whose gradients are then summed: those of all pixels, one after the
        # other, end 3e-6 of their sum away from what the shards of a mesh sum to.
        kernels = jnp.broadcast_to(self.kernels[...], (images.shape[1], *self.kernels.shape))
        maps = jnp.einsum("bhwc,hck->bhwk", images, kernels)
        return dict(zip(self.tasks, jnp.split(maps, self.ends, axis=-1), strict=True))

    def takes_turns(self, images, size):
        return False

    def orthogonality(self, parts):
        return jnp.zeros(())


def make_linear(config, tasks, sam) -> Linear:
    """In place of `setup.make_model`."""
    return Linear({task.name: task.channels for task in tasks}, nnx.Rngs(config.seed))


@dataclasses.dataclass
class Place:
    """Where a run happens: all of it lies in one folder, which is its current one.

    Attributes:
      flags: of the command line, beside `CONFIG`.
      stale: what starts before the last one left half written.
    """

    root: Path
    data: Path
    flags: Sequence[str]
    stale: frozenset[Path] = frozenset()

    @property
    def workdir(self) -> Path:
        return self.root / "run"

    def start(self) -> int:
        """Starts the run, or goes on with it; returns the number of its process."""
        self.root.mkdir(exist_ok=True)
        self.stale = frozenset((*self._half(), *self._saving()))
        return start_process(self._run, self.root / "out", self.root / "errors")

    def _run(self) -> None:
        # Relative: the adapter tells the directory of the records, and is compared.
        place = ["--workdir=run", "--config.data.dir=records", f"--config.data.path={self.data}"]
        # Named from the repository, whose configs they are.
        config = [CONFIG[0].replace("configs/", f"{TESTS.parent}/configs/"), *CONFIG[1:]]
        os.chdir(self.root)
        talora([*config, *place, *self.flags])

    def phase(self) -> str:
        """What the run is at, by what it has printed and left so far."""
        out = (self.root / "out").read_text()
        if "Wrote " in out:
            return "end"
        if set(self._half()) - self.stale:
            return "adapter's write"
        if set(self._saving()) - self.stale:
            return "checkpoint"
        if f"validation at step {STEPS}" in out:
            return "pictures"
        if not self.prepared():
            return "preparation"
        if "parameters train" not in out:
            return "start"
        last = out.rpartition("\nstep ")[2]
        step = int(last.partition("/")[0]) if last != out else 0
        evaluates = step == STEPS or (step and step % EVAL_EVERY == 0 and "miou" not in last)
        return "evaluation" if evaluates else "steps"

    def _half(self) -> Iterator[Path]:
        return self.workdir.glob(".adapter.safetensors.partial-*")

    def _saving(self) -> Iterator[Path]:
        return (self.workdir / "checkpoints").glob("*tmp*")

    def prepared(self) -> bool:
        return any(self.root.glob("records/folder/*/1.2.0"))


def write_data(root: Path, frames: int = 12) -> None:
    """A folder of frames, 24×32, with classes and depth."""
    rng = np.random.default_rng(0)
    for kind in ("image", "semantic", "depth"):
        (root / kind).mkdir(parents=True)
    for i in range(frames):
        labels = np.kron(rng.integers(0, 3, (3, 4)), np.ones((8, 8), int)).astype(np.uint8)
        Image.fromarray(labels * 80).convert("RGB").save(root / "image" / f"{i:02d}.png")
        Image.fromarray(labels).save(root / "semantic" / f"{i:02d}.png")
        np.save(root / "depth" / f"{i:02d}.npy", (1 + labels).astype(np.float32))


def start_process(work: Callable[[], None], out: Path, errors: Path) -> int:
    """The number of a process that does this, as a command, and prints into these files."""
    for file in (out, errors):
        file.write_bytes(b"")
    sys.stdout.flush()
    sys.stderr.flush()
    # Until the command has begun: what an interrupt raises while Python forks is lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS.keys() - {signal.SIGKILL})
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return process

    def command() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        work()

    status = 1
    try:
        for number, file in ((1, out), (2, errors)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
        # Small programs, that many processes need; and what is there now stays.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        gc.freeze()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run_command(command)
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ended(process: int, watch: Callable[[], bool] = lambda: False) -> int:
    """The status of a process; until it has ended, `watch` is called, which says if it hurries."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        number, status = os.waitpid(process, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0 if watch() else _POLL)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise TimeoutError(f"a run did not end in {_PATIENCE} seconds")


def unbroken(place: Place) -> dict[str, float]:
    """Lets a run go to its end; returns how many seconds it was in each phase at a stretch."""
    begun: list[tuple[str, float]] = []

    def watch():
        phase = place.phase()
        if not begun or begun[-1][0] != phase:
            begun.append((phase, time.monotonic()))
        return phase in _SHORT

    status = ended(place.start(), watch)
    if status:
        sys.exit(f"the unbroken run ended with {status}: {(place.root / 'errors').read_text()}")
    begun.append(("", time.monotonic()))
    stretches = collections.defaultdict(list)
    for (phase, since), (_, until) in zip(begun, begun[1:], strict=False):
        stretches[phase].append(until - since)
    return {phase: float(np.mean(stretches[phase] or [0.0])) for phase in PHASES}


def kill(place: Place, aim: str, delay: float, how: signal.Signals) -> tuple[str, list[str]]:
    """Starts a run, kills it `delay` seconds after it has come to a phase, or past it.

    Returns:
      The phase that it was in, and what was wrong with its end.
    """
    process = place.start()
    due: float | None = None
    killed: str | None = None

    def watch():
        nonlocal due, killed
        if killed:
            return False
        phase = place.phase()
        if due is None and (phase == aim or _RANKS[phase] > _RANKS[aim]):
            due = time.monotonic() + delay
        if due is not None and time.monotonic() >= due:
            os.kill(process, how)
            killed = phase
        return phase in _SHORT

    status = ended(process, watch)
    at = killed or "not at all"
    # What has ended before it could be killed, or as good as ended, has ended well.
    fine = {0} if killed is None else SIGNALS[how] | ({0} if killed == "end" else set())
    errors = (place.root / "errors").read_text()
    wrong = []
    if status not in fine:
        wrong.append(f"status {status} after {how.name} in {at}: {errors[-300:]}")
    if "Traceback" in errors:
        wrong.append(f"a traceback after {how.name} in {at}: {errors[-600:]}")
    return at, wrong


def differences(place: Place, expected: Place) -> Iterator[str]:
    """How a run's end differs from that of another one."""
    ours, theirs = (_rows(p) for p in (place, expected))
    if ours != theirs:
        steps, wanted = ([(r["step"], r["split"]) for r in rows] for rows in (ours, theirs))
        yield f"rows {steps}, expected {wanted}" if steps != wanted else "other numbers in rows"
    pictures = [sorted((p.workdir / "pictures").iterdir()) for p in (place, expected)]
    names = [[path.name for path in paths] for paths in pictures]
    if names[0] != names[1]:
        yield f"pictures {names[0]}, expected {names[1]}"
    for name in ("adapter.safetensors", "data.json", *(f"pictures/{n}" for n in names[1])):
        if (place.workdir / name).read_bytes() != (expected.workdir / name).read_bytes():
            yield f"another {name}"
    for path in sorted(place.root.rglob("*")):
        if any(word in path.name for word in _LITTER):
            yield f"litter: {path.relative_to(place.root)}"


def _rows(place: Place) -> list[dict]:
    """All that was logged, but for times."""
    rows = read_metrics(place.workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "step_time"} for row in rows]


def table(counts: collections.Counter) -> Iterator[str]:
    names = [how.name for how in SIGNALS]
    yield "".join(f"{name:>16}" for name in ("killed in", *names, "all"))
    for phase in (*PHASES, None):
        row = [
            sum(n for (at, how), n in counts.items() if phase in (at, None) and how == name)
            for name in names
        ]
        yield f"{phase or 'all':>16}" + "".join(f"{n:16}" for n in (*row, sum(row)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--nano", action="store_true")
    args = parser.parse_args(arguments)
    if not args.nano:
        setup.make_model = make_linear
    rng = random.Random(args.seed)
    root = Path(tempfile.mkdtemp(prefix="talora_jax_kills_"))
    try:
        return _kill_all(args, rng, root)
    finally:
        shutil.rmtree(root)


def _kill_all(args: argparse.Namespace, rng: random.Random, root: Path) -> int:
    data = root / "data"
    write_data(data)
    flags = () if args.nano else ("--config.adapter.kind=none",)
    unbroken(Place(root / "first", data, flags))  # compiles
    expected = Place(root / "unbroken", data, flags)
    stretches = unbroken(expected)
    print("seconds at a stretch: " + ", ".join(f"{p} {s:.3f}" for p, s in stretches.items()))
    counts: collections.Counter = collections.Counter()
    wrong: list[str] = []
    runs = 0
    while counts.total() < args.kills:
        place = Place(root / f"killed_{runs}", data, flags)
        runs += 1
        story: list[str] = []
        found: list[str] = []
        for _ in range(min(args.kills - counts.total(), rng.randint(1, _MOST_KILLS))):
            # What is to come for sure: what is prepared stays so.
            aims = PHASES[1 if place.prepared() else 0 : -1]
            aim, how = rng.choice(aims), rng.choice(list(SIGNALS))
            at, problems = kill(place, aim, rng.random() * stretches[aim], how)
            found += problems
            if at not in PHASES:  # it was faster
                break
            counts[at, how.name] += 1
            story.append(f"{how.name} in {at}")
            if at == "end":
                break
        status = ended(place.start())
        if status:
            errors = (place.root / "errors").read_text()[-600:]
            found.append(f"status {status} in the end: {errors}")
        else:
            found += differences(place, expected)
        print(f"run {runs}: {', '.join(story) or 'not killed'}: {'; '.join(found) or 'the same'}")
        wrong += found
        shutil.rmtree(place.root)
    print(f"{counts.total()} kills of {runs} runs, seed {args.seed}: {len(wrong)} differences")
    print("\n".join(table(counts)))
    return 1 if wrong else 0


if __name__ == "__main__":
    run_command(main)
