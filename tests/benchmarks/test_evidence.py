"""The sweeps of docs/evidence.md: which runs they are, and what stops them."""

import pytest

from benchmarks import evidence
from talora_jax.errors import UserError
from talora_jax.experiments import finished_run, sweep


@pytest.fixture
def swept(monkeypatch):
    """Names of the runs of each folder, in their order; nothing trains."""
    found = {}

    def record(runs, directory):
        found.setdefault(directory.name, []).extend(runs)
        return {}

    monkeypatch.setattr(sweep, "sweep", record)
    return found


def test_every_part_is_a_sweep_that_can_run(swept, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    arguments = ["--workdir", str(tmp_path), "--seeds", "0", "1", "--tabletop", str(data)]
    assert evidence.main(arguments) == 0
    assert len(swept["tabletop"]) == 2 * (5 + 4) and len(swept["images_10"]) == 2 * 2
    assert swept["published"] == [f"talora-lambda1.0-published-seed{seed}" for seed in (0, 1)]
    # Methods and single tasks, starts, ranks, λ and parts: no run twice.
    assert len(set(swept["rooms"])) == len(swept["rooms"]) == 2 * (5 + 3 + 2 + 3 + 2 + 2)


def test_what_is_varied_differs_from_the_recipe(tmp_path, monkeypatch):
    """The recipe's own runs are trained once, in the part with all methods."""
    runs = {}
    monkeypatch.setattr(sweep, "sweep", lambda planned, directory: runs.update(planned) or {})
    parts = ["rooms", "inits", "ranks", "weights", "parts"]
    evidence.main(["--workdir", str(tmp_path), "--seeds", "0", "--parts", *parts])
    keys = [finished_run.key(finished_run.settings(run)) for run in runs.values()]
    assert len(set(keys)) == len(keys)


def test_without_its_data_the_table_top_is_left_out(swept, tmp_path):
    evidence.main(["--workdir", str(tmp_path), "--parts", "tabletop", "weights", "--seeds", "0"])
    assert list(swept) == ["rooms"] and len(swept["rooms"]) == 2


def test_a_stopped_sweep_stops_all(monkeypatch, tmp_path):
    asked = []

    def stopped(runs, directory):
        asked.append(directory.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "sweep", stopped)
    assert evidence.main(["--workdir", str(tmp_path)]) == 130
    assert asked == ["rooms"]


def test_mistakes_are_told_before_anything_runs(swept, tmp_path):
    with pytest.raises(UserError, match="unknown argument --sede"):
        evidence.main(["--workdir", str(tmp_path), "--sede", "3"])
    with pytest.raises(UserError, match="there is no folder .*nowhere"):
        evidence.main(["--workdir", str(tmp_path), "--tabletop", str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="no field|has no"):
        evidence.main(["--workdir", str(tmp_path), "--config.sise=3"])
    assert not swept
