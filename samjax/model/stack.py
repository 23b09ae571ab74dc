"""Stacking a ViT's blocks for a scan over layers, and unstacking them: pure functions of (config, params).

Files hold unstacked blocks; a deep ViT compiles faster with stacked ones (see `samjax.model.image_encoder.Group`).
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from samjax.config import SamConfig, ViT
from samjax.model.image_encoder import group_shape


def stack_blocks(config: SamConfig, params: dict) -> tuple[SamConfig, dict]:
    """The same ViT with `scan` on: blocks_0, blocks_1, ... become one branch `groups`.

    groups/windowed holds each group's windowed blocks, arrays (groups, blocks, ...); groups/global its last, global
    block, arrays (groups, ...). A model that is stacked already, and TinyViT, stay as they are. Raises ValueError for
    global blocks at unequal distances.
    """
    vit = config.encoder
    if not isinstance(vit, ViT) or vit.scan:
        return config, params
    groups, size = group_shape(vit)
    encoder = dict(params["image_encoder"])
    blocks = [encoder.pop(f"blocks_{i}") for i in range(vit.depth)]
    by_group = [blocks[i * size : (i + 1) * size] for i in range(groups)]
    stacked = {"global": _stack([group[-1] for group in by_group])}
    if size > 1:
        stacked["windowed"] = _stack([_stack(group[:-1]) for group in by_group])
    return _scanning(config, True), params | {"image_encoder": encoder | {"groups": stacked}}


def unstack_blocks(config: SamConfig, params: dict) -> tuple[SamConfig, dict]:
    """The exact inverse of `stack_blocks`."""
    vit = config.encoder
    if not isinstance(vit, ViT) or not vit.scan:
        return config, params
    groups, size = group_shape(vit)
    encoder = dict(params["image_encoder"])
    stacked = encoder.pop("groups")
    for i in range(groups):
        for j in range(size - 1):
            encoder[f"blocks_{i * size + j}"] = jax.tree.map(lambda x, i=i, j=j: x[i, j], stacked["windowed"])
        encoder[f"blocks_{(i + 1) * size - 1}"] = jax.tree.map(lambda x, i=i: x[i], stacked["global"])
    return _scanning(config, False), params | {"image_encoder": encoder}


def _scanning(config: SamConfig, scan: bool) -> SamConfig:
    return replace(config, encoder=replace(config.encoder, scan=scan))


def _stack(trees: list) -> dict:
    """One tree with a leading axis; NumPy arrays stay NumPy arrays."""
    return jax.tree.map(lambda *xs: (np if isinstance(xs[0], np.ndarray) else jnp).stack(xs), *trees)
