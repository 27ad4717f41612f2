"""python -m talora_jax.sweep: see `talora_jax.experiments.sweep`."""

from talora_jax.experiments.sweep import cli

if __name__ == "__main__":
    cli()
