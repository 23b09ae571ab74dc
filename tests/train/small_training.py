"""A model and batches small enough that a training step compiles and runs in a moment."""

import jax
import numpy as np
from conftest import random_params

from samjax.config import Decoder, SamConfig, TinyViT, ViT
from samjax.parallel import MeshStep
from samjax.train.recipe import Recipe

CONFIG = SamConfig("custom", ViT(width=16, depth=2, heads=2, global_blocks=(1,), window=3),
                   Decoder(depth=1, heads=2, mlp=16), channels=16, image_size=(32, 48))
TINY = SamConfig("custom", TinyViT((8, 8, 8, 8), (1, 1, 1, 1), (1, 1, 1, 1), (2, 2, 2, 2), fold_batch_norm=False),
                 Decoder(depth=1, heads=2, mlp=16), channels=16, image_size=(32, 48))
RECIPE = Recipe(batch=8, objects=2, points=3, warmup=5, layer_decay=0.6, drop_path=0.5)
QUICK = {"xla_backend_optimization_level": 0}  # programs that run for milliseconds need not be optimised for seconds


def jitted(step, **options):
    return jax.jit(step, compiler_options=QUICK, **options)


def quick_program(many, state, batch):
    """The program of a PmapStep or MeshStep, compiled as `jitted` does, for a placed state and batches like this."""
    program = many.program(state) if isinstance(many, MeshStep) else many._run
    return program.lower(state, many.feed(batch)).compile(compiler_options=QUICK)


def params_of(config=CONFIG):
    return random_params(config)


def make_batch(seed=0, images=8, objects=2, config=CONFIG):
    """Discs on a noisy ground; the second object of some images is padding."""
    random = np.random.default_rng(seed)
    h, w = config.mask_size
    y, x = np.mgrid[:h, :w] + 0.5
    centres = random.uniform((2, 2), (h - 2, w - 4), (images, objects, 2))
    radii = random.uniform(1.5, 4, (images, objects))
    masks = np.array([[np.hypot(y - cy, x - cx) < r for (cy, cx), r in zip(*row)] for row in zip(centres, radii)])
    image = random.integers(0, 90, (images, *config.image_size, 3), np.uint8)
    image += 130 * masks.any(1).repeat(4, 1).repeat(4, 2)[..., None].astype(np.uint8)
    size = np.tile(np.array(config.image_size, np.int32), (images, 1))
    size[::3] -= np.array([6, 0], np.int32)
    valid = np.ones((images, objects), bool)
    valid[1::4, -1] = False
    return {"image": image, "size": size, "masks": masks, "valid": valid}
