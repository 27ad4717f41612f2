"""Kills at random moments leave no trace; `python -m tests.kills` makes more of them."""


def test_killed_runs_end_as_one_that_was_not(start_python):
    process = start_python("-m", "tests.kills", "--kills=3", "--seed=3")
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, out + errors
    assert out.splitlines()[-1].split()[0] == "all" and out.splitlines()[-1].split()[-1] == "3"
