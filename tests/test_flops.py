"""The counts from shapes are those of the traced programs."""

import math
from collections import Counter
from dataclasses import replace
from functools import lru_cache, partial

import flops
import jax
import jax.extend
import jax.numpy as jnp
import pytest
from conftest import SMALL_VIT

from samjax.config import VIT_B, VIT_H, SamConfig
from samjax.model.sam import Prompts, decode_masks, encode_image, init
from samjax.train.recipe import Recipe
from samjax.train.recipe import VIT_H as PAPER


def traced(function, *args) -> Counter:
    """Operations of all products and convolutions of a function: "high" those asked for in float32's precision."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> Counter:
    total = Counter()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total[_precision(eqn)] += 2 * eqn.outvars[0].aval.size * inner
        elif eqn.primitive.name == "conv_general_dilated":
            numbers = eqn.params["dimension_numbers"]
            kernel, out = eqn.invars[1].aval, numbers.rhs_spec[0]
            total[_precision(eqn)] += 2 * eqn.outvars[0].aval.size * (kernel.size // kernel.shape[out])
        elif eqn.primitive.name == "cond":  # the branches of a choice of platform are worth the same
            total += max((_count(branch.jaxpr) for branch in eqn.params["branches"]), key=Counter.total)
        else:
            assert eqn.primitive.name != "while", "a loop of unknown length"
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                length = eqn.params["length"] if eqn.primitive.name == "scan" else 1
                total += Counter({kind: n * length for kind, n in _count(inner).items()})
    return total


def _precision(eqn) -> str:
    return "high" if jax.lax.Precision.HIGHEST in (eqn.params["precision"] or ()) else "low"


@lru_cache
def of_model(config):
    return jax.eval_shape(partial(init, config), jax.random.key(0))


CONFIGS = {"small": SMALL_VIT, "vit_b": VIT_B, "vit_h scanned": replace(VIT_H, encoder=replace(VIT_H.encoder, scan=True))}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encoder(name, dtype):
    config = replace(CONFIGS[name], dtype=dtype)
    pixels = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
    found, counted = traced(partial(encode_image, config), of_model(config), pixels), flops.encoder(config)
    assert (found["low"], found["high"]) == (counted.low, counted.high)


@pytest.mark.parametrize("config", [SMALL_VIT, replace(VIT_H, dtype="bfloat16")], ids=["small", "vit_h"])
@pytest.mark.parametrize("mask", [False, True])
def test_decoder(config, mask):
    prompts = prompts_of(config, 3, 4, mask)
    features = jax.ShapeDtypeStruct((1, *config.grid, config.channels), jnp.float32)
    found = traced(partial(decode_masks, config), of_model(config), features, prompts)
    counted = flops.decoder(config, 4, mask).times(3)
    assert (found["low"], found["high"]) == (counted.low, counted.high)


def prompts_of(config: SamConfig, n: int, slots: int, mask: bool) -> Prompts:
    array = jax.ShapeDtypeStruct
    fed = (array((1, n, *config.mask_size), jnp.float32), array((1, n), jnp.bool_)) if mask else (None, None)
    return Prompts(array((1, n, slots, 2), jnp.float32), array((1, n, slots), jnp.int32), *fed)
