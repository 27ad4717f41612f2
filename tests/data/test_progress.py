"""A bar for a person, a line now and then for a log."""

import io
import sys

import pytest

from talora_jax.data import progress as progress_module
from talora_jax.data.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    clock = iter(range(0, 100_000, 8))  # seconds
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with progress("Preparing shapes", 7, "samples") as advance:
        for _ in range(7):
            advance()
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines == [f"Preparing shapes: {done} of 7 samples" for done in (3, 6)]


def test_a_short_job_says_nothing_in_a_log(capsys):
    with progress("Preparing shapes", 2, "samples") as advance:
        advance()
        advance()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyError), progress("Preparing [x]", 2, "samples") as advance:
        advance()
        raise KeyError
    written = sys.stderr.getvalue()
    assert "Preparing [x]" in written and "1/2" in written and "samples" in written
    assert "1 of 2" not in written
