"""int8 weights: exact arithmetic, the same functions of the same trees, a quarter of the bytes, never trained."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL_VIT
from flax.traverse_util import flatten_dict
from golden_files import relative_error

import samjax
from samjax import int8
from samjax.config import VIT_B, VIT_H, VIT_T, ViT
from samjax.errors import InputError
from samjax.model.quantise import Quantised, dequantise, is_quantised, quantise
from samjax.model.sam import Prompts, decode_masks, encode_image, init
from samjax.model.stack import stack_blocks
from samjax.parallel import mesh_map, pmap_map
from samjax.sharding import RULES, specs
from samjax.train.recipe import Recipe
from samjax.train.step import init_state

EVERY = {"vit": "small_vit", "tiny": "small_tiny"}


@pytest.fixture(params=EVERY)
def model(request):
    return request.getfixturevalue(EVERY[request.param])


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).normal(size=(2, *SMALL_VIT.image_size, 3)).astype(np.float32)


def prompts():
    points = np.random.default_rng(1).uniform(0, 60, (1, 2, 3, 2)).astype(np.float32)
    return Prompts(points, np.int32([[[1, 0, -2], [2, 3, 1]]]))


def leaves(tree):
    return {"/".join(path): leaf for path, leaf in flatten_dict(tree).items()}


# -- the arithmetic ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [int8.ALL, int8.FEW, 1])
@pytest.mark.parametrize("shape", [(96, 40), (160, 7), (3, 3, 64, 5), (2, 3, 50, 4)])
def test_every_weight_is_met_to_half_its_scale(shape, group):
    random = np.random.default_rng(0)
    weights = (random.standard_normal(shape) * 10.0 ** random.uniform(-20, 20, shape[-1])).astype(np.float32)
    weights[..., 0, :] = 0
    weights[..., 2] = 0  # an output of zeros
    values, scale = int8.encode(weights, group)
    assert (values.dtype, values.shape) == (np.int8, shape)
    assert (scale.dtype, scale.shape) == (np.float32, int8.scale_shape(shape, group))
    size = shape[-2] // scale.shape[-2]
    assert size == max(d for d in range(1, shape[-2] + 1) if shape[-2] % d == 0 and d <= group)
    found = int8.decode(values, scale)
    error = np.abs(found.astype(np.float64) - weights) / np.repeat(scale, size, axis=-2)
    assert error.max() <= 0.5 + 127 * 2**-23  # and the rounding of the quotient
    assert not found[weights == 0].any()
    assert (scale[..., 2] == 1).all()
    assert (values != -128).all() and np.abs(values).max() == 127


@pytest.mark.parametrize("tiny", [1e-45, 1e-38, 1e-36])
def test_the_smallest_weights_are_no_nan(tiny):
    weights = np.full((4, 3), tiny, np.float32)
    found = int8.decode(*int8.encode(weights, int8.ALL))
    assert np.isfinite(found).all() and np.abs(found - weights).max() <= int8.LEAST


def test_jax_and_numpy_agree_and_a_second_time_changes_nothing():
    weights = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    values, scale = int8.encode(weights, 32)
    others = jax.jit(partial(int8.encode, group=32))(jnp.asarray(weights))
    assert isinstance(values, np.ndarray) and isinstance(others[0], jax.Array)
    assert np.abs(values - np.asarray(others[0]).astype(np.int32)).max() <= 1  # a quotient at a half
    np.testing.assert_allclose(scale, others[1], rtol=1e-6)
    again = int8.encode(int8.decode(values, scale), 32)
    np.testing.assert_array_equal(again[0], values)
    np.testing.assert_allclose(again[1], scale, rtol=1e-6)


# -- trees ---------------------------------------------------------------------------------------------------


def test_matrices_are_quantised_and_nothing_else(model):
    _, params = model
    found = leaves(quantise(params))
    assert found.keys() == leaves(params).keys()
    names = {name for name, leaf in found.items() if is_quantised(leaf)}
    assert names and all(name.endswith("/kernel") for name in names)
    assert {name.split("/")[0] for name in names} == {"image_encoder", "mask_decoder"}
    for name, weights in leaves(params).items():
        leaf = found[name]
        if name in names:
            assert leaf.shape == weights.shape and leaf.values.dtype == np.int8
            np.testing.assert_array_equal(np.asarray(leaf), leaf.unbox())
            assert np.abs(np.asarray(leaf) - weights).max() <= np.abs(weights).max() / 250
        else:
            assert leaf is weights


def test_what_is_quantised_stays_so(model):
    once = quantise(model[1])
    twice, again = quantise(once), quantise(dequantise(once))
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, once, twice))
    for name, leaf in leaves(again).items():
        if is_quantised(leaf):
            np.testing.assert_array_equal(leaf.values, leaves(once)[name].values)


@pytest.mark.parametrize("config, share", [(VIT_B, 0.295), (VIT_H, 0.261), (VIT_T, 0.57)],
                         ids=lambda x: getattr(x, "name", ""))
def test_bytes_of_the_published_models(config, share):
    if isinstance(config.encoder, ViT):  # stacked blocks are traced once
        config = replace(config, encoder=replace(config.encoder, scan=True))
    whole = jax.eval_shape(partial(init, config), jax.random.key(0))
    held = jax.eval_shape(quantise, whole)
    count = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    assert count(held) <= share * count(whole)
    for leaf in filter(is_quantised, leaves(held).values()):
        assert leaf.values.size + 4 * leaf.scale.size <= 0.2813 * 4 * leaf.values.size  # 1/4, and a scale of 32


def test_blocks_are_stacked_before_or_after(small_vit):
    config, params = small_vit
    scanned, stacked = stack_blocks(config, params)
    first, second = quantise(stacked), stack_blocks(config, quantise(params))[1]
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


# -- programs ------------------------------------------------------------------------------------------------


def predict(config, params, pixels):
    features = encode_image(config, params, pixels)
    if not isinstance(config.encoder, ViT):  # the decoder is the same
        return (features,)
    return features, decode_masks(config, params, features[:1], prompts())


def test_programs_are_those_of_the_float32_weights(model, pixels):
    config, params = model[0], quantise(model[1])
    program = jax.jit(partial(predict, config))
    found, expected = program(params, pixels), program(dequantise(params), pixels)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert one.dtype == jnp.float32
        assert relative_error(one, other) <= 1e-6
    assert 1e-5 < relative_error(found[0], program(model[1], pixels)[0]) <= 0.1


def test_they_work_in_bfloat16_and_in_a_scan_over_blocks(small_vit, pixels):
    config, params = stack_blocks(*small_vit)
    held = quantise({"image_encoder": params["image_encoder"]})
    for dtype, error in (("float32", 1e-6), ("bfloat16", 2e-2)):
        encode = jax.jit(partial(encode_image, replace(config, dtype=dtype)))
        assert relative_error(encode(held, pixels), encode(dequantise(held), pixels)) <= error


def test_transformations_take_them(small_vit):
    """vmap, and both maps over devices, of a decoder whose weights are int8."""
    config, params = small_vit[0], quantise({name: small_vit[1][name] for name in ("prompt_encoder", "mask_decoder")})
    features = np.random.default_rng(2).normal(size=(8, *config.grid, config.channels)).astype(np.float32)
    decode = lambda params, features: decode_masks(config, params, features, Prompts(
        jnp.full((len(features), 1, 1, 2), 20.0), jnp.ones((len(features), 1, 1), jnp.int32))).iou
    expected = jax.jit(jax.vmap(lambda x: decode(params, x[None])[0]))(features)
    for run in (mesh_map(decode), pmap_map(decode)):
        found = run.fetch(run(run.place(params), run.feed(features)))
        assert relative_error(found, expected) <= 1e-5


def test_rules_of_sharding_hold(small_vit):
    found = specs(quantise(small_vit[1]), RULES, 8)
    qkv = found["image_encoder"]["blocks_0"]["attn"]["qkv"]["kernel"]
    assert qkv.values == qkv.scale == jax.sharding.PartitionSpec(None, "fsdp")


# -- what must not be done -----------------------------------------------------------------------------------


def test_they_are_not_trained(small_vit):
    config, params = small_vit
    with pytest.raises(InputError, match="int8 weights cannot be trained"):
        init_state(config, Recipe(), quantise(params), jax.random.key(0))
    decoder = quantise({"mask_decoder": params["mask_decoder"]})
    with pytest.raises(TypeError, match="int8"):
        jax.grad(lambda params: 0.0)(decoder)


def test_the_public_names():
    assert samjax.quantise is quantise and samjax.dequantise is dequantise
    assert isinstance(quantise({"mask_decoder": {"blocks_0": {"mlp": {"layers_0": {
        "kernel": np.ones((4, 4), np.float32)}}}}})["mask_decoder"]["blocks_0"]["mlp"]["layers_0"]["kernel"], Quantised)
