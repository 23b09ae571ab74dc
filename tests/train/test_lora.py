"""LoRA: the adapted model, the merged model, and which layers are reached."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL_TINY, SMALL_VIT, random_params
from flax.traverse_util import flatten_dict

from samjax.errors import InputError
from samjax.model.sam import Prompts, decode_masks, encode_image
from samjax.model.stack import stack_blocks
from samjax.train import lora

REMAT = replace(SMALL_VIT, encoder=replace(SMALL_VIT.encoder, remat=True))


def adapted(config, where="both"):
    """Parameters with factors that do something."""
    params = random_params(SMALL_TINY if config is SMALL_TINY else SMALL_VIT)
    if config.encoder is not SMALL_TINY.encoder and config.encoder.scan:
        _, params = stack_blocks(SMALL_VIT, params)
    factors = lora.init_lora(params, 3, where, jax.random.key(0))
    random = np.random.default_rng(1)
    factors = jax.tree.map(lambda x: x + 0.1 * random.standard_normal(x.shape, np.float32), factors)
    return params | {"lora": factors}


def outputs(config, params):
    pixels = jnp.asarray(np.random.default_rng(2).standard_normal((1, *config.image_size, 3), np.float32))
    prompts = Prompts(jnp.full((1, 1, 2, 2), 20.0), jnp.array([[[1, -1]]]))
    features = encode_image(config, params, pixels)
    return features, *decode_masks(config, params, features, prompts)


def assert_close(a, b, tolerance=2e-5):
    for x, y in zip(a, b):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max())


@pytest.mark.parametrize("config", [SMALL_VIT, REMAT, replace(SMALL_VIT, encoder=replace(SMALL_VIT.encoder, scan=True)),
                                    SMALL_TINY], ids=["vit", "remat", "scan", "tiny"])
def test_merged_is_adapted(config):
    params = adapted(config)
    run = jax.jit(outputs, static_argnums=0)
    with lora.active():
        used = jax.jit(lambda params: outputs(config, lora.join(params)))(params)
    merged = lora.merge(params)
    assert set(merged) == {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert_close(used, run(config, merged))
    plain = run(config, {name: branch for name, branch in params.items() if name != "lora"})
    assert all(np.abs(a - b).max() > 0.05 * np.abs(b).max() for a, b in zip(used, plain))


def test_it_starts_as_the_model():
    params = random_params(SMALL_VIT)
    factors = lora.init_lora(params, 2, "both", jax.random.key(0))
    merged = flatten_dict(lora.merge(params, factors), sep="/")
    for path, value in flatten_dict(params, sep="/").items():
        np.testing.assert_array_equal(merged[path], value)


def test_merge_adds_the_product():
    params = adapted(SMALL_VIT)
    merged = flatten_dict(lora.merge(params), sep="/")
    factors = flatten_dict(params["lora"], sep="/")
    for path, value in flatten_dict(random_params(SMALL_VIT), sep="/").items():
        layer = path.removesuffix("/kernel")
        if f"{layer}/lora_a" in factors:
            value = value + np.float64(factors[f"{layer}/lora_a"]) @ np.float64(factors[f"{layer}/lora_b"])
        np.testing.assert_allclose(merged[path], value, rtol=1e-5, atol=1e-6)
    assert lora.merge(random_params(SMALL_VIT)).keys() == random_params(SMALL_VIT).keys()


@pytest.mark.parametrize("where, branches", [("encoder", {"image_encoder"}), ("decoder", {"mask_decoder"}),
                                             ("both", {"image_encoder", "mask_decoder"})])
@pytest.mark.parametrize("config", [SMALL_VIT, SMALL_TINY], ids=["vit", "tiny"])
def test_which_layers(config, where, branches):
    params = random_params(config)
    factors = lora.init_lora(params, 2, where, jax.random.key(0))
    assert set(factors) == branches
    shapes = flatten_dict(params, sep="/")
    layers = {path.rpartition("/")[0] for path in flatten_dict(factors, sep="/")}
    for path, value in flatten_dict(factors, sep="/").items():
        layer, _, name = path.rpartition("/")
        inputs, features = shapes[f"{layer}/kernel"].shape
        assert value.shape == ((inputs, 2) if name == "lora_a" else (2, features))
    if "image_encoder" in branches:
        in_encoder = {layer for layer in layers if layer.startswith("image_encoder")}
        assert len(in_encoder) == 4 * 4  # four transformer blocks in either; TinyViT's first stage has none
        assert all(layer.endswith(("attn/qkv", "attn/proj", "mlp_in", "mlp_out")) for layer in in_encoder)
    if "mask_decoder" in branches:
        assert sum(layer.startswith("mask_decoder") for layer in layers) == 2 * (3 * 4 + 2) + 4


def test_every_factor_is_used():
    """Each has a gradient: the interceptor reaches all the layers that were given factors."""
    config, params = SMALL_VIT, adapted(SMALL_VIT)

    @jax.jit
    @jax.grad
    def gradient(factors):
        with lora.active():
            return sum(jnp.cos(x).sum() for x in outputs(config, lora.join(params | {"lora": factors})))

    for path, value in flatten_dict(gradient(params["lora"]), sep="/").items():
        if not path.startswith("mask_decoder") or "/k/" not in path:  # a softmax may be blind to its keys
            assert np.abs(value).max() > 1e-7, path


def test_a_wrong_place_is_named():
    with pytest.raises(InputError, match="neck.*encoder, decoder, both"):
        lora.init_lora({}, 2, "neck", jax.random.key(0))
