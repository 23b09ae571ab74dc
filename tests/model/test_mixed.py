"""The mask decoder of a training step in bfloat16: the same function, and no float32 product over the image."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL_VIT, random_params
from jax.extend.core import jaxprs_in_params

from samjax.model.mixed import product
from samjax.model.sam import Prompts, decode_masks
from samjax.train.recipe import Recipe
from samjax.train.step import training_config

B, N, T = 2, 3, 4
CONFIG = replace(SMALL_VIT, decoder=replace(SMALL_VIT.decoder, depth=1))


def make(config):
    """(params, features, prompts, target masks)."""
    random = np.random.default_rng(0)
    params = {name: random_params(config)[name] for name in ("prompt_encoder", "mask_decoder")}
    features = random.standard_normal((B, *config.grid, config.channels), np.float32)
    prompts = Prompts(random.uniform(0, 60, (B, N, T, 2)).astype(np.float32),
                      random.integers(-2, 3, (B, N, T)).astype(np.int32),
                      random.standard_normal((B, N, *config.mask_size), np.float32), np.ones((B, N), bool))
    return params, features, prompts, random.integers(0, 2, (B, N, 4, *config.mask_size)).astype(np.float32)


@pytest.fixture(scope="module")
def given():
    return make(CONFIG)


@pytest.fixture(scope="module")
def exact(given):
    return value_and_gradient(CONFIG, given)


def loss(config, params, features, prompts, target, key=None):
    masks = decode_masks(config, params, features, prompts, key=key)
    return jnp.mean(jax.nn.softplus(masks.logits) - masks.logits * target) + jnp.mean(jnp.square(masks.iou))


def value_and_gradient(config, given, key=None):
    """The loss, and its gradient by parameters and features as one vector."""
    run = jax.jit(jax.value_and_grad(loss, (1, 2)), static_argnums=0)
    value, gradient = run(config, *given, key)
    return float(value), np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])


def with_decoder(dtype="float32", **changes):
    return replace(CONFIG, dtype=dtype, decoder=replace(CONFIG.decoder, **changes))


def test_in_float32_it_changes_nothing(given, exact):
    value, found = value_and_gradient(with_decoder(mixed=True), given)
    assert value == pytest.approx(exact[0], abs=1e-6)
    assert np.linalg.norm(found - exact[1]) < 1e-6 * np.linalg.norm(exact[1])


def test_in_bfloat16_gradients_are_about_as_near_to_float32s(given, exact):
    distance = {}
    for mixed in (False, True):
        value, found = value_and_gradient(with_decoder("bfloat16", mixed=mixed), given)
        assert value == pytest.approx(exact[0], rel=2e-3)
        distance[mixed] = np.linalg.norm(found - exact[1])
    assert distance[True] < 2 * distance[False] and distance[True] < 0.05 * np.linalg.norm(exact[1])


def test_dropout_draws_the_same(given):
    key = jax.random.key(1)
    values = [value_and_gradient(with_decoder(mixed=mixed, dropout=0.5), given, key) for mixed in (False, True)]
    assert values[0][0] == pytest.approx(values[1][0], abs=1e-6)
    np.testing.assert_allclose(values[1][1], values[0][1], rtol=0, atol=1e-5 * np.abs(values[0][1]).max())


def products(jaxpr):
    """Types and sizes of the operands of all matrix products, inner programs' too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield [(str(each.aval.dtype), each.aval.size) for each in equation.invars]
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


def test_a_training_step_in_bfloat16_multiplies_no_float32_over_the_image():
    plain, over_image = replace(CONFIG, image_size=(256, 384), dtype="bfloat16", decode_chunk=N), {}
    for config in (plain, training_config(plain, Recipe(dropout=0.0))):
        large = B * N * np.prod(config.grid) * config.channels
        gradient = jax.grad(lambda *args, config=config: loss(config, *args), (0, 1))
        found = products(jax.make_jaxpr(gradient)(*make(config)).jaxpr)
        over_image[config.decoder.mixed] = [
            {dtype for dtype, _ in pair} for pair in found if max(size for _, size in pair) >= large]
    assert len(over_image[True]) >= 20 and all(types == {"bfloat16"} for types in over_image[True])
    assert sum("float32" in types for types in over_image[False]) >= 10  # as answers have it
    assert not training_config(CONFIG, Recipe()).decoder.mixed
    assert not training_config(plain, Recipe(train="encoder")).decoder.mixed  # the decoder answers as at inference


@pytest.mark.parametrize("pattern, x, y", [("bnrc,bnpc->bnrp", (2, 3, 5, 4), (2, 3, 7, 4)),
                                           ("bnrp,bnrc->bnpc", (2, 3, 5, 7), (2, 3, 5, 4))])
def test_product_has_the_gradients_of_einsum(pattern, x, y):
    random = np.random.default_rng(0)
    x, y = (random.standard_normal(shape, np.float32) for shape in (x, y))
    out, pull = jax.vjp(lambda x, y: product(pattern, "float32", x, y), x, y)
    expected, expected_pull = jax.vjp(lambda x, y: jnp.einsum(pattern, x, y), x, y)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
    for a, b in zip(pull(out), expected_pull(out), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
