"""python -m talora_jax.sweep: see `talora_jax.experiments.sweep`."""

from talora_jax.errors import run_command
from talora_jax.experiments.sweep import main

if __name__ == "__main__":
    run_command(main)
