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

from samjax.config import VIT_B, VIT_H
from samjax.model.sam import Prompts, decode_masks, encode_image, init
from samjax.train.recipe import VIT_H as PAPER
from samjax.train.step import init_state, make_step, training_config


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


BIG = replace(VIT_H, dtype="bfloat16", encoder=replace(VIT_H.encoder, scan=True))
CONFIGS = {"small": SMALL_VIT, "small bfloat16": replace(SMALL_VIT, dtype="bfloat16"), "vit_h": BIG}
array = jax.ShapeDtypeStruct


@pytest.mark.parametrize("name", ["small", "vit_h"])
def test_encoder(name):
    config, pixels = CONFIGS[name], array((1, *CONFIGS[name].image_size, 3), jnp.float32)
    found, counted = traced(partial(encode_image, config), of_model(config), pixels), flops.encoder(config)
    assert (found["low"], found["high"]) == (counted.low, counted.high)


@pytest.mark.parametrize("remat", [False, True])
def test_gradient_of_the_encoder(remat):
    config = replace(BIG, encoder=replace(BIG.encoder, remat=remat))
    pixels = array((1, *config.image_size, 3), jnp.float32)
    gradient = jax.grad(lambda encoder: encode_image(config, {"image_encoder": encoder}, jnp.zeros(pixels.shape)).sum())
    found, counted = traced(gradient, of_model(config)["image_encoder"]), flops.encoder(config, remat, backward=True)
    assert (found["low"], found["high"]) == (counted.low, counted.high)


@pytest.mark.parametrize("name", ["small", "vit_h"])
@pytest.mark.parametrize("mask", [False, True])
def test_decoder(name, mask):
    config, n, slots = CONFIGS[name], 3, 4
    fed = (array((1, n, *config.mask_size), jnp.float32), array((1, n), jnp.bool_)) if mask else ()
    prompts = Prompts(array((1, n, slots, 2), jnp.float32), array((1, n, slots), jnp.int32), *fed)
    features = array((1, *config.grid, config.channels), jnp.float32)
    found = traced(partial(decode_masks, config), of_model(config), features, prompts)
    counted = flops.decoder(config, slots, mask).times(n)
    assert (found["low"], found["high"]) == (counted.low, counted.high)


def test_training_step():
    small = CONFIGS["small bfloat16"]
    config = replace(small, decode_chunk=2, encoder=replace(small.encoder, remat=True))
    recipe = replace(PAPER, objects=4)
    params = of_model(training_config(config, recipe))
    state = jax.eval_shape(lambda params: init_state(config, recipe, params, jax.random.key(0)), params)
    batch = {"image": array((1, *config.image_size, 3), jnp.uint8), "size": array((1, 2), jnp.int32),
             "masks": array((1, 4, *config.mask_size), jnp.bool_), "valid": array((1, 4), jnp.bool_)}
    found, counted = traced(make_step(config, recipe), state, batch), flops.step(config, recipe)["done"]
    assert (found["low"], found["high"]) == (counted.low, counted.high)


def test_known_sizes():
    """Published: 972 GFLOP for ViT-B with its windows padded, which samjax does not pad before the projections."""
    def padding(config):  # what the official code does besides: the projections of empty tokens
        empty = (5 * 14) ** 2 - 64**2
        windowed = config.encoder.depth - len(config.encoder.global_blocks)
        return windowed * 2 * empty * config.encoder.width**2 * 4

    assert (flops.encoder(VIT_B).operations + padding(VIT_B)) / 1e9 == pytest.approx(972, rel=0.01)
    assert flops.step(BIG, PAPER)["encoder"].operations == 3 * flops.encoder(BIG).operations
