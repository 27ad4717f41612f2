"""What every benchmark's --help says: how it is called, and defaults in words."""

import importlib
import sys

import pytest

NAMES = (
    *("encoder", "joint_forward", "train_step", "adapters", "input", "tpu", "sam_parity"),
    *("evidence", "going_on", "automatic_masks", "mask_recall", "predict", "startup"),
)


@pytest.mark.parametrize("name", NAMES)
def test_help_needs_no_peer_and_reads_as_words(name, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    # A None makes importing fail, as if the package were not installed.
    for peer in ("torch", "segment_anything", "transformers"):
        monkeypatch.setitem(sys.modules, peer, None)
    monkeypatch.setattr(sys, "argv", [f"/anywhere/{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    told = capsys.readouterr().out
    assert stop.value.code == 0
    assert told.startswith(f"usage: python -m benchmarks.{name} ")
    assert f" python -m benchmarks.{name}" in told.split("\n\n", 1)[1] or name == "sam_parity"
    assert "default: [" not in told
