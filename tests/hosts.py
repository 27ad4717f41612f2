"""python -m tests.hosts [--quick] [--nano] [NAME …]

Starts runs on many hosts, which are processes that meet over loopback, and says whether all came as
it must: the numbers of one process, whatever the mesh and however often the run went on with
another number of processes; one sentence and the right status where something is wrong. A line is
printed for each check; the exit status is 1 if one of them failed. --quick makes those of the
suite; NAME those whose name begins so.

Processes and models are those of `tests.kills`: forks, of a model that is linear in an image's
colours; --nano trains one with adapters.
"""

import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np

# First: it sets what JAX reads when it is imported.
from tests import kills

# isort: split

from talora_jax import config as config_lib
from talora_jax import hosts, sharding, storage
from talora_jax.data import records
from talora_jax.errors import ArgumentParser, UserError, run_command
from talora_jax.main import main as talora
from talora_jax.training import checkpoint, scalars, setup
from talora_jax.training.evaluate import Evaluator
from talora_jax.training.log import read_metrics
from tests import bucket_server

# Of a machine that has more to do than it can, a process may not be heard for long.
HEARTBEAT, SHORT_HEARTBEAT = 120, 6  # seconds
PATIENCE = 10  # seconds that a process may take to end at once
# How far numbers may be from those of one process.
CLOSE = 1e-6
REQUEUED = 128 + signal.SIGTERM


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Process:
    """One process of a group, with what it prints in files."""

    running: set[int] = set()

    def __init__(self, place: Path, work: Callable[[], None], devices: int):
        self.out, self.errors = place.with_suffix(".out"), place.with_suffix(".errors")
        self.begun = time.monotonic()

        def among_devices() -> None:
            os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
            # A shell that started this in the background has it ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work()

        self.id = kills.start_process(among_devices, self.out, self.errors)
        self.running.add(self.id)

    def has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.id, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def ended(self) -> int:
        """Its status, when it has."""
        self.running.discard(self.id)
        return kills.ended(self.id)

    def told(self) -> str:
        """What it says in the end; all of it where there is a traceback."""
        errors = self.errors.read_text().strip()
        return errors if "Traceback" in errors else errors.rpartition("\n")[2]


class Groups:
    """Runs of one data set, each by a group of processes."""

    def __init__(self, root: Path, flags: Sequence[str]):
        self.root, self.port = root, 0  # where process 0 of the last command listens
        kills.write_data(root / "data")
        self.flags = [
            kills.CONFIG[0].replace("configs/", f"{kills.TESTS.parent}/configs/"),
            *kills.CONFIG[1:],
            f"--config.data.path={root}/data",
            f"--config.data.dir={root}/records",
            f"--config.hosts.heartbeat_timeout={HEARTBEAT}",
            *flags,
        ]

    def start(
        self,
        arguments: Sequence[str],
        count: int,
        devices: int = 1,
        odd: Sequence[str] = (),
        more: int = 0,
        absent: Sequence[int] = (),
    ) -> list[Process]:
        """The processes of a command.

        Args:
          odd: further arguments of the last one.
          more: devices that it has beside those of the others.
          absent: those that are not started.
        """
        self.port, processes = free_port(), []
        for i in range(count):
            is_last = i == count - 1
            given = [*arguments, *(odd if is_last else ())]
            if count > 1:
                given += [
                    f"--config.hosts.coordinator=localhost:{self.port}",
                    f"--config.hosts.num_processes={count}",
                    f"--config.hosts.process_id={i}",
                ]
            if i not in absent:
                work = functools.partial(talora, given)
                has = devices + (more if is_last else 0)
                processes.append(Process(self.root / f"process_{i}", work, has))
        return processes

    def train(self, name: str, *flags: str, **how) -> list[Process]:
        return self.start([*self.flags, f"--workdir={self.root / name}", *flags], **how)

    def numbers(self, name: str) -> list[dict]:
        """All that was logged, but for times."""
        rows = read_metrics(self.root / name / "metrics.jsonl")
        return [{k: v for k, v in row.items() if k != "step_time"} for row in rows]

    def far(self, name: str, other: str) -> float:
        """How far the numbers of two runs are apart; infinitely far where they are not the same."""
        ours, theirs = self.numbers(name), self.numbers(other)
        keys = [[(row["split"], *row) for row in rows] for rows in (ours, theirs)]
        if keys[0] != keys[1] or [x["step"] for x in ours] != [x["step"] for x in theirs]:
            return np.inf
        values = [
            [v for row in rows for k, v in row.items() if k != "split"] for rows in (ours, theirs)
        ]
        a, b = map(np.array, values)
        return float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b))))

    def reach(self, name: str, step: int, processes: Sequence[Process]) -> None:
        """Waits for a run to be at a step, or to have ended before."""
        while not any(row["step"] >= step for row in self.numbers(name)):
            if any(process.has_ended() for process in processes):
                return
            time.sleep(0.005)


