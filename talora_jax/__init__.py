"""talora_jax: Task-Aware Low-Rank Adaptation of the Segment Anything Model, in JAX."""

__version__ = "0.1.0"
