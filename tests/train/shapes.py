"""A folder of pictures with discs and boxes, and a model small enough to train in a test."""

import numpy as np
from PIL import Image

from samjax.config import Decoder, SamConfig, TinyViT

CONFIG = SamConfig("custom", TinyViT((8, 16, 24, 32), (1, 1, 1, 1), (1, 2, 3, 4), (3, 3, 4, 3), fold_batch_norm=False),
                   Decoder(depth=1, heads=2, mlp=32), channels=32, image_size=(64, 64))


def write_folder(folder, pictures: int = 10, size: tuple[int, int] = (48, 64), seed: int = 0):
    """images/*.png and masks/*.png (16-bit instance ids), two or three shapes in each."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    y, x = np.mgrid[: size[0], : size[1]]
    for i in range(pictures):
        image = random.integers(0, 60, (*size, 3)).astype(np.uint8)
        ids = np.zeros(size, np.uint16)
        for k in range(int(random.integers(2, 4))):
            cy, cx = random.integers(10, size[0] - 10), random.integers(10, size[1] - 10)
            radius = random.integers(6, 10)
            near = np.maximum(abs(y - cy), abs(x - cx)) if k % 2 else np.hypot(y - cy, x - cx)
            ids[near < radius] = k + 1
            image[near < radius] = random.integers(120, 255, 3)
        Image.fromarray(image).save(folder / "images" / f"{i:02d}.png")
        Image.fromarray(ids).save(folder / "masks" / f"{i:02d}.png")
    return folder


def write_model(path, seed: int = 0):
    """A model's directory with random parameters."""
    from conftest import random_params

    from samjax.checkpoint import save_model

    save_model(path, CONFIG, random_params(CONFIG, seed), {})
    return path
