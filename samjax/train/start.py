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
from samjax.train.recipe import Recipe
from samjax.train.training_options import TrainingOptions, config_of, remat_of
from samjax.weights import resolve

RESIZED = ("image_encoder/pos_embed", "image_encoder/patch_embed/kernel")  # where a pretrained ViT's have other sides


class Start(NamedTuple):
    """config: of the files that result. given: what is known of the parameters before anything is drawn, by path as
    files hold them; all of them, or a pretrained encoder's. extras: of the file that was read. sources: files that
    decide what the run is."""

    config: SamConfig
    given: dict
    extras: dict
    sources: tuple[Path, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is to be drawn."""
        return "mask_decoder/iou_token" in self.given


def describe(options: TrainingOptions) -> Start:
    """What a run begins from, but for random numbers: quick. Raises InputError: what is named cannot be read or does
    not fit."""
    found = _of_a_model(options) if options.init else _of_an_architecture(options)
    remat_of(options, found.config)
    return found


def read_trainable(path: Path) -> convert.Model:
    """A model file. Raises InputError for one that cannot be trained."""
    model = convert.read(path)
    if model.int8:
        raise InputError(f"{path} holds int8 weights, which cannot be trained: start from the float32 model")
    return model


def _of_a_model(options: TrainingOptions) -> Start:
    path = resolve(options.init)
    model = read_trainable(path)
    config = plain(model.config)
    config, params = resize_positions(config, model.params(), _size(options, config))
    return Start(config, convert.flatten(params), model.extras, (path,))


def _of_an_architecture(options: TrainingOptions) -> Start:
    config = plain(config_of(options))
    given = read_pretrained(options.encoder, config) if options.encoder else {}
    sources = (Path(options.encoder),) if options.encoder else ()
    return Start(replace(config, image_size=_size(options, config)), given, {}, sources)


def plain(config: SamConfig) -> SamConfig:
    """As files should have it, without what belongs to a training."""
    config = convert.stored_form(config)
    return replace(config, dtype="float32", encoder=replace(config.encoder, remat=False, drop_path=0.0),
                   decoder=replace(config.decoder, dropout=0.0, mixed=False))


def deepened(start: Start, recipe: Recipe) -> Start:
    """The same with the decoder that the recipe asks for. Raises InputError where a model has another one."""
    decoder = start.config.decoder
    if recipe.decoder_depth in (0, decoder.depth):
        return start
    if start.whole:
        raise InputError(f"the recipe asks for a decoder of {recipe.decoder_depth} layers, and {start.sources[0]} has "
                         f"{decoder.depth}: --set decoder_depth=0 keeps it")
    return start._replace(config=replace(start.config, decoder=replace(decoder, depth=recipe.decoder_depth)))


def begin(start: Start, seed: int) -> dict:
    """The parameters before the first step, on the host, blocks stacked; what is not given is drawn."""
    flat = dict(start.given)
    if not start.whole:
        # Compiled, so that the forward pass that Flax traces for the shapes is not run.
        drawn = stored(start.config, jax.jit(partial(init, scanned(start.config)))(jax.random.key(seed)))
        for path in set(RESIZED) & set(flat):
            flat[path] = jax.image.resize(jnp.asarray(flat[path]), drawn[path].shape, "bicubic", antialias=False)
        flat = drawn | flat
    params = nest(flat)
    if stackable(start.config):
        params = stack_blocks(start.config, params)[1]
    return jax.tree.map(np.asarray, params)


def trained_config(options: TrainingOptions, config: SamConfig) -> SamConfig:
    """The config that the step is made of: blocks stacked, memory saved, the dtype of the computation."""
    config = scanned(config)
    return replace(config, encoder=replace(config.encoder, remat=remat_of(options, config)), dtype=options.dtype)


def scanned(config: SamConfig) -> SamConfig:
    """The same model with its blocks stacked, where that is of use: deep ones compile in a fraction of the time."""
    return replace(config, encoder=replace(config.encoder, scan=True)) if stackable(config) else config


def stored(config: SamConfig, params: dict) -> dict:
    """Parameters as files hold them, by path, blocks apart."""
    return convert.flatten(unstack_blocks(scanned(config), params)[1])


def stackable(config: SamConfig) -> bool:
    """Whether a scan over the blocks is of use: a ViT of several groups of blocks, all alike."""
    try:
        return isinstance(config.encoder, ViT) and group_shape(config.encoder)[0] > 1
    except ValueError:
        return False


def _size(options: TrainingOptions, config: SamConfig) -> tuple[int, int]:
    if not options.image_size:
        return config.image_size
    step = math.lcm(config.encoder.stride, 16)
    if options.image_size % step:
        raise InputError(f"--image-size {options.image_size}: it must be a multiple of {step}")
    return options.image_size, options.image_size
