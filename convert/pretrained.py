"""A plain ViT that was pretrained on whole pictures (MAE; timm's ViTs have the same names), as SAM's encoder begins.

The paper starts from MAE's ViT-H; the window, the relative positions and the neck are SAM's own, and not in such files.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.safetensors import read_safetensors
from convert.table import KINDS, Row, rows
from convert.tensor import Tensor
from convert.torch_file import read_torch
from samjax.config import SamConfig, ViT
from samjax.errors import InputError

OURS = "image_encoder."
BESIDE = ("cls_token", "mask_token", "norm.", "fc_norm.", "head.", "decoder_")  # what is of no use here
PATCHES = "patch_embed.proj.weight"
NOT_THERE = ("rel_pos_h", "rel_pos_w", "neck")


def read_pretrained(path, config: SamConfig) -> dict[str, np.ndarray]:
    """What a pretrained ViT's `.pth` or `.safetensors` gives to the encoder of a model: path -> float32 array.

    Paths are those of `convert.table`, such as image_encoder/blocks_0/attn/qkv/kernel. image_encoder/pos_embed is
    (g, g, c) as in the file, whose pictures had g x g patches, without the class token's; and the patches may be of
    another side than the model's (MAE's ViT-H has 14 x 14 pixels), as image_encoder/patch_embed/kernel then is.

    Raises InputError: not a ViT of this width and depth, a tensor missing, of another shape, or unknown.
    """
    path = Path(path)
    if not isinstance(config.encoder, ViT):
        raise InputError(f"{path}: only a plain ViT can begin with a pretrained one, and {config.name} has none")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    found = dict(read_safetensors(path) if path.suffix.lower() == ".safetensors" else read_torch(path))
    wanted = {_name(row): row for row in rows(config) if row.official.startswith(OURS)
              and not any(part in row.path for part in NOT_THERE)}
    _check(path, config, wanted, found)
    read = lambda name, row: (_positions if name == "pos_embed" else _array)(path, found[name], row)
    return {row.path: read(name, row) for name, row in wanted.items()}


def _name(row: Row) -> str:
    """What such files call a parameter."""
    return row.official.removeprefix(OURS).replace(".mlp.lin", ".mlp.fc")


def _check(path: Path, config: SamConfig, wanted: Mapping[str, Row], found: Mapping[str, Tensor]) -> None:
    what = f"the encoder of {config.name} (width {config.encoder.width}, depth {config.encoder.depth})"
    if missing := sorted(set(wanted) - set(found)):
        raise InputError(f"{path}: is no pretrained ViT for {what}: it has no {missing[0]}"
                         + (f", and {len(missing) - 1} others are missing" if len(missing) > 1 else ""))
    if unknown := sorted(name for name in set(found) - set(wanted) if not name.startswith(BESIDE)):
        raise InputError(f"{path}: is no pretrained ViT for {what}: that has no {unknown[0]}")
    for name, row in wanted.items():
        shape, usual = tuple(found[name].shape), tuple(row.torch_shape)
        if name == PATCHES and len(shape) == 4 and shape[2] == shape[3]:
            shape, usual = shape[:2], usual[:2]
        if name != "pos_embed" and shape != usual:
            raise InputError(f"{path}: is no pretrained ViT for {what}: {name} is {tuple(found[name].shape)}, not "
                             f"{tuple(row.torch_shape)}")


def _array(path: Path, tensor: Tensor, row: Row) -> np.ndarray:
    return np.ascontiguousarray(KINDS[row.kind].to_jax(_finite(path, tensor, row)))


def _positions(path: Path, tensor: Tensor, row: Row) -> np.ndarray:
    """(1, [1 +] g g, c) -> (g, g, c)."""
    table, c = _finite(path, tensor, row), row.shape[-1]
    for tokens in (1, 0):  # of the class, before the patches
        side = math.isqrt(max(table.size // c - tokens, 0))
        if side and table.shape == (1, tokens + side * side, c):
            return table[0, tokens:].reshape(side, side, c)
    raise InputError(f"{path}: pos_embed is {table.shape}, not (1, 1 + patches, {c}) of a square grid")


def _finite(path: Path, tensor: Tensor, row: Row) -> np.ndarray:
    data = tensor.load().astype(np.float32)
    if not np.isfinite(data).all():
        raise InputError(f"{path}: {_name(row)} holds NaN or infinity; the file is damaged")
    return data
