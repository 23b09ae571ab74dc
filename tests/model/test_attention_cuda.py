"""Attention over a grid by the CUDA kernels against the plain form: interpreted on the CPU, and lowered for a card."""

import re
from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL_DECODER, SMALL_VIT, random_params
from golden_files import relative_error
from jax.sharding import NamedSharding, PartitionSpec

from samjax.config import ViT
from samjax.errors import InputError
from samjax.model import attention_cuda, attention_windows
from samjax.model.attention_cuda import Grid
from samjax.model.attention_windows import attend_grid
from samjax.model.sam import encode_image
from samjax.parallel import mesh_step
from samjax.sharding import DATA, make_mesh

COLLECTIVE = re.compile(r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def arrays(h, w, window, heads, d, b=1, seed=0, dtype=jnp.float32):
    """As experiments/attention.py has them: vectors of positions small enough for a softmax like a model's."""
    random = np.random.default_rng(seed)
    draw = lambda scale, *shape: jnp.asarray(scale * random.normal(size=shape), dtype)
    return (draw(1, b, h, w, 3 * heads * d), draw(0.3, 3 * heads * d), draw(0.3, window or h, window or h, d),
            draw(0.3, window or w, window or w, d))


@lru_cache
def program(implementation, window, heads):
    """Jitted: the four arrays -> gradients of all of them, the output."""
    def loss(given):
        out = attend_grid(*given, heads, window, given[0].dtype.name, implementation).astype(jnp.float32)
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(lambda *given: jax.grad(loss, has_aux=True)(given))


def check(given, window, heads, tolerance):
    found = program("interpret_triton", window, heads)(*given)
    exact = program("reference", window, heads)(*(x.astype(jnp.float32) for x in given))
    assert relative_error(found[1], exact[1]) <= tolerance
    for name, x, y, start in zip(["qkv", "bias", "rel_h", "rel_w"], found[0], exact[0], given):
        assert x.dtype == start.dtype
        assert relative_error(x.astype(jnp.float32), y) <= tolerance, name


OVERHANGING = (5, 7, 3, 2, 8)  # windows that hang over below and to the right, padded heads
OF_VIT_H = (14, 20, 14, 1, 80)  # a head in two parts, tiles of several rows
WHOLE = (9, 34, 0, 1, 16)  # a whole grid, a row a tile


@pytest.mark.parametrize("shape", [OVERHANGING, OF_VIT_H, WHOLE], ids=str)
def test_in_float32(shape):
    check(arrays(*shape), shape[2], shape[3], 1e-5)


@pytest.mark.parametrize("shape", [OVERHANGING, OF_VIT_H], ids=str)
def test_in_bfloat16(shape):
    check(arrays(*shape, dtype=jnp.bfloat16), shape[2], shape[3], 2e-2)


def test_large_scores_do_not_overflow():
    qkv, *others = arrays(3, 3, 0, 1, 8)
    found, expected = (jax.jit(attend_grid, static_argnums=(4, 5, 6, 7))(100 * qkv, *others, 1, 0, "float32", name)
                       for name in ("interpret_triton", "reference"))
    assert relative_error(found, expected) <= 1e-4


def test_under_vmap_inside_a_scan():
    """Two layers over a mapped axis and a batch; bias and vectors are mapped as well."""
    given = [jnp.stack(xs) for xs in zip(*(arrays(5, 3, 2, 1, 8, b=3, seed=seed) for seed in range(2)))]

    def loss(name, given):
        one = lambda qkv, *others: attend_grid(qkv, *others, 1, 2, "float32", name)
        layer = lambda qkv, scale: qkv + jnp.tile(jax.vmap(one)(qkv, *(scale * x for x in given[1:])), 3)
        out, _ = jax.lax.scan(lambda qkv, scale: (layer(qkv, scale), None), given[0], jnp.array([1.0, 0.5]))
        return jnp.sum(jnp.sin(out))

    found, expected = (jax.jit(jax.grad(lambda x, name=name: loss(name, x)))(given)
                       for name in ("interpret_triton", "reference"))
    for a, b in zip(found, expected):
        assert relative_error(a, b) <= 1e-5


@pytest.mark.parametrize("remat", [False, "products"])
def test_an_encoder_has_the_same_features_and_gradients(remat):
    vit = ViT(width=16, depth=2, heads=1, global_blocks=(1,), window=3, remat=remat, scan=bool(remat))
    config = replace(SMALL_VIT, encoder=vit, decoder=SMALL_DECODER)
    params = random_params(config)
    pixels = jnp.asarray(np.random.default_rng(1).standard_normal((2, *config.image_size, 3), np.float32))

    def features(name):
        run = lambda params: encode_image(replace(config, attention=name), params, pixels)
        gradients = jax.grad(lambda encoder: jnp.sum(jnp.sin(run({"image_encoder": encoder}))))
        return jax.jit(lambda params: (run(params), gradients(params["image_encoder"])))(params)

    (found, more), (expected, rest) = features("interpret_triton"), features("xla")
    assert relative_error(found, expected) <= 1e-5
    for a, b in zip(jax.tree.leaves(more), jax.tree.leaves(rest)):
        assert jnp.abs(a - b).max() <= 1e-4 * max(1.0, jnp.abs(b).max())


def test_devices_that_divide_the_batch_only_add_up_gradients():
    """No activation is gathered, nor moved, though compilers cannot look into a kernel."""
    given = arrays(5, 3, 3, 2, 8, b=8)
    specs = [PartitionSpec(DATA), *[PartitionSpec()] * 3]
    divided = [jax.device_put(x, NamedSharding(make_mesh(1), spec)) for x, spec in zip(given, specs)]
    compiled = program("interpret_triton", 3, 2).lower(*divided).compile()
    assert set(COLLECTIVE.findall(compiled.as_text())) == {"all-reduce"}
    gradients, out = compiled(*divided)
    assert out.sharding.spec[0] == DATA
    expected = program("reference", 3, 2)(*given)
    for a, b in zip([out, *gradients], [expected[1], *expected[0]]):
        assert relative_error(a, b) <= 1e-5


def test_a_step_over_a_mesh_needs_no_more():
    """As above, where the step's mesh tells each device its part."""
    qkv, *others = arrays(5, 3, 3, 2, 8, b=8)

    def step(state, batch, axis_name=None):
        loss = lambda others: jnp.sum(jnp.sin(attend_grid(*batch, *others, 2, 3, "float32", "interpret_triton")))
        return {"params": jax.grad(loss)(state["params"])}, {"loss": loss(state["params"])}

    run = mesh_step(step)
    state, batch = run.place({"params": others}), run.feed([qkv])
    text = run.program(state).lower(state, batch).compile().as_text()
    assert set(COLLECTIVE.findall(text)) == {"all-reduce"}
    found = run.fetch(run(state, batch)[0])["params"]
    for a, b in zip(found, program("reference", 3, 2)(qkv, *others)[0][1:]):
        assert relative_error(a, b) <= 1e-5


@pytest.mark.parametrize("shape", [(64, 64, 0, 12, 64), (64, 64, 14, 16, 80), (23, 31, 0, 2, 24)], ids=str)
def test_kernels_lower_for_a_gpu(shape, monkeypatch):
    """Terms twice, and again in the backward pass; forward; two kernels backward: all that can be checked without a
    card. (JAX 0.11 asks for one.)"""
    gpu_info = pytest.importorskip("jax._src.pallas.triton.gpu_info") if jax.__version_info__ >= (0, 11) else None
    if gpu_info:
        info = gpu_info.GpuInfo(gpu_version=None, arch_name="9.0", compute_capability=90)
        monkeypatch.setattr(gpu_info, "get_gpu_info", lambda: info)
    shapes = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in arrays(*shape)]
    text = program("triton", *shape[2:4]).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 7