def expect(what: str, holds: bool, seen: object = "") -> bool:
    print(f"{'ok' if holds else 'WRONG':6}{what}  {seen}", flush=True)
    return holds


def told_by_all(
    what: str,
    processes: Sequence[Process],
    status: int,
    sentence: str,
    within: float,
    since: float | None = None,
) -> bool:
    """Whether all processes end so, with this sentence last, in so many seconds since they began,
    or since the time given."""
    ends = [(p.ended(), p.told()) for p in processes]
    seconds = time.monotonic() - (since or processes[0].begun)
    good = all(s == status and re.search(sentence, told) for s, told in ends)
    good &= not any("Traceback" in p.errors.read_text() for p in processes)
    return expect(what, good and seconds < within, f"{seconds:.0f} s {ends}")


def rows(groups: Groups) -> bool:
    """A batch that processes put together is the batch, for axes that span them, in any order."""
    meshes = [(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)]
    orders = [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 3, 1)]
    port = free_port()

    def work(index: int) -> None:
        import jax

        config = config_lib.default()
        config.hosts.update(
            coordinator=f"localhost:{port}", num_processes=2, process_id=index, heartbeat_timeout=60
        )
        whole = np.arange(8 * 3).reshape(8, 3)
        with hosts.joined(config.hosts):
            for shape in meshes:
                for order in orders:
                    devices = np.array(jax.devices())[list(order)].reshape(shape)
                    mesh = jax.sharding.Mesh(devices, sharding.AXES)
                    loaded, counted = sharding.batch_rows(mesh, len(whole))
                    batch = sharding.shard_batch({"x": whole[list(loaded)]}, mesh)["x"]
                    np.testing.assert_array_equal(sharding.local_rows(batch), whole[list(loaded)])
                    everywhere = jax.device_put(batch, sharding.replicated(mesh))
                    np.testing.assert_array_equal(np.asarray(everywhere), whole)
                    mine = np.array(loaded)[counted].tolist()
                    assert sorted(sum(hosts.gathered(mine), [])) == list(range(8)), (shape, order)
        print("all meshes")

    processes = [
        Process(groups.root / f"process_{i}", functools.partial(work, i), 2) for i in range(2)
    ]
    good = [p.ended() == 0 and "all meshes" in p.out.read_text() for p in processes]
    return expect("rows: every mesh and order of devices", all(good), processes[0].told())


