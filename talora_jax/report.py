"""python -m talora_jax.report: see `talora_jax.experiments.report`."""

from talora_jax.errors import run_command
from talora_jax.experiments.report import main

if __name__ == "__main__":
    run_command(main)
