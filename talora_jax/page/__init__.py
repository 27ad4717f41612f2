"""The page of `talora_jax.demo`: what it asks of models, its server, what a browser shows."""