def numbers(groups: Groups) -> bool:
    """Two processes that SIGTERM stops, then one, give what one gives; then they evaluate it."""
    (one,) = groups.train("one", count=1)
    good = expect("numbers: one process", one.ended() == 0, one.told())
    processes = groups.train("two", "--config.mesh.task=2", count=2)
    groups.reach("two", 2, processes)
    at = time.monotonic()
    os.kill(processes[1].id, signal.SIGTERM)
    what, told = "numbers: SIGTERM to one of two", "^stopped after"
    good &= told_by_all(what, processes, REQUEUED, told, 99, since=at)
    saved = re.search(r"after step (\d+) of", processes[0].told())
    good &= expect("numbers: the step is saved", bool(saved) and _holds(groups, "two", saved[1]))
    (again,) = groups.train("two", "--config.mesh.data=2", count=1, devices=2)
    good &= expect("numbers: goes on with one", again.ended() == 0, again.told())
    far = groups.far("two", "one")
    good &= expect("numbers: task axis over two, then one process", far < CLOSE, far)
    # Hosts of the past, which nobody waits for.
    config = groups.root / "two" / "config.json"
    fields = json.loads(config.read_text())
    fields["hosts"] |= {"coordinator": "localhost:1", "num_processes": 2}
    config.write_text(json.dumps(fields))
    evaluate = ["--mode=evaluate", f"--workdir={groups.root / 'two'}"]
    (alone,) = groups.start(evaluate, count=1)
    good &= expect("numbers: one evaluates", alone.ended() == 0, alone.told())
    # Which do not divide the run's batches of four.
    three = groups.start([*evaluate, "--config.eval_batch_size=3"], count=3)
    good &= expect("numbers: three evaluate", not any([p.ended() for p in three]), three[0].told())
    said = [re.findall("/.*", p.out.read_text()) for p in (alone, *three)]
    good &= expect("numbers: the same is told once", said[0] == said[1] and not any(said[2:]))
    with mock.patch.object(Evaluator, "measured", lambda *_: time.sleep(99)):
        two = groups.start(evaluate, count=2)
    while "evaluating" not in two[0].out.read_text() and not two[0].has_ended():
        time.sleep(0.05)
    at = time.monotonic()
    os.kill(two[1].id, signal.SIGTERM)
    what = "numbers: SIGTERM to one of two that evaluate"
    return good & told_by_all(what, two, REQUEUED, "^stopped; the same", PATIENCE, since=at)


def _holds(groups: Groups, name: str, step: str) -> bool:
    return (groups.root / name / "checkpoints" / step).is_dir()


def mistakes(groups: Groups) -> bool:
    """What cannot be is told by all of them, and soon."""
    good = True
    for odd, sentence in (
        (
            ["--config.seed=1"],
            "process 1 is not as process 0: config.seed is 1 here and 0 there",
        ),
        ([f"--config.data.path={groups.root}/nowhere"], "process 1: .*nowhere|^error: .*nowhere"),
        (
            [f"--workdir={groups.root}/data/mistaken"],
            "--workdir: .*mistaken is not the same folder .* process 1 does not see",
        ),
    ):
        processes = groups.train("mistaken", count=2, odd=odd)
        good &= told_by_all(f"mistakes: {odd[0][:20]}", processes, 2, sentence, 30)
    processes = groups.train("mistaken", count=2, more=1)
    told = "process 1 is not as process 0: its number of devices is 2 here and 1 there"
    good &= told_by_all("mistakes: devices", processes, 2, told, 30)
    late = "--config.hosts.initialization_timeout=2"
    alone = groups.train("mistaken", late, count=2, absent=[0])
    good &= told_by_all("mistakes: no coordinator", alone, 2, "2 s .* nobody answers at .*loc", 30)
    alone = groups.train("mistaken", late, count=2, absent=[1])
    good &= told_by_all("mistakes: one missing", alone, 2, "2 s .*not all 2 processes have c", 30)
    (alone,) = groups.train("mistaken", "--config.hosts.coordinator=auto", count=1)
    told = "coordinator=auto finds no cluster here .*: it asks .*SLURM or .*what srun or mpirun has"
    good &= told_by_all("mistakes: no cluster", [alone], 2, told, 30)
    left = [*groups.root.rglob("mistaken"), *groups.root.rglob(".shared-*")]
    return good & expect("mistakes: no workdir is left", not left, left)


