"""`python tests/micro_sweep.py …` is `python -m talora_jax.sweep …` with the size `micro`."""

import micro  # noqa: F401  # adds the size, in the processes of the runs, too

if __name__ == "__main__":
    from talora_jax.errors import run_command
    from talora_jax.experiments.sweep import main

    run_command(main)
