"""`python -m talora_jax …` is the command `talora_jax …`."""

from talora_jax.commands import cli

if __name__ == "__main__":
    cli()