def early(groups: Groups) -> bool:
    """A signal before the first step ends all of them, leaves nothing half done, and costs nothing.

    Until data are prepared it is at once, also while others have not come; where the step is being
    compiled, when that is done.
    """
    good, place = True, groups.root / "early_records"
    where = f"--config.data.dir={place}"

    def slowly(make, items):
        for item in items:
            time.sleep(1)
            yield make(item)

    for number in (signal.SIGTERM, signal.SIGINT):
        processes = groups.train("early", count=3, absent=[2])
        while not _listens(groups.port):
            time.sleep(0.05)
        time.sleep(1)  # until the other one has found it
        at = time.monotonic()
        for process in processes:
            os.kill(process.id, number)
        what = f"early: {number.name} to two that wait for a third"
        good &= told_by_all(what, processes, 128 + number, "^stopped", PATIENCE, since=at)
    for count, number in ((1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGINT)):
        before = set(place.rglob("incomplete.*"))
        with mock.patch.object(records, "_made", slowly):
            processes = groups.train("early", where, count=count)
        while set(place.rglob("incomplete.*")) <= before and not processes[0].has_ended():
            time.sleep(0.05)
        at = time.monotonic()
        os.kill(processes[-1].id, number)
        what = f"early: {number.name} to one of {count} that prepare data"
        told = "^(process 1: )?stopped" + ("; the same" if number == signal.SIGTERM else "$")
        good &= told_by_all(what, processes, 128 + number, told, PATIENCE, since=at)
        good &= expect("early: nothing is half prepared", not list(place.glob("folder/*/1.*")))
    # Of a dozen steps one process has made the last before it hears of the signal, now and then.
    long = "--config.steps=200"
    for count in (2, 1):
        processes = groups.train("early", where, long, count=count)
        while "compiling the tr" not in processes[0].out.read_text():
            if processes[0].has_ended():
                break
            time.sleep(0.005)
        os.kill(processes[-1].id, signal.SIGTERM)
        what = f"early: SIGTERM to one of {count} that compile"
        good &= told_by_all(what, processes, REQUEUED, "^stopped after step", 300)
    (last,) = groups.train("early", where, long, count=1)
    good &= expect("early: the next start goes on", last.ended() == 0, last.told())
    left = list(place.rglob("incomplete.*"))
    return good & expect("early: nothing is left", not left, left)


def failing(groups: Groups) -> bool:
    """One that cannot save tells so, and all end; so they do when another one ends by an error
    while it waits for that which could not be saved."""
    digest, finite, endless = checkpoint._digest, scalars.finite, []
    endless.append(endless)  # which no JSON can be

    def cannot(state, position):
        import jax

        return endless if jax.process_index() == 0 else digest(state, position)

    def refuses(step, values):
        import jax

        if step == 4 and jax.process_index() == 1:
            raise UserError("no")
        return finite(step, values)

    with mock.patch.object(checkpoint, "_digest", cannot):
        processes = groups.train("failing", count=2)
        told = "a checkpoint could not be written to .*: Circular reference"
        good = told_by_all("failing: process 0 cannot save", processes, 2, told, 120)
        with mock.patch.object(scalars, "finite", refuses):
            processes = groups.train("failing", "--config.checkpoint_every=3", count=2)
        told = "(process 1|error): no"
        return good & told_by_all("failing: the other ends meanwhile", processes, 2, told, 120)


def _listens(port: int) -> bool:
    with socket.socket() as caller:
        return not caller.connect_ex(("localhost", port))


def shapes(groups: Groups) -> bool:
    """A run goes on with four processes, two, one and four, over axes that span them."""
    good, steps = True, 60
    (one,) = groups.train("shapes_one", f"--config.steps={steps}", count=1)
    good &= expect("shapes: one process", one.ended() == 0, one.told())
    for (count, devices, mesh), last in zip(
        ((4, 1, (1, 2, 2)), (2, 2, (1, 4, 1)), (1, 1, (1, 1, 1)), (4, 2, (2, 2, 2))),
        (3, 20, 40, steps),  # far apart: a few steps more are made before all have stopped
        strict=True,
    ):
        flags = [f"--config.mesh.{k}={n}" for k, n in zip(sharding.AXES, mesh, strict=True)]
        flags.append(f"--config.steps={steps}")
        processes = groups.train("shapes", *flags, count=count, devices=devices)
        if last < steps:
            groups.reach("shapes", last, processes)
            for process in processes:
                os.kill(process.id, signal.SIGTERM)
            what = f"shapes: {count} processes, mesh {mesh}, stopped"
            good &= told_by_all(what, processes, REQUEUED, "^stopped after", 300)
        else:
            ends = [p.ended() for p in processes]
            good &= expect(f"shapes: {count} processes, mesh {mesh}", not any(ends), ends)
    far = groups.far("shapes", "shapes_one")
    return good & expect("shapes: the numbers of one process", far < CLOSE, far)


