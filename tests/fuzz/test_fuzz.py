"""A few cases of every kind, and that each oracle tells when what it watches is broken."""

import random
import shutil
import time

import pytest

from talora_jax import config as config_lib
from talora_jax import rgb
from talora_jax.data import memory
from talora_jax.data.folder import records, settings
from talora_jax.errors import UserError
from talora_jax.experiments import finished_run
from talora_jax.training.checkpoint import Checkpoints
from talora_jax.training.log import read_metrics
from talora_jax.weights import adapter_file, base_file
from tests.fuzz import runner
from tests.fuzz.kinds import NAMES, SHARES, kind
from tests.fuzz.runner import ACCEPTED, HANG, LINE, REFUSED, SAME, SILENT, TRACEBACK, Silent, Trial

# What is drawn is odd on purpose; the runner is as quiet.
pytestmark = pytest.mark.filterwarnings("ignore")
FEW = 20
LAST = {"step": 4, "split": "val", "semantic/miou": 0.9}  # of a run's metrics
KINDS = [pytest.param(n, marks=[pytest.mark.torch] if n == "pth" else []) for n in NAMES]


@pytest.mark.parametrize("name", KINDS)
def test_a_few_cases(name):
    tally = runner.run(kind(name), 0, range(FEW))
    assert tally.cases == FEW and not tally.failures, "\n".join(tally.failures)
    assert tally.counts[REFUSED] and tally.longest <= runner.LONGEST_LINE


def test_every_kind_has_its_share():
    assert SHARES.keys() == set(NAMES) and sum(SHARES.values()) == pytest.approx(1)


def raising(error):
    def act():
        raise error

    return act


def judged(found):
    if found == "silent":
        raise Silent("other values")
    return found


def busy():
    while True:
        pass


@pytest.mark.parametrize(
    ("act", "verdict"),
    [
        (lambda: SAME, SAME),
        (lambda: ACCEPTED, ACCEPTED),
        (raising(UserError("a sentence")), REFUSED),
        (raising(KeyError("x")), TRACEBACK),
        (raising(RecursionError()), TRACEBACK),
        (raising(SystemExit(1)), TRACEBACK),
        (lambda: "silent", SILENT),
        (raising(UserError("x" * 601)), LINE),
        (lambda: print("\x1b[31m") or SAME, LINE),
        (lambda: time.sleep(5), HANG),
        (busy, HANG),
    ],
)
def test_how_a_case_can_end(act, verdict):
    assert runner.ending_of(Trial("", act, judged), 0.2, 0.4).verdict == verdict


def test_the_table_counts_and_names_what_failed():
    tally = runner.Tally("pth")
    for act in (lambda: SAME, raising(KeyError("gone"))):
        tally.add(runner.ending_of(Trial("cut", act, judged)), "python -m … --only 3")
    assert [line.split("|")[:4] for line in runner.table([tally]).splitlines()[2:]] == [
        ["pth  ", "     2 ", "             1 ", "        0 "],
        ["all  ", "     2 ", "             1 ", "        0 "],
    ]
    (failure,) = tally.failures
    assert "pth: tracebacks: cut" in failure and "--only 3" in failure and "gone" in failure


def silent(name, cases):
    """How many cases are told to be silent."""
    return runner.run(kind(name), 1, range(cases)).counts[SILENT]


def endings(cases, place, begins, most):
    """How those cases end whose words begin so, so many of them."""
    place.mkdir(exist_ok=True)
    found = []
    for number in range(2000):
        shutil.rmtree(place)
        place.mkdir()
        trial = cases.trial(random.Random(number), place)
        if trial.what.startswith(begins):
            found.append(runner.ending_of(trial))
        if len(found) == most:
            break
    return [end.verdict for end in found]


def test_a_case_is_the_same_whichever_were_before(tmp_path):
    def what(*numbers):
        cases = kind("dataset_json")(tmp_path)
        return [cases.trial(random.Random(f"x 0 {n}"), tmp_path).what for n in numbers][-1]

    assert what(1, 2, 3) == what(3)


def test_an_adapter_that_is_not_checked(monkeypatch):
    monkeypatch.setattr(adapter_file, "check_tensors", lambda *args: None)
    assert silent("adapter", 60)


def test_a_header_that_is_not_checked(monkeypatch):
    monkeypatch.setattr(adapter_file, "check_metadata", lambda *args: None)
    assert silent("adapter", 60)


def test_a_base_that_is_not_checked(monkeypatch):
    monkeypatch.setattr(base_file, "check_tensors", lambda *args: None)
    assert silent("base", 60)


@pytest.mark.torch
def test_a_pytorch_file_that_is_not_checked_or_run(monkeypatch, tmp_path):
    import torch

    from weights_convert import pytorch_file

    cases = kind("pth")(tmp_path)
    monkeypatch.setattr("zipfile.ZipFile.testzip", lambda self: None)
    assert SILENT in endings(cases, tmp_path / "case", "_bytes_of_zip: bit", 10)
    monkeypatch.undo()
    monkeypatch.setattr(pytorch_file, "_check_records", lambda *args: None)
    assert SILENT in endings(cases, tmp_path / "case", "_numbers: records", 10)
    load = torch.load
    unsafe = {"weights_only": False}
    monkeypatch.setattr("torch.load", lambda *args, **how: load(*args, **how | unsafe))
    assert SILENT in endings(cases, tmp_path / "case", "_calls: tests.fuzz.pth.canary", 3)


def test_a_png_that_is_not_checked(monkeypatch, tmp_path):
    monkeypatch.setattr(rgb, "check_png", lambda path: None)
    cases = kind("images")(tmp_path)
    cases.formats = {"PNG"}
    assert SILENT in endings(cases, tmp_path / "case", ("_read_rgb", "_read_folder"), 300)


def test_pixels_that_are_others(monkeypatch):
    eight = rgb._to_8_bits
    monkeypatch.setattr(rgb, "_to_8_bits", lambda *args: eight(*args) ^ 1)
    assert silent("images", 60)


def test_labels_that_are_others(monkeypatch):
    monkeypatch.setattr(records, "labels_of", lambda kept, ignored: kept[::-1])
    assert silent("folders", 30)


def test_a_setting_that_is_another(monkeypatch):
    monkeypatch.setitem(settings._FIELDS, "depth_scale", (lambda value: 1000.5, "a number"))
    assert silent("dataset_json", 60)


def test_a_field_that_is_another(monkeypatch):
    monkeypatch.setattr(config_lib, "unset_empty", lambda config: config.update(seed=7))
    assert silent("configs", 60)


def test_a_workdir_that_is_not_checked(monkeypatch, tmp_path):
    cases = kind("workdirs")(tmp_path)
    monkeypatch.setattr(memory, "changes", lambda dataset, workdir: [])
    assert SILENT in endings(cases, tmp_path / "case", "_data", 3)
    monkeypatch.undo()
    monkeypatch.setattr(finished_run, "read_metrics", lambda path: read_metrics(path)[:-1] + [LAST])
    assert SILENT in endings(cases, tmp_path / "case", "_metrics", 6)
    read = Checkpoints._read

    def other(self, step, target):
        state, position = read(self, step, target)
        return {**state, "x": state["x"] + 1}, position

    monkeypatch.setattr(Checkpoints, "_read", other)
    assert SILENT in endings(cases, tmp_path / "case", "_checkpoints", 6)
