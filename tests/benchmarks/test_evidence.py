"""The sweeps of docs/evidence.md: which runs they are, and what stops them."""

import pytest

from benchmarks import evidence
from talora_jax.errors import UserError
from talora_jax.experiments import sweep


@pytest.fixture
def swept(monkeypatch):
    """Names of the runs of each sweep, by its folder; nothing trains."""
    found = {}

    def record(runs, directory):
        found[directory.name] = list(runs)
        return {}

    monkeypatch.setattr(sweep, "sweep", record)
    return found


def test_every_part_is_a_sweep_that_can_run(swept, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    arguments = ["--workdir", str(tmp_path), "--seeds", "0", "1", "--tabletop", str(data)]
    assert evidence.main(arguments) == 0
    assert list(swept) == list(evidence.PARTS)
    assert len(swept["rooms"]) == 2 * (5 + 3) and len(swept["tabletop"]) == 2 * (5 + 4)
    assert swept["published"] == [f"talora-lambda1.0-published-seed{seed}" for seed in (0, 1)]
    assert len(swept["ranks"]) == 2 * 4 and len(swept["images_10"]) == 2 * 2


def test_without_its_data_the_table_top_is_left_out(swept, tmp_path):
    evidence.main(["--workdir", str(tmp_path), "--parts", "tabletop", "weights", "--seeds", "0"])
    assert list(swept) == ["weights"]


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
