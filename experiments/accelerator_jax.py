"""What experiments/accelerator.py times of samjax: for each subject a function that starts the work once.

A maker returns `Subject`: a call that starts the work on the device and returns what to wait for, and how many images
(or prompts) and operations one call is. Weights are random, drawn by NumPy.
"""

import gc
from dataclasses import replace
from functools import cache, partial

import flops
import jax
import jax.numpy as jnp
import numpy as np
from accelerator_worker import Subject, serve

import samjax
from samjax import predict
from samjax.config import VIT_B, VIT_H, VIT_L, VIT_T
from samjax.model.sam import Prompts, decode_masks, encode_image
from samjax.model.stack import stack_blocks
from samjax.train.recipe import preset
from samjax.train.step import init_state, make_step, training_config

CONFIGS = {config.name: config for config in (VIT_B, VIT_L, VIT_H, VIT_T)}


def random_params(config):
    """Parameters of random numbers, the same block of them over and over: drawn in no time."""
    block = np.float32(0.02) * np.random.default_rng(3).standard_normal(1 << 20, np.float32)
    shapes = jax.eval_shape(partial(samjax.init, config), jax.random.key(0))
    one = lambda path, leaf: np.resize(block, leaf.shape) + np.float32(path[-1].key == "scale")
    return jax.device_put(jax.tree_util.tree_map_with_path(one, shapes))


def random_array(*shape, scale=1.0, seed=0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape, np.float32))


@cache
def weights(name):
    """Parameters of one model at a time stay on the device."""
    weights.cache_clear()
    gc.collect()
    return random_params(CONFIGS[name])


def matmul(dtype="bfloat16", side=8192):
    """A plain product: the measured peak that shares are taken of."""
    a, b = random_array(side, side).astype(dtype), random_array(side, side, seed=1).astype(dtype)
    return Subject(partial(jax.jit(jnp.matmul), a, b), 1, 2.0 * side**3)


def encoder(name, batch=1, dtype="bfloat16", attention="auto", int8=False):
    config = replace(CONFIGS[name], dtype=dtype, attention=attention)
    params = weights(name)
    params = samjax.quantise(params) if int8 else half(params) if dtype == "bfloat16" else params
    run = jax.jit(partial(encode_image, config))
    work = flops.encoder(config).operations * batch if name != "mobile_sam" else 77.5e9 * batch
    return Subject(partial(run, params, random_array(batch, *config.image_size, 3)), batch, work)


def half(params):
    """The encoder's large weights in what they are multiplied in."""
    cast = lambda path, x: x.astype(jnp.bfloat16) if path[-1].key == "kernel" and x.ndim >= 2 else x
    return params | {"image_encoder": jax.tree_util.tree_map_with_path(cast, params["image_encoder"])}


def decoder(n, dtype="bfloat16"):
    """n prompts of one point each, beside one picture's features."""
    config = replace(VIT_T, dtype=dtype)
    params = weights("mobile_sam")
    points = np.random.default_rng(2).uniform(0, 1024, (1, n, 1, 2)).astype(np.float32)
    prompts = Prompts(jnp.asarray(np.concatenate([points, np.zeros_like(points)], 2)),
                      jnp.asarray(np.tile(np.array([1, -1], np.int32), (1, n, 1))))
    run = jax.jit(partial(decode_masks, config))
    features = random_array(1, *config.grid, 256, scale=0.1)
    return Subject(partial(run, params, features, prompts), n, flops.decoder(config, 2).operations * n)


def everything(image, name="vit_h", dtype="bfloat16"):
    """All masks of a picture: a ViT with random weights, whose features are replaced by MobileSAM's real ones.

    So the work is that of a ViT-H, and what its decoder finds is real: MobileSAM's decoder is ViT-H's, tuned.
    """
    mobile, pixels = samjax.load("mobile_sam"), samjax.read_image(image)
    real = mobile.encode(pixels).features
    config = replace(CONFIGS[name], dtype=dtype, attention="auto")
    params = {**mobile.params, "image_encoder": weights(name)["image_encoder"]}

    @partial(jax.jit, static_argnums=0)
    def encode(config, params, pixels, valid):
        return real + 0.0 * encode_image(config, params, predict.normalise(config, pixels, valid))

    predict._encode = encode
    sam = samjax.Sam(config, params)
    return Subject(lambda: len(sam.everything(pixels)), 1, 0.0)


def train(name, batch, objects, remat="products", dtype="bfloat16", attention="auto"):
    """A step of the paper's recipe on one device: eleven rounds for each object."""
    weights.cache_clear()
    gc.collect()
    config = replace(CONFIGS[name], dtype=dtype, attention=attention)
    config, params = stack_blocks(config, random_params(config))
    config = replace(config, encoder=replace(config.encoder, remat=remat))
    recipe = replace(preset(name), batch=batch, objects=objects)
    state = init_state(config, recipe, params, jax.random.key(0))
    del params
    step = jax.jit(make_step(config, recipe), donate_argnums=0)
    given, held = discs(batch, objects), [state]

    def call():
        held[0], metrics = step(held[0], given)
        return metrics

    work = flops.step(training_config(config, recipe), recipe)
    return Subject(call, batch, work["useful"].operations * batch)


def discs(batch, objects, side=256):
    """Pictures of noise, and discs as their masks."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    centres = random.uniform(0.15 * side, 0.85 * side, (batch, objects, 2, 1, 1))
    radii = random.uniform(0.04 * side, 0.25 * side, (batch, objects, 1, 1))
    masks = np.hypot(y - centres[:, :, 0], x - centres[:, :, 1]) < radii
    given = {"image": random.integers(0, 256, (batch, 1024, 1024, 3), dtype=np.uint8),
             "size": np.full((batch, 2), 1024, np.int32), "masks": masks, "valid": np.ones((batch, objects), bool)}
    return jax.device_put(given)


def peak():
    """MiB that were held at most on the device since the process began."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0) / 2**20


def forget():
    weights.cache_clear()
    gc.collect()


MAKERS = {"matmul": matmul, "encoder": encoder, "decoder": decoder, "everything": everything, "train": train}

if __name__ == "__main__":
    device = jax.devices()[0]
    serve(MAKERS, jax.block_until_ready, peak, forget,
          {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__})
