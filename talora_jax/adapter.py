"""python -m talora_jax.adapter: see `talora_jax.weights.adapter_file`."""

from talora_jax.errors import run_command
from talora_jax.weights.adapter_file import main

if __name__ == "__main__":
    run_command(main)