def lost(groups: Groups) -> bool:
    """SIGKILL of one process ends all, and the next start resumes."""
    good = True
    short = f"--config.hosts.heartbeat_timeout={SHORT_HEARTBEAT}"
    for victim in (1, 0):
        name = f"lost_{victim}"
        processes = groups.train(name, "--config.steps=2000", short, count=2)
        groups.reach(name, 5, processes)
        os.kill(processes[victim].id, signal.SIGKILL)
        at = time.monotonic()
        end, told = processes[1 - victim].ended(), processes[1 - victim].told()
        seconds = time.monotonic() - at
        processes[victim].ended()
        sentence = f"process {victim}.* is gone.* goes on from the last checkpoint"
        good &= expect(
            f"lost: SIGKILL of process {victim}",
            end == 1 and seconds < 120 and bool(re.search(sentence, told)),
            f"{seconds:.0f} s {told}",
        )
        processes = groups.train(name, "--config.steps=2000", count=2)
        groups.reach(name, 8, processes)
        os.kill(processes[0].id, signal.SIGTERM)
        good &= told_by_all("lost: the next start resumes", processes, REQUEUED, "^stopped", 300)
        good &= expect("lost: said so", "Resuming after step" in processes[0].out.read_text())
    return good


def bucket(groups: Groups) -> bool:
    """A run whose workdir is in a bucket: by two processes that are killed, then by one."""
    if importlib.util.find_spec("gcsfs") is None:
        return expect("bucket: gcsfs is installed", False)
    storage._PULSE, storage._SILENT = 0.5, 3.0
    (here,) = groups.train("here", count=1)
    good = expect("bucket: one process, here", here.ended() == 0, here.told())
    with bucket_server.Server() as server:
        os.environ |= server.environment
        there = f"--workdir=gs://{bucket_server.BUCKET}/there"
        two = groups.train("there", there, count=2)
        while not server.objects.keys() & {
            f"there/checkpoints/{step}/commit_success.txt" for step in (2, 4)
        } and not any(process.has_ended() for process in two):
            time.sleep(0.005)
        (other,) = groups.train("there", there, count=1)
        told = r"gs://bucket/there: another process is at work in it \(process \d+ of "
        good &= told_by_all("bucket: in use", [other], 2, told, 60)
        for process in two:
            os.kill(process.id, signal.SIGKILL)
        ends = [process.ended() for process in two]
        good &= expect("bucket: killed", ends == [-signal.SIGKILL] * 2, two[0].told())
        (again,) = groups.train("there", there, count=1)
        good &= expect("bucket: goes on with one", again.ended() == 0, again.told())
        good &= expect("bucket: said so", "Resuming after step" in again.out.read_text())
        (finished,) = groups.train("there", there, count=1)
        finished.ended()
        good &= expect("bucket: is finished", "is finished" in finished.out.read_text())
        evaluations = [
            groups.start(["--mode=evaluate", workdir], count=1)[0]
            for workdir in (there, f"--workdir={groups.root / 'here'}")
        ]
        good &= expect("bucket: evaluated", not any([p.ended() for p in evaluations]))
        said = [re.findall("/.*", p.out.read_text()) for p in evaluations]
        good &= expect("bucket: as here", bool(said[0]) and said[0] == said[1], len(said[0]))
        for name, found in server.objects.items():
            path = groups.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(found.content)
    far = groups.far("there", "here")
    good &= expect("bucket: the numbers of a run that was here", far < CLOSE, far)
    names = [{path.name for path in (groups.root / name).iterdir()} for name in ("here", "there")]
    good &= expect("bucket: the files of one, and no more", names[0] == names[1], names)
    return good & expect("bucket: no folder of its name", not list(groups.root.glob("gs:*")))


QUICK = (rows, numbers, mistakes, early, failing)
ALL = (*QUICK, shapes, lost, bucket)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--nano", action="store_true")
    args = parser.parse_args(arguments)
    flags = () if args.nano else ("--config.adapter.kind=none",)
    if not args.nano:
        setup.make_model = kills.make_linear
    root = Path(tempfile.mkdtemp(prefix="talora_jax_hosts_"))
    try:
        groups, wrong = Groups(root, flags), 0
        for check in QUICK if args.quick else ALL:
            if not args.names or check.__name__.startswith(tuple(args.names)):
                begun = time.monotonic()
                wrong += not check(groups)
                print(f"      {check.__name__}: {time.monotonic() - begun:.0f} s", flush=True)
        print(f"{wrong} wrong")
        return min(wrong, 1)
    finally:
        for process in Process.running:
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(root)


if __name__ == "__main__":
    run_command(main)
