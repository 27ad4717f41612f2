"""python -m talora_jax.adapter: see `talora_jax.experiments.describe_adapter`."""

from talora_jax.errors import run_command
from talora_jax.experiments.describe_adapter import main

if __name__ == "__main__":
    run_command(main)
