"""Folding BatchNorm into the convolutions before it (inference only)."""

from dataclasses import replace

from samjax.config import SamConfig, TinyViT
from samjax.model.tiny_vit import EPS


def fold_batch_norm(config: SamConfig, params: dict) -> tuple[SamConfig, dict]:
    """The same TinyViT with `kernel` and `bias` in place of BatchNorm's four vectors; any other model unchanged.

    The fold uses the statistics as stored, in float32; the result equals the unfolded model to rounding.
    """
    if not isinstance(config.encoder, TinyViT) or config.encoder.fold_batch_norm:
        return config, params
    config = replace(config, encoder=replace(config.encoder, fold_batch_norm=True))
    return config, params | {"image_encoder": _fold(params["image_encoder"])}


def _fold(tree):
    if not isinstance(tree, dict):
        return tree
    if "norm_mean" not in tree:
        return {name: _fold(value) for name, value in tree.items()}
    factor = tree["norm_scale"] / (tree["norm_var"] + EPS) ** 0.5
    return {"kernel": tree["kernel"] * factor, "bias": tree["norm_bias"] - tree["norm_mean"] * factor}
