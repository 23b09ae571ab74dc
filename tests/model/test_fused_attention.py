"""Fused attention against the plain form: kernels interpreted on the CPU, and lowered for their platforms."""

import importlib
import json
import re
from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL_DECODER, SMALL_VIT, random_params
from golden_files import relative_error

from samjax.config import ViT
from samjax.errors import InputError
from samjax.model import attention_tpu
from samjax.model.attention import attend
from samjax.model.sam import encode_image
from samjax.parallel import mesh_step

KERNELS = ["interpret_tpu"]
FOLDED = ["folded", "interpret_splash"]
COLLECTIVE = re.compile(r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def arrays(h, w, d=8, b=1, heads=2, seed=0, dtype=jnp.float32):
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), dtype)
    return (*(draw(b, h, w, heads, d) for _ in range(3)), draw(h, h, d), draw(w, w, d))


@lru_cache
def program(implementation):
    """Jitted: the five arrays -> the output, and gradients of all five."""
    def loss(given):
        out = attend(*given, implementation).astype(jnp.float32)
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(lambda *given: jax.grad(loss, has_aux=True)(given))


def check(implementation, given, tolerance):
    (gradients, out), exact = (program(name)(*xs) for name, xs in (
        (implementation, given), ("reference", [x.astype(jnp.float32) for x in given])))
    assert relative_error(out, exact[1]) <= tolerance
    for name, found, expected in zip(["q", "k", "v", "rel_h", "rel_w"], gradients, exact[0]):
        assert found.dtype == given[0].dtype
        assert relative_error(found.astype(jnp.float32), expected) <= tolerance, name


WINDOW = (14, 14, 16)
PADDED = (9, 70, 8)  # several blocks of queries and tiles of keys, padded rows and columns


@pytest.mark.parametrize("implementation, shape", [*((name, WINDOW) for name in ["interpret_tpu", *FOLDED]),
                                                   *((name, PADDED) for name in KERNELS)])
def test_in_float32(implementation, shape):
    check(implementation, arrays(*shape), 1e-5)


@pytest.mark.parametrize("implementation, shape", [*((name, WINDOW) for name in FOLDED),
                                                   *((name, PADDED) for name in KERNELS)])
def test_in_bfloat16(implementation, shape):
    check(implementation, arrays(*shape, dtype=jnp.bfloat16), 2e-2)


@pytest.mark.parametrize("implementation", KERNELS)
def test_large_scores_do_not_overflow(implementation):
    q, k, v, rel_h, rel_w = arrays(3, 3, heads=1)
    found, expected = (jax.jit(attend, static_argnums=5)(100 * q, 100 * k, v, rel_h, rel_w, name)
                       for name in (implementation, "reference"))
    assert relative_error(found, expected) <= 1e-4


@pytest.mark.parametrize("implementation", [*KERNELS, *FOLDED])
def test_an_encoder_has_the_same_features(implementation):
    vit = ViT(width=16, depth=1, heads=1, global_blocks=(), window=3)
    config = replace(SMALL_VIT, encoder=vit, decoder=SMALL_DECODER)
    params = random_params(config)
    pixels = jnp.asarray(np.random.default_rng(1).standard_normal((2, *config.image_size, 3), np.float32))
    found, expected = (jax.jit(encode_image, static_argnums=0)(replace(config, attention=name), params, pixels)
                       for name in (implementation, "xla"))
    assert relative_error(found, expected) <= 1e-5


# -- devices -------------------------------------------------------------------------------------------------


def test_a_step_over_a_mesh_needs_no_more(implementation="interpret_tpu"):
    """As above, where compilers take no advice (TPU): the step's mesh tells each device its part."""
    q, k, v, *rel = arrays(5, 3, b=8)

    def step(state, batch, axis_name=None):
        loss = lambda rel: jnp.sum(jnp.sin(attend(*batch, *rel, implementation)))
        return {"params": jax.grad(loss)(state["params"])}, {"loss": loss(state["params"])}

    run = mesh_step(step)
    state, batch = run.place({"params": rel}), run.feed([q, k, v])
    text = run.program(state).lower(state, batch).compile().as_text()
    assert set(COLLECTIVE.findall(text)) == {"all-reduce"}
    found = run.fetch(run(state, batch)[0])["params"]
    for a, b in zip(found, program("reference")(q, k, v, *rel)[0][3:]):
        assert relative_error(a, b) <= 1e-5


# -- platforms -----------------------------------------------------------------------------------------------


def lowered(platform, implementation, b, h, w, heads, d, dtype):
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in [(b, h, w, heads, d)] * 3 + [(h, h, d), (w, w, d)]]
    return program(implementation).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("shape", [(2, 64, 64, 12, 64, jnp.bfloat16), (50, 14, 14, 16, 80, jnp.float32),
                                   (1, 23, 31, 2, 24, jnp.bfloat16)], ids=str)
def test_kernels_lower_for_tpu(shape):
    """Forward and backward, of global blocks and of windows: all that can be checked without a card."""
    assert lowered("tpu", "pallas", *shape).count("@tpu_custom_call") == 2


def test_splash_lowers_for_tpu():
    assert "tpu_custom_call" in lowered("tpu", "splash", 1, 64, 64, 2, 64, jnp.bfloat16)


def test_cudnn_lowers_for_gpu(monkeypatch):
    """With the presence of a card pretended: JAX asks for it before it looks at the arrays."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    text = lowered("cuda", "cudnn", 1, 64, 64, 12, 64, jnp.bfloat16)
    assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text
    with pytest.raises(InputError, match="attention 'cudnn' cannot be used here .*fp16/bf16.*: choose 'xla'"):
        lowered("cuda", "cudnn", 1, 4, 4, 2, 64, jnp.float32)


@pytest.mark.parametrize("implementation", ["pallas", "splash", "cudnn"])
def test_a_platform_that_lacks_an_implementation_says_so(implementation):
    given = arrays(4, 4, dtype=jnp.bfloat16)
    for run in (attend, jax.jit(attend, static_argnums=5), lambda *given: program(given[-1])(*given[:-1])):
        with pytest.raises(InputError, match=f"attention '{implementation}' .*: choose 'xla'"):
            run(*given, implementation)


def test_arrays_that_kernels_cannot_take():
    with pytest.raises(InputError, match="cannot take float16"):
        attend(*arrays(4, 4, dtype=jnp.float16), "pallas")
    assert attention_tpu.refuses((1, 64, 64, 16, 80), 4) is None
    assert "fast memory" in attention_tpu.refuses((1, 512, 512, 1, 64), 2)


def test_the_experiment_writes_what_it_found(monkeypatch, tmp_path):
    experiment, out = importlib.import_module("attention"), tmp_path / "found.json"
    monkeypatch.setattr("sys.argv", ["attention.py", "--models", "vit_b", "--kinds", "global", "--grid", "3",
                                     "--dtypes", "float32", "--batch", "1", "--implementations", "xla,pallas",
                                     "--rounds", "1", "--out", str(out)])
    experiment.main()
    xla, pallas = json.loads(out.read_text())["rows"]
    assert xla["right"] and max(xla["errors"].values()) <= 1e-5 and xla["forward_ms"] > 0 and xla["both_ms"] > 0
    assert "for tpu, not for cpu" in pallas["missing"]
