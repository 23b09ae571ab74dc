"""What a training begins from: random numbers, a pretrained ViT as the encoder, or a model."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import convert
from convert.model import nest
from convert.pretrained import read_pretrained
from samjax.config import SamConfig, ViT
from samjax.errors import InputError
from samjax.model.image_encoder import group_shape
from samjax.model.resize import resize_positions
from samjax.model.sam import init
from samjax.model.stack import stack_blocks, unstack_blocks
from samjax.train import lora
from samjax.train.recipe import Recipe
from samjax.train.training_options import TrainingOptions, config_of, remat_of
from samjax.weights import resolve


class Start(NamedTuple):
    """config: of the files that result. params: as they are trained, on the host, blocks stacked. extras: of the file
    that was read."""

    config: SamConfig
    params: dict
    extras: dict


def begin(options: TrainingOptions, recipe: Recipe) -> Start:
    """The model before the first step. Raises InputError: what is named cannot be read or does not fit."""
    start = _stored(options, recipe) if options.init else _random(options, recipe)
    config, params = stack_blocks(start.config, start.params) if stackable(start.config) else start[:2]
    return start._replace(params=jax.tree.map(np.asarray, params))


def trained_config(options: TrainingOptions, config: SamConfig) -> SamConfig:
    """The config that the step is made of: blocks stacked, memory saved, the dtype of the computation."""
    config = scanned(config)
    return replace(config, encoder=replace(config.encoder, remat=remat_of(options, config)), dtype=options.dtype)


def scanned(config: SamConfig) -> SamConfig:
    """The same model with its blocks stacked, where that is of use: deep ones compile in a fraction of the time."""
    return replace(config, encoder=replace(config.encoder, scan=True)) if stackable(config) else config


def stored(config: SamConfig, params: dict) -> dict:
    """Parameters as files hold them, by path: low-rank factors merged, blocks apart."""
    return convert.flatten(unstack_blocks(scanned(config), lora.merge(params))[1])


def stackable(config: SamConfig) -> bool:
    """Whether a scan over the blocks is of use: a ViT of several groups of blocks, all alike."""
    try:
        return isinstance(config.encoder, ViT) and group_shape(config.encoder)[0] > 1
    except ValueError:
        return False


def _stored(options: TrainingOptions, recipe: Recipe) -> Start:
    path = resolve(options.init)
    model = convert.read(path)
    if model.int8:
        raise InputError(f"{path} holds int8 weights, which cannot be trained: start from the float32 model")
    if recipe.decoder_depth not in (0, model.config.decoder.depth):
        raise InputError(f"the recipe asks for a decoder of {recipe.decoder_depth} layers, and {path} has "
                         f"{model.config.decoder.depth}: --set decoder_depth=0 keeps it")
    config, params = _sized(options, model.config, model.params())
    return Start(config, params, model.extras)


def _random(options: TrainingOptions, recipe: Recipe) -> Start:
    config = convert.stored_form(config_of(options))
    depth = recipe.decoder_depth or config.decoder.depth
    config = replace(config, decoder=replace(config.decoder, depth=depth), dtype="float32")
    before = read_pretrained(options.encoder, config) if options.encoder else {}
    config = replace(config, image_size=_size(options, config))
    # Compiled, so that the forward pass that Flax traces for the shapes is not run.
    params = jax.jit(partial(init, scanned(config)))(jax.random.key(options.seed))
    flat = stored(config, params) | {path: array for path, array in before.items() if not path.endswith("pos_embed")}
    for path in (path for path in before if path.endswith("pos_embed")):
        flat[path] = jax.image.resize(jnp.asarray(before[path]), flat[path].shape, "bicubic", antialias=False)
    return Start(config, nest(flat), {})


def _sized(options: TrainingOptions, config: SamConfig, params: dict) -> tuple[SamConfig, dict]:
    return resize_positions(config, params, _size(options, config))


def _size(options: TrainingOptions, config: SamConfig) -> tuple[int, int]:
    if not options.image_size:
        return config.image_size
    step = math.lcm(config.encoder.stride, 16)
    if options.image_size % step:
        raise InputError(f"--image-size {options.image_size}: it must be a multiple of {step}")
    return options.image_size, options.image_size


def path_of(options: TrainingOptions) -> Path | None:
    """The file whose content decides what a run is."""
    if options.init:
        return resolve(options.init)
    return Path(options.encoder) if options.encoder else None
