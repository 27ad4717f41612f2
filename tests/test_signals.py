"""A signal ends a command at once, whatever it waits for, and as the last handler of it says."""

import signal
import subprocess
import sys

import pytest

# Locks a mutex twice, which waits for ever, and no signal wakes.
WAITS = """
import ctypes, signal
from talora_jax import signals
from talora_jax.errors import run_command

def work():
    print("works", flush=True)
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    lock(mutex)

def waits_for_others():
    with signals.ending_at_once(signal.SIGINT):
        work()

def has_another_handler():
    def note(number, frame):
        raise RuntimeError("noted")

    with signals.handled({signal.SIGTERM: note}):
        print("works", flush=True)
        signal.pause()

signal.signal(signal.SIGINT, signal.default_int_handler)
run_command(%s)
"""


@pytest.mark.parametrize(
    ("command", "number", "status", "told"),
    [
        ("work", signal.SIGTERM, 143, "stopped"),
        ("waits_for_others", signal.SIGTERM, 143, "stopped"),
        ("waits_for_others", signal.SIGINT, 130, "stopped"),
        ("has_another_handler", signal.SIGTERM, 1, "RuntimeError: noted"),
    ],
)
def test_a_signal_to_a_command_that_is_in_c(command, number, status, told):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS % command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "works\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors.splitlines()[-1] == told and ("Traceback" in errors) == (status == 1)


def test_what_was_half_written_is_removed(tmp_path):
    writes = f"""
from pathlib import Path
from talora_jax.files import replacing

def writes():
    with replacing(Path({str(tmp_path)!r}) / "file") as file:
        with replacing(Path({str(tmp_path)!r}) / "folder") as folder:
            folder.mkdir()
            (folder / "half").touch()
            file.touch()
            work()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", writes + WAITS % "writes"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "works\n"
    assert len([*tmp_path.iterdir()]) == 2
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1] == "stopped\n"
    assert process.returncode == 143 and not [*tmp_path.iterdir()]


def test_what_an_import_makes_of_ctrl_c(start_python, tmp_path):
    (tmp_path / "hides_it.py").write_text(
        "import time\n"
        "print('imports', flush=True)\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    raise ImportError('hidden')\n"
    )
    imports = f"""
import importlib, signal, sys
from talora_jax.errors import run_command
sys.path.insert(0, {str(tmp_path)!r})
signal.signal(signal.SIGINT, signal.default_int_handler)
run_command(lambda: importlib.import_module("hides_it"))
"""
    process = start_python("-c", imports)
    assert process.stdout.readline() == "imports\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "stopped\n")


@pytest.mark.parametrize("where", ["finally", "atexit"])
def test_a_second_ctrl_c_ends_what_cleans_up(where):
    program = """
import atexit, signal, sys, time
from talora_jax.errors import run_command

def works(what):
    print(what, flush=True)
    time.sleep(60)

def cleans_up():
    try:
        works("works")
    finally:
        if sys.argv[1] == "finally":
            works("cleans up")

atexit.register(works, "cleans up")
signal.signal(signal.SIGINT, signal.default_int_handler)
run_command(cleans_up)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in ("works\n", "cleans up\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and set(errors.splitlines()) == {"stopped"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_command_that_loads_jax(number, start_python, tmp_path):
    command = ("-m", "talora_jax.main", "--config=rooms_tiny", f"--workdir={tmp_path}/run")
    process = start_python("-X", "importtime", *command)
    while "jaxlib" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.splitlines()[-1] == "stopped" and "Traceback" not in errors
