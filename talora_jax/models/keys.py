"""Keys for the random numbers that a model begins with."""

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray


class Keys:
    """The keys that `nnx.Rngs` gives for parameters, by a count that is no array.

    Made for every parameter while a model is traced, half the time of which flax's own count would
    take: setting it asks a tracer for its sharding, and JAX puts into words why there is none.

    >>> keys, rngs = Keys(0), nnx.Rngs(0)
    >>> bool((keys.params() == rngs.params()) & (keys.params() == rngs.params()))
    True
    """

    def __init__(self, key: int | PRNGKeyArray):
        self._key = jax.random.key(key) if isinstance(key, int) else key
        self._count = 0

    def params(self) -> PRNGKeyArray:
        """The next key."""
        key = jax.random.fold_in(self._key, self._count)
        self._count += 1
        return key


Rngs = nnx.Rngs | Keys
