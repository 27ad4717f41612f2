"""The annotations of shapes and dtypes are enforced while tests run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from talora_jax.data.folder.edges import edges_from_ids
from talora_jax.models.attention import attend
from talora_jax.models.geometry import Geometry, resize
from talora_jax.tasks import Depth


def test_wrong_dtypes_and_shapes_raise_eagerly():
    geometry = Geometry.of((4, 6), 8)
    with pytest.raises(TypeCheckError, match="images"):
        geometry.to_padded(np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(TypeCheckError, match="images"):
        geometry.to_padded(np.zeros((4, 6, 4), np.float32))
    with pytest.raises(TypeCheckError, match="columns"):
        resize(jnp.zeros((4, 6, 3)), np.zeros((8, 4), np.float32), np.zeros((12, 5), np.float32))


def test_wrong_shapes_raise_while_traced():
    q, table = jax.ShapeDtypeStruct((1, 2, 3, 3, 4), jnp.float32), jnp.zeros((5, 4))
    assert jax.eval_shape(lambda q: attend(q, q, q, table, table), q).shape == q.shape
    with pytest.raises(TypeCheckError, match="'k'"):
        jax.eval_shape(lambda q: attend(q, q[..., :2], q, table, table), q)


def test_tasks_and_data_are_checked():
    with pytest.raises(TypeCheckError, match="maps"):
        Depth("depth").loss(jnp.zeros((2, 3, 1)), jnp.zeros((2, 3, 1)))
    with pytest.raises(TypeCheckError, match="ids"):
        edges_from_ids(np.zeros((2, 3), np.int64))
