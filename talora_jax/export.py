"""python -m talora_jax.export: see `talora_jax.inference.export`."""

from talora_jax.errors import run_command
from talora_jax.inference.export import main

if __name__ == "__main__":
    run_command(main)
