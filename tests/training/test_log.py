"""What a run tells of its pace."""

import io

import rich.console

from talora_jax.training import log


def test_the_time_left_counts_what_waits_and_the_step_time_does_not(monkeypatch):
    now = 0.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now)
    console = rich.console.Console(file=io.StringIO(), width=200)
    with log.Progress(console, 1000, 0) as progress:
        for step in range(1, 102):
            # Every tenth step waits for images.
            now += 11.0 if step % 10 == 0 else 1.0
            progress.advance(step)
        progress.line(100, {"depth/loss": 0.5})
    assert progress.step_time() == 1.0
    told = "step 100/1000  1.00 s/step  left 00:30:00  depth/loss 0.5"
    assert told in console.file.getvalue()
