"""Blockwise attention against the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import relative_error

from samjax.model import attention
from samjax.model.attention import attend, relative_positions

GRIDS = [(1, 1), (4, 4), (3, 7), (14, 14), (16, 40), (32, 32), (23, 31), (1, 600)]  # some above a block, some prime


def arrays(h, w, b=2, heads=2, d=8, seed=0, dtype=jnp.float32):
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), dtype)
    return (*(draw(b, h, w, heads, d) for _ in range(3)), draw(h, h, d), draw(w, w, d))


def naive(q, k, v, rel_h, rel_w):
    """Entry by entry in float64 NumPy."""
    q, k, v, rel_h, rel_w = (np.asarray(x, np.float64) for x in (q, k, v, rel_h, rel_w))
    out = np.zeros(q.shape)
    for b, y, x, head in np.ndindex(q.shape[:4]):
        query = q[b, y, x, head]
        scores = k[b, :, :, head] @ query / np.sqrt(len(query)) + (rel_h[y] @ query)[:, None] + rel_w[x] @ query
        weights = np.exp(scores - scores.max())
        out[b, y, x, head] = np.einsum("yx,yxd->d", weights / weights.sum(), v[b, :, :, head])
    return out


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_equals_the_definition(implementation):
    given = arrays(5, 3)
    assert relative_error(attend(*given, implementation), naive(*given)) <= 1e-5


@pytest.mark.parametrize("h, w", GRIDS)
def test_blockwise_equals_reference(h, w):
    given = arrays(h, w)
    assert relative_error(attend(*given), attend(*given, "reference")) <= 1e-5


@pytest.mark.parametrize("h, w", [(14, 14), (16, 40)])
def test_blockwise_equals_reference_in_bfloat16(h, w):
    given = arrays(h, w, dtype=jnp.bfloat16)
    found = attend(*given)
    assert found.dtype == jnp.bfloat16
    exact = attend(*(x.astype(jnp.float32) for x in given), "reference")
    assert relative_error(found.astype(jnp.float32), exact) <= 2e-2


@pytest.mark.parametrize("h, w", [(3, 5), (32, 24)])  # in one block, in two
def test_gradients_of_all_inputs(h, w):
    given = arrays(h, w)
    loss = lambda implementation: jax.jit(jax.grad(
        lambda args: jnp.sum(jnp.sin(attend(*args, implementation)))))
    for found, expected in zip(loss("xla")(given), loss("reference")(given)):
        assert relative_error(found, expected) <= 1e-5


def test_under_vmap():
    h, w = 16, 40
    given = [arrays(h, w, seed=seed) for seed in range(3)]
    mapped = jax.vmap(attend)(*(jnp.stack(xs) for xs in zip(*given)))
    for found, one in zip(mapped, given):
        assert relative_error(found, attend(*one)) <= 1e-5


def test_images_of_a_batch_do_not_meet():
    """Many windows as a batch: each equals itself alone."""
    given = arrays(7, 7, b=30)
    together = attend(*given)
    for i in (0, 13, 29):
        alone = attend(*(x[i:i + 1] for x in given[:3]), *given[3:])
        assert relative_error(together[i:i + 1], alone) <= 1e-5


def test_large_scores_do_not_overflow():
    q, k, v, rel_h, rel_w = arrays(4, 4)
    found = attend(100 * q, 100 * k, v, rel_h, rel_w)
    assert bool(jnp.isfinite(found).all()) and relative_error(found, naive(100 * q, 100 * k, v, rel_h, rel_w)) <= 1e-4


def test_no_array_of_all_pairs():
    """The program never holds tokens x tokens: what blocks are for."""
    h = w = 64
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.eval_shape(lambda: arrays(h, w, 1, 2, 16))]
    memory = jax.jit(attend).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.5 * 4 * (h * w) ** 2
    gradient = jax.jit(jax.grad(lambda *args: attend(*args).sum(), range(5)))
    assert gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes < 0.75 * 4 * (h * w) ** 2


def test_relative_positions_are_query_minus_key():
    table = jnp.arange(9.0)[:, None]
    found = relative_positions(table, 5)[..., 0]
    assert found.tolist() == [[q - k + 4 for k in range(5)] for q in range(5)]


def test_unknown_implementation_is_named():
    with pytest.raises(ValueError, match="'flash' is none of xla"):
        attend(*arrays(2, 2), "flash")
    assert attention.BLOCK > 0
