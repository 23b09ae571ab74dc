"""A file like those of ViTs that were pretrained on whole pictures, with random numbers."""

import numpy as np

from convert.tensor import Tensor
from convert.torch_file import write_torch


def arrays(config, grid: int, seed: int = 0) -> dict[str, np.ndarray]:
    """By MAE's names, with what samjax leaves aside: class token, last norm, MAE's decoder."""
    random, vit = np.random.default_rng(seed), config.encoder
    c, p = vit.width, vit.patch
    shapes = {"cls_token": (1, 1, c), "pos_embed": (1, 1 + grid * grid, c),
              "patch_embed.proj.weight": (c, config.in_channels, p, p), "patch_embed.proj.bias": (c,),
              "norm.weight": (c,), "norm.bias": (c,), "decoder_blocks.0.norm1.weight": (8,)}
    for i in range(vit.depth):
        for name, shape in {"norm1.weight": (c,), "norm1.bias": (c,), "attn.qkv.weight": (3 * c, c),
                            "attn.qkv.bias": (3 * c,), "attn.proj.weight": (c, c), "attn.proj.bias": (c,),
                            "norm2.weight": (c,), "norm2.bias": (c,), "mlp.fc1.weight": (4 * c, c),
                            "mlp.fc1.bias": (4 * c,), "mlp.fc2.weight": (c, 4 * c), "mlp.fc2.bias": (c,)}.items():
            shapes[f"blocks.{i}.{name}"] = shape
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(path, config, grid: int, drop=(), **changed) -> dict[str, np.ndarray]:
    """Writes a .pth; returns its arrays."""
    found = {name: array for name, array in (arrays(config, grid) | changed).items() if name not in drop}
    write_torch(path, {name: Tensor.of(array) for name, array in found.items()})
    return found
