"""What every benchmark's --help says: how it is called, and defaults in words."""

import importlib
import re
import sys
from pathlib import Path

import pytest

import benchmarks

NAMES = (
    *("encoder", "joint_forward", "train_step", "adapters", "input", "gpu", "tpu", "sam_parity"),
    *("evidence", "going_on", "automatic_masks", "mask_recall", "predict", "startup"),
)


def test_the_package_tells_of_every_benchmark():
    assert set(re.findall(r"^(\w+)  ", benchmarks.__doc__, re.M)) == set(NAMES)
    programs = {
        path.stem
        for path in Path(benchmarks.__file__).parent.glob("*.py")
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    assert programs == {*NAMES, "harness"}  # which the others start


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
    # Nor does Python take the end of a line away, where a command goes on in the next one.
    assert not re.search(r"\S {4,}--", told.partition("\noptions:")[0])
