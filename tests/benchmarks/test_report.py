"""What benchmarks write down."""

import argparse
import json
from pathlib import Path

from benchmarks import report


def test_a_report_tells_its_command_line_paths_among_it(tmp_path):
    args = argparse.Namespace(json=tmp_path / "made" / "report.json", before=Path("checkout"))
    report.write_json(args, {"seconds": 1.5}, report.make_console())
    told = json.loads(args.json.read_text())
    assert told == {"seconds": 1.5, "arguments": {"before": "checkout"}}
