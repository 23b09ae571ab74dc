"""The optimiser: the paper's schedule, layer decay, weight decay, and what is trained at all."""

import math
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL_TINY, SMALL_VIT, random_params
from flax.traverse_util import flatten_dict

from samjax.config import LITE_MEDSAM, VIT_B, VIT_H, VIT_L, VIT_T
from samjax.model.sam import init
from samjax.model.stack import stack_blocks, unstack_blocks
from samjax.train import optim, recipe
from samjax.train.recipe import Recipe

UNFOLDED = replace(VIT_T, encoder=replace(VIT_T.encoder, fold_batch_norm=False))
STACKED = replace(VIT_L, encoder=replace(VIT_L.encoder, scan=True))
CONFIGS = [VIT_B, VIT_L, VIT_H, VIT_T, UNFOLDED, LITE_MEDSAM, STACKED]


@cache
def paths(config):
    """path -> shape of every parameter."""
    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()}


@pytest.mark.parametrize("step, rate", [
    (0, 8e-4 / 250), (124, 4e-4), (249, 8e-4), (250, 8e-4), (59_999, 8e-4), (60_000, 8e-5), (86_665, 8e-5),
    (86_666, 8e-6), (89_999, 8e-6)])
def test_the_papers_schedule(step, rate):
    np.testing.assert_allclose(optim.make_schedule(recipe.VIT_H)(jnp.array(step)), rate, rtol=1e-5)


def test_other_schedules():
    cosine = optim.make_schedule(Recipe(schedule="cosine", steps=1010, warmup=10, lr=1.0))
    np.testing.assert_allclose([cosine(s) for s in (0, 9, 10, 510, 260, 1010, 5000)],
                               [0.1, 1, 1, 0.5, 0.5 + math.sqrt(0.125), 0, 0], atol=1e-6)
    constant = optim.make_schedule(Recipe(schedule="constant", warmup=0, lr=0.5))
    assert [float(constant(s)) for s in (0, 10**6)] == [0.5, 0.5]


@pytest.mark.parametrize("path, layers", [
    ("image_encoder/pos_embed", 13), ("image_encoder/patch_embed/kernel", 13),
    ("image_encoder/blocks_0/norm1/bias", 12),
    ("image_encoder/blocks_3/attn/rel_pos_h", 9), ("image_encoder/blocks_11/attn/qkv/kernel", 1),
    ("lora/image_encoder/blocks_11/attn/qkv/lora_a", 1), ("image_encoder/neck/conv1/kernel", 0),
    ("mask_decoder/blocks_0/mlp/layers_0/kernel", 0), ("prompt_encoder/no_mask", 0)])
def test_layer_decay_of_vit_b(path, layers):
    assert path.removeprefix("lora/") in paths(VIT_B) or path.startswith("lora/")
    assert optim.layer_rate(VIT_B, recipe.VIT_B, path) == pytest.approx(0.6**layers)


@pytest.mark.parametrize("path, layers", [
    ("patch_embed_0/kernel", 13), ("stages_0_blocks_0/conv1/kernel", 12), ("stages_0_blocks_1/conv1/kernel", 11),
    ("stages_0_downsample/conv1/kernel", 11), ("stages_1_blocks_0/attn/bias", 10),
    ("stages_2_blocks_5/mlp_in/kernel", 3),
    ("stages_2_downsample/conv2/bias", 3), ("stages_3_blocks_1/attn/qkv/kernel", 1), ("neck/conv2/kernel", 0)])
def test_layer_decay_of_tiny_vit(path, layers):
    path = f"image_encoder/{path}"
    assert path in paths(VIT_T)
    assert optim.layer_rate(VIT_T, Recipe(layer_decay=0.8), path) == pytest.approx(0.8**layers)