def test_other_platforms_and_arrays_are_refused():
    given = arrays(4, 4, 2, 1, 8)
    for run in (attend_grid, jax.jit(attend_grid, static_argnums=(4, 5, 6, 7))):
        with pytest.raises(InputError, match="attention 'triton' is for cuda, not for cpu: choose 'xla'"):
            run(*given, 1, 2, "float32", "triton")
    with pytest.raises(InputError, match="cannot take float16"):
        attend_grid(*given, 1, 2, "float16", "interpret_triton")
    assert "a window of 129 columns" in attention_cuda.refuses(Grid(1, 129, 1, 129, 1, 8), "bfloat16")
    assert "heads of width 160" in attention_cuda.refuses(Grid(4, 4, 4, 4, 1, 160), "bfloat16")
    assert attention_cuda.refuses(Grid(64, 64, 14, 14, 16, 80), "bfloat16") is None
    with pytest.raises(ValueError, match="attention 'tritn' is none of xla, .*triton.*auto"):
        attend_grid(*given, 1, 2, "float32", "tritn")


def test_auto_is_what_was_measured(monkeypatch):
    chosen = lambda dtype="bfloat16", heads=16, side=64, window=14: attention_windows.chosen(
        (1, side, side, 3 * 1280), heads, (window or side,) * 2, dtype)
    assert not attention_windows.on_hopper() and chosen() == "xla"
    given = arrays(4, 4, 2, 1, 8)
    found, expected = (attend_grid(*given, 1, 2, "float32", name) for name in ("auto", "xla"))
    assert relative_error(found, expected) == 0
    monkeypatch.setattr(attention_windows, "on_hopper", lambda: True)
    assert [chosen(), chosen(window=0), chosen("float32"), chosen(side=96, window=0), chosen(heads=8)] == [
        "triton", "triton", "xla", "xla", "xla"]
