"""Sums over a batch that devices share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from samjax.sharding import make_mesh
from samjax.train.step import in_parts
from samjax.train.sums import summed


def total(given, batch):
    """Sums over the pictures, in a scan, of numbers that depend on each one's key."""
    scale, parts = given["scale"], given["parts"].shape[0]

    def one(part):
        noise = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(part["keys"])
        return {"sum": scale * (part["x"] + noise).sum(0), "count": jnp.float32(len(part["x"]))}

    return in_parts(one, parts, batch)


def given_and_batch(rows, parts=1):
    x = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    return ({"scale": jnp.float32(0.5), "parts": jnp.zeros(parts)},
            {"x": jnp.asarray(x), "keys": jax.random.split(jax.random.key(1), rows)})


@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("rows, parts", [(16, 1), (16, 2), (6, 1), (6, 3)])
def test_equal_to_the_sum_on_one_device(group, rows, parts):
    """Six pictures cannot be shared by eight devices: the compiler sees to them."""
    given, batch = given_and_batch(rows, parts)
    mesh = make_mesh(group)
    spread = NamedSharding(mesh, PartitionSpec(("data", "fsdp")) if rows % 8 == 0 else PartitionSpec())
    with jax.set_mesh(mesh):
        found = jax.jit(summed(total))(given, jax.device_put(batch, spread))
    for name, value in total(given, batch).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_each_device_takes_its_own_share():
    seen = []
    with jax.set_mesh(make_mesh()):
        jax.jit(summed(lambda given, batch: seen.append(batch["x"].shape) or batch["x"].sum(0))).lower(
            *given_and_batch(16))
    assert set(seen) == {(2, 3)}
    summed(lambda given, batch: seen.append(batch["x"].shape))(*given_and_batch(16))  # no mesh is known
    assert seen[-1] == (16, 3)