@pytest.mark.parametrize("config", [SMALL_VIT, VIT_L], ids=["small", "vit_l"])
def test_stacked_blocks_decay_as_unstacked_ones(config):
    """Rates laid out as a tree, stacked like the blocks."""
    settings = Recipe(layer_decay=0.7)
    scanned = replace(config, encoder=replace(config.encoder, scan=True))
    rates = {path: optim.layer_rate(scanned, settings, path) for path in paths(scanned)}
    tree = optim.unite({path: np.asarray(rate, np.float32) for path, rate in rates.items()})
    for path, rate in flatten_dict(unstack_blocks(scanned, tree)[1], sep="/").items():
        np.testing.assert_allclose(rate, optim.layer_rate(config, settings, path), rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_weight_decay_is_for_kernels(config):
    """Every matrix and convolution, and nothing else: no vector, no table, no token."""
    for path, shape in paths(config).items():
        stacked = 2 if "groups/windowed" in path else 1 if "groups/global" in path else 0
        tables = ("pos_embed", "rel_pos_h", "rel_pos_w", "gaussian", "iou_token", "mask_tokens", "attn/bias")
        assert optim.decays(path) == (len(shape) - stacked > 1 and not path.endswith(tables)), path


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_buffers_are_never_trained(config):
    trained = lambda train: {path for path in paths(config) if optim.trained(Recipe(train=train), path)}
    everything = trained("everything")
    left = {path.rpartition("/")[2] for path in paths(config)} - {path.rpartition("/")[2] for path in everything}
    assert left == ({"gaussian", "norm_mean", "norm_var"} if config is UNFOLDED else {"gaussian"})
    assert trained("encoder") | trained("decoder") == everything and not trained("encoder") & trained("decoder")
    assert {path.split("/")[0] for path in trained("decoder")} == {"prompt_encoder", "mask_decoder"}
    assert trained("lora") == set() and trained("lora+decoder") == trained("decoder")
    assert optim.trained(Recipe(train="lora"), "lora/mask_decoder/blocks_0/self_attn/q/lora_a")


def test_split_and_unite():
    params = random_params(SMALL_TINY)
    trained, frozen = optim.split(params, partial(optim.trained, Recipe()))
    assert not set(flatten_dict(trained)) & set(flatten_dict(frozen)) and frozen
    together = optim.unite(trained, frozen)
    assert jax.tree.structure(together) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(params)))


@pytest.mark.parametrize("clip, scan", [(0.0, False), (1.0, True)])
def test_adamw_by_hand(clip, scan):
    """Two updates, against Adam's formula in float64 with the path's rate and decay."""
    settings = Recipe(clip=clip, warmup=4, weight_decay=0.5)
    config = replace(SMALL_VIT, encoder=replace(SMALL_VIT.encoder, scan=scan))
    params = random_params(SMALL_VIT)
    if config.encoder.scan:
        _, params = stack_blocks(SMALL_VIT, params)
    gradients = [jax.tree.map(lambda x, s=s: np.float32(s) * np.cos(7 * x), params) for s in (1.0, -0.3)]
    optimiser = optim.make_optimiser(config, settings)
    update = jax.jit(lambda gradient, state, values, step: optimiser.update(gradient, state, values, step=step))
    state, values = optimiser.init(params), params
    moments = dict.fromkeys(flatten_dict(params, sep="/"), (0.0, 0.0))
    expected = {path: value.astype(np.float64) for path, value in flatten_dict(params, sep="/").items()}
    for step, gradient in enumerate(gradients):
        updates, state = update(gradient, state, values, jnp.array(step))
        values = jax.tree.map(np.add, values, updates)
        norm = math.sqrt(sum(float(np.square(x, dtype=np.float64).sum()) for x in jax.tree.leaves(gradient)))
        for path, g in flatten_dict(gradient, sep="/").items():
            g = g.astype(np.float64) * min(1.0, clip / norm if clip else 1.0)
            m, v = moments[path]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            moments[path] = m, v
            move = m / (1 - 0.9 ** (step + 1)) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
            move += 0.5 * path.endswith("kernel") * expected[path]
            rate = np.asarray(optim.layer_rate(config, settings, path))
            rate = rate.reshape(rate.shape + (1,) * (g.ndim - rate.ndim))
            expected[path] = expected[path] - 8e-4 * (step + 1) / 4 * rate * move
    for path, value in flatten_dict(values, sep="/").items():
        np.testing.assert_allclose(value, expected[path], rtol=2e-5, atol=2e-7, err_msg=path)


def test_finite():
    assert optim.finite({"a": jnp.ones(3)}, jnp.array(1.0))
    assert not optim.finite({"a": jnp.array([1.0, jnp.nan])}) and not optim.finite(jnp.array(jnp.inf))
