"""Fitting parameters to another input size or number of channels: pure functions of (config, params)."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from samjax.config import SamConfig, ViT


def resize_positions(config: SamConfig, params: dict, image_size: int | tuple[int, int]) -> tuple[SamConfig, dict]:
    """The same model for another input size (h, w), each a multiple of 16; the identity for its own size.

    The absolute table is resized bicubically on its grid. The relative tables of global blocks, of length
    2 size - 1, are interpolated linearly, as the official code does for lengths that do not fit. Windowed blocks
    and TinyViT, whose tables belong to windows of fixed size, stay as they are. Raises ValueError.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    resized = replace(config, image_size=size)  # checks it
    if resized.grid == config.grid or not isinstance(config.encoder, ViT):
        return resized, params
    if config.encoder.scan:
        raise ValueError("resize the positions before stacking the blocks for a scan")
    encoder = dict(params["image_encoder"])
    table = encoder["pos_embed"]
    encoder["pos_embed"] = jax.image.resize(table, (*resized.grid, table.shape[-1]), "bicubic", antialias=False)
    for i in config.encoder.global_blocks:
        block = dict(encoder[f"blocks_{i}"])
        attention = dict(block["attn"])
        for name, side in zip(("rel_pos_h", "rel_pos_w"), resized.grid):
            shape = (2 * side - 1, attention[name].shape[-1])
            attention[name] = jax.image.resize(attention[name], shape, "linear", antialias=False)
        encoder[f"blocks_{i}"] = block | {"attn": attention}
    return resized, params | {"image_encoder": encoder}


def adapt_channels(config: SamConfig, params: dict, channels: int) -> tuple[SamConfig, dict]:
    """The same model for pictures of another number of channels.

    One channel gets the sum of the three kernels, so that grey pictures give what they gave as RGB (but for the
    channels' different normalisation). Otherwise each gets their mean times 3 / channels. Means and deviations of
    the pixels become the averages of RGB's; set config.pixel_mean and pixel_std when the data's own are known.
    """
    if channels == config.in_channels:
        return config, params
    if channels < 1:
        raise ValueError(f"in_channels must be at least 1, not {channels}")
    name = "patch_embed" if isinstance(config.encoder, ViT) else "patch_embed_0"
    encoder = params["image_encoder"]
    kernel = jnp.asarray(encoder[name]["kernel"])
    kernel = jnp.repeat(kernel.sum(2, keepdims=True) / channels, channels, axis=2)
    average = lambda values: (sum(values) / len(values),) * channels
    config = replace(config, in_channels=channels, pixel_mean=average(config.pixel_mean),
                     pixel_std=average(config.pixel_std))
    return config, params | {"image_encoder": encoder | {name: encoder[name] | {"kernel": kernel}}}
