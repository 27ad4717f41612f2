"""python -m tests.many_hosts

Runs the commands of docs/many_hosts.md as they stand there, and says whether all came as the page
says. bash runs them, with stand-ins for what is a cluster's own: ssh, gcloud, srun and sbatch start
the processes here, two for a command, and tell them what the real ones do, so that
`coordinator=auto` finds them. /shared is a folder of this run's, and 10.0.0.1 this machine. A line
is printed for each check; the exit status is 1 if one of them failed.

Processes and models are those of `tests.hosts`: what stands for python asks this process for a
fork. Data and model are tiny; batches, meshes and hosts are the page's.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# First: it sets what JAX reads when it is imported.
from tests import hosts, kills

# isort: split
import pytest
from jax._src.clusters import cloud_tpu_cluster

from talora_jax.errors import run_command
from talora_jax.main import main as talora
from talora_jax.training import setup
from talora_jax.training.log import read_metrics
from talora_jax.training.workdir import Stop

PAGE = kills.TESTS.parent / "docs" / "many_hosts.md"
FRAMES = 48  # of which enough train for the largest batch
DEVICES = 4  # of a process
STEPS = 20
_TOLD = ("SLURM_", "TPU_", "MEGASCALE_", "CUDA_VISIBLE_DEVICES", "JAX_COORDINATOR_PORT")

_WAIT = """
status=0
for task in "${tasks[@]}"; do
    wait "$task" || { ended=$?; [ "$ended" -gt "$status" ] && status=$ended; }
done
exit "$status"
"""
STAND_INS = {
    "python": """
asked=$(mktemp -d "$ASKED/XXXXXX")
printf '%s\\0' "$@" > "$asked/arguments"
env -0 > "$asked/environment"
mv "$asked" "$asked.asked"
until [ -e "$asked.asked/status" ]; do sleep 0.1; done
exit "$(cat "$asked.asked/status")"
""",
    "ssh": """
[ "$1" = -n ] && shift
exec bash -c "${*:2}"
""",
    # Of one slice two hosts, of two slices one each.
    "gcloud": """
slices=1 workers=()
for argument in "$@"; do
    case $argument in
        --command=*) command=${argument#--command=} ;;
        --worker=all) workers=(0 1) ;;
        --node=all) slices=2 ;;
    esac
done
export TPU_WORKER_HOSTNAMES=localhost,localhost JAX_COORDINATOR_PORT=$PORT
export MEGASCALE_COORDINATOR_ADDRESS= MEGASCALE_NUM_SLICES= MEGASCALE_SLICE_ID=
if [ "$slices" = 2 ]; then
    export TPU_WORKER_HOSTNAMES=localhost
    export MEGASCALE_COORDINATOR_ADDRESS=localhost MEGASCALE_NUM_SLICES=2
fi
for i in "${workers[@]}"; do
    if [ "$slices" = 2 ]; then export TPU_WORKER_ID=0 MEGASCALE_SLICE_ID=$i
    else export TPU_WORKER_ID=$i; fi
    bash -c "$command" & tasks+=($!)
done
"""
    + _WAIT,
    "srun": """
while [[ $1 == --* ]]; do
    case $1 in --nodes=*) SLURM_NNODES=${1#*=} ;; esac
    shift
done
export SLURM_JOB_ID=${SLURM_JOB_ID:-$JOB} SLURM_NTASKS=$SLURM_NNODES
export SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=$SLURM_NNODES SLURM_LOCALID=0
export SLURM_STEP_TASKS_PER_NODE="1(x$SLURM_NNODES)"
export SLURM_GPUS_ON_NODE=8 CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
for ((i = 0; i < SLURM_NTASKS; i++)); do
    SLURM_PROCID=$i SLURM_NODEID=$i "$@" & tasks+=($!)
done
"""
    + _WAIT,
    # A job that may be requeued, and is, starts again as it did.
    "sbatch": """
option() { sed -n "s/^#SBATCH --$1=//p" "$script"; }
script=$1
export SLURM_JOB_ID=$JOB SLURM_NNODES=$(option nodes) SLURM_CPUS_PER_TASK=$(option cpus-per-task)
grep -qx '#SBATCH --requeue' "$script" && export REQUEUED=$ASKED/requeued
bash "$script"
status=$?
while [ -e "$REQUEUED" ]; do
    rm "$REQUEUED"
    echo "requeued after $status"
    SLURM_RESTART_COUNT=1 bash "$script"
    status=$?
done
echo "ended with $status"
exit "$status"
""",
    "scontrol": """
[ "$*" = "requeue $SLURM_JOB_ID" ] && touch "$REQUEUED"
""",
}


class Cluster:
    """What runs the page's commands.

    Attributes:
      processes: that the last command had.
      statuses: that they ended with, in the order in which they did.
      printed: by the last command and its stand-ins.
    """

    def __init__(self, root: Path):
        self.root = root
        self.processes: list[hosts.Process] = []
        self.statuses: list[int] = []
        self.printed = ""
        kills.write_data(root / "nyuv2", FRAMES)
        (root / "bin").mkdir()
        for name, text in STAND_INS.items():
            (root / "bin" / name).write_text(f"#!/bin/bash\n{text.strip()}\n")
            (root / "bin" / name).chmod(0o755)

    def here(self, text: str) -> str:
        """A command of the page, with the names of this place."""
        port = hosts.free_port()
        return text.replace("/shared", str(self.root)).replace("10.0.0.1:8476", f"localhost:{port}")

    def run(self, command: str, stop: str = "") -> int:
        """The status of a command.

        Args:
          stop: the run whose processes are told SIGTERM, once, when it is some steps on.
        """
        asked = Path(tempfile.mkdtemp(dir=self.root))
        environment = os.environ | {
            "PATH": f"{self.root}/bin:{os.environ['PATH']}",
            "ASKED": str(asked),
            "JOB": str(_job()),
            "PORT": str(hosts.free_port()),
        }
        self.processes, self.statuses, open_ones = [], [], {}
        with open(asked / "printed", "w+") as printed:
            shell = subprocess.Popen(
                ["bash", "-c", self.here(command)],
                cwd=self.root,
                env=environment,
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
            try:
                while shell.poll() is None:
                    for place in set(asked.glob("*.asked")) - open_ones.keys():
                        open_ones[place] = self._fork(place, slow=bool(stop))
                    for place, process in open_ones.items():
                        if not (place / "status").exists() and process.has_ended():
                            self.statuses.append(_for_shells(process.ended()))
                            (place / "ended").write_text(str(self.statuses[-1]))
                            (place / "ended").rename(place / "status")
                    if stop and self._is_at(stop, 2):
                        stop = ""
                        for process in hosts.Process.running:
                            os.kill(process, signal.SIGTERM)
                    time.sleep(0.01)
            finally:
                shell.kill()
            self.printed = (asked / "printed").read_text()
        return shell.wait()

    def _fork(self, place: Path, slow: bool) -> hosts.Process:
        """A process, as what stands for python has asked for it."""
        module, name, *arguments = _split((place / "arguments").read_bytes())
        assert (module, name) == ("-m", "talora_jax.main"), (module, name)
        if not any(argument.startswith("--mode") for argument in arguments):
            arguments += self._tiny()
        told = dict(pair.split("=", 1) for pair in _split((place / "environment").read_bytes()))
        told = {name: value for name, value in told.items() if name.startswith(_TOLD)}
        process = hosts.Process(
            self.root / f"process_{place.stem}",
            functools.partial(_work, arguments, told, slow),
            DEVICES,
        )
        self.processes.append(process)
        return process

    def _tiny(self) -> list[str]:
        """What makes a run small, in place of what the page says of data and model."""
        tiny = ("data", "tasks", "weighting", "model", "adapter")
        return [
            *(flag for flag in kills.CONFIG if re.match(rf"--config\.({'|'.join(tiny)})\b", flag)),
            "--config.adapter.kind=none",
            f"--config.data.dir={self.root}/records",
            f"--config.steps={STEPS}",
            "--config.eval_every=0",
            "--config.log_every=1",
            "--config.num_pictures=0",
            f"--config.hosts.heartbeat_timeout={hosts.HEARTBEAT}",
        ]

    def _is_at(self, run: str, step: int) -> bool:
        metrics = self.root / "runs" / run / "metrics.jsonl"
        return f'"step": {step},' in (metrics.read_text() if metrics.exists() else "")

    def numbers(self, run: str) -> dict[tuple, float]:
        """All that a run logged, but for times, by step, split and name."""
        return {
            (row["step"], row["split"], name): value
            for row in read_metrics(self.root / "runs" / run / "metrics.jsonl")
            for name, value in row.items()
            if name not in ("step", "split", "step_time")
        }

    def went(self, what: str, statuses: Sequence[int], *said: str) -> bool:
        """Whether the processes of the last command ended so, and have printed this, each once."""
        outs = "".join(process.out.read_text() for process in self.processes)
        good = self.statuses == list(statuses) and all(len(re.findall(x, outs)) == 1 for x in said)
        told = "" if good else (self.printed, outs, [p.errors.read_text() for p in self.processes])
        return hosts.expect(what, good, (self.statuses, told))


def _split(text: bytes) -> list[str]:
    return text.decode().split("\0")[:-1]


def _for_shells(status: int) -> int:
    return status if status >= 0 else 128 - status


def _job() -> int:
    """The number of a job whose port, as JAX makes it of that, is free."""
    for job in range(2**12):
        with contextlib.suppress(OSError):
            socket.create_server(("", 2**16 - 2**12 + job)).close()
            return job
    raise OSError("no port is free")


def _work(arguments: Sequence[str], told: Mapping[str, str], slow: bool) -> None:
    os.environ |= told
    if slow:
        # JAX looks once a second whether there was a SIGTERM: by then there must be steps to come.
        after = Stop.after
        Stop.after = lambda stop, step: time.sleep(0.2) or after(stop, step)
    if "TPU_WORKER_HOSTNAMES" in told:
        cloud_tpu_cluster.running_in_cloud_tpu_vm = True
    talora(arguments)


def commands(cluster: Cluster) -> bool:
    """All commands of the page, in its order."""
    box, boxes, slice_, slices, script, submit, elsewhere, evaluate = re.findall(
        r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL
    )
    eight, resumes = r"; 8 cpu device\(s\)\n", "Resuming after step"
    # One box
    cluster.run(box)
    good = cluster.went("one box", [0], rf"; {DEVICES} cpu device\(s\)\n")
    cluster.run(boxes)
    good &= cluster.went("two boxes", [0, 0], eight)
    # TPUs
    status = cluster.run(slice_, stop="slice")
    good &= cluster.went("a slice, preempted", [hosts.REQUEUED] * 2, eight)
    good &= hosts.expect("a slice: the status is handed on", status == hosts.REQUEUED, status)
    cluster.run(slices)
    good &= cluster.went("two slices", [0, 0], eight)
    # SLURM
    (cluster.root / submit.split()[1]).write_text(cluster.here(script))
    cluster.run(submit, stop="slurm")
    good &= cluster.went("SLURM", [hosts.REQUEUED] * 2 + [0, 0], resumes, "Wrote")
    jobs = re.findall("(?:requeued after|ended with) .*", cluster.printed)
    good &= hosts.expect(
        "SLURM: requeued once", jobs == ["requeued after 143", "ended with 0"], jobs
    )
    # Afterwards
    cluster.run(elsewhere)
    good &= cluster.went("on another shape", [0], resumes, rf"; {DEVICES} cpu device\(s\)\n")
    cluster.run(evaluate)
    good &= cluster.went("two evaluate", [0, 0], "semantic/miou")
    # Unbroken on two boxes; preempted, and then on the same or on another shape.
    unbroken, *others = (cluster.numbers(run) for run in ("boxes", "slurm", "slice"))
    for run, theirs in zip(("slurm", "slice"), others, strict=True):
        same = theirs == pytest.approx(unbroken, rel=hosts.CLOSE, abs=hosts.CLOSE)
        good &= hosts.expect(f"{run}: the numbers of an unbroken run", same)
    return good


def main() -> int:
    setup.make_model = kills.make_linear
    root = Path(tempfile.mkdtemp(prefix="talora_jax_many_hosts_"))
    try:
        return 0 if commands(Cluster(root)) else 1
    finally:
        for process in hosts.Process.running:
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(root)


if __name__ == "__main__":
    run_command(main)
