"""Arithmetic and memory traffic of SAM's parts, counted from the shapes: what `scaling.py` divides by a chip's figures.

A multiplication with its addition is two operations. Matrix products and convolutions alone are counted; norms, softmax
and GELU are below a percent. float32 products, which the decoder keeps among its tokens whatever the dtype, and in its
scores over the image but in training, stand apart: accelerators do them several times slower. `tests/test_flops.py`
compares each count with one taken from the traced program.
"""

import math
from typing import NamedTuple

from samjax.config import Decoder, SamConfig, ViT
from samjax.train.recipe import Recipe
from samjax.train.step import training_config

IMAGE_PASSES = 6  # how often a two-way block reads or writes the image's (cells x channels) array, at least
LEARNED = 5  # tokens beside the prompt's: one for the IoU, four for the masks


class Work(NamedTuple):
    """Operations in the configured dtype, operations in float32, and bytes read from and written to memory."""

    low: float
    high: float
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(self, other)))

    def times(self, factor: float) -> "Work":
        return Work(*(factor * x for x in self))

    @property
    def operations(self) -> float:
        return self.low + self.high


def encoder(config: SamConfig, remat: bool | str = False, backward: bool = False) -> Work:
    """One image through the ViT; backward: with the gradient of its parameters.

    remat: True: each block is computed again before its gradient, but for its last product; "products": no product is.
    Attention's scores are always computed again, so that no array of (tokens x tokens) is held.
    """
    vit = config.encoder
    blocks = [_block(config, i in vit.global_blocks) for i in range(vit.depth)]
    parts = {name: sum(block[name] for block in blocks) for name in blocks[0]}
    outside = _outside_blocks(config)
    total = outside["patches"] + outside["neck"] + parts["linear"] + parts["attention"]
    if backward:
        again = {False: 0, True: parts["linear"] - parts["last"] + parts["attention"], "products": 0}[remat]
        total = (2 * outside["patches"] + 3 * outside["neck"] + 3 * parts["linear"]
                 + 4 * parts["attention"] + again)  # nobody asks for the gradient of pixels
    traffic = _encoder_bytes(config) * ((4 if remat else 3) if backward else 1)
    return Work(total, 0.0, traffic) if config.dtype == "bfloat16" else Work(0.0, total, traffic)


def _block(config: SamConfig, is_global: bool) -> dict[str, int]:
    """Operations of one block: its linear maps, of which the last stands apart too, and its attention proper."""
    vit: ViT = config.encoder
    (h, w), c = config.grid, vit.width
    if is_global or not vit.window:
        windows, y, x = 1, h, w
    else:
        windows, y, x = math.ceil(h / vit.window) * math.ceil(w / vit.window), vit.window, vit.window
    tokens, last = y * x, 2 * h * w * c * vit.mlp_ratio * c
    linear = 2 * h * w * c * (3 * c + c) + 2 * last
    attention = 2 * windows * tokens * c * (2 * tokens + y + x)  # scores, values, and both relative positions
    return {"linear": linear, "last": last, "attention": attention}


def _outside_blocks(config: SamConfig) -> dict[str, int]:
    vit, n = config.encoder, config.grid[0] * config.grid[1]
    patches = 2 * n * vit.patch**2 * config.in_channels * vit.width
    inside = _cells_of_conv(config.grid)
    return {"patches": patches, "neck": 2 * n * vit.width * config.channels + 2 * inside * config.channels**2}


def _cells_of_conv(grid: tuple[int, int]) -> int:
    """Products of a 3 x 3 convolution on a padded grid for one pair of channels: all nine taps of every cell."""
    return 9 * grid[0] * grid[1]


def _encoder_bytes(config: SamConfig) -> float:
    """The least a forward pass moves: each block's arrays in and out of its four linear maps, once; scores stay inside.

    Residual sums are float32, what is multiplied has the configured dtype.
    """
    vit, n, size = config.encoder, config.grid[0] * config.grid[1], 2 if config.dtype == "bfloat16" else 4
    a_block = n * vit.width * (2 * 2 * 4 + size * (1 + 3 + 3 + 1 + 1 + 2 * vit.mlp_ratio + 1))
    weights = size * vit.width**2 * (4 + 2 * vit.mlp_ratio)
    return vit.depth * (a_block + weights)


def decoder(config: SamConfig, slots: int, mask: bool = False) -> Work:
    """One prompt of so many slots through prompt encoder and mask decoder; mask: with a mask fed back."""
    dec: Decoder = config.decoder
    c, cells = config.channels, config.grid[0] * config.grid[1]
    t, k = LEARNED - 4 + dec.masks + slots, dec.heads
    self_attention = 2 * t * c * 4 * c + 2 * 2 * t * t * c
    with_image = 2 * t * c * c // 2 * 4  # the four small projections of a cross attention
    probe = 2 * t * k * cells * c  # every head of every token against the image: scores, or values
    mlp = 2 * 2 * t * c * dec.mlp
    scores = (dec.depth + 1) * probe
    high = dec.depth * (self_attention + mlp + 2 * with_image + 2 * t * c // 2) + with_image
    low = dec.depth * 3 * probe + probe
    high, low = (high, low + scores) if dec.mixed else (high + scores, low)
    hyper = dec.masks * 2 * (2 * c * c + c * c // 8)
    score = 2 * (2 * c * c + c * dec.masks)
    children = 2 * cells * c * c + 2 * 4 * cells * (c // 4) * (c // 2) + 2 * 16 * cells * (c // 8) * dec.masks
    high, low = high + hyper + score, low + children
    if mask:
        low += _first_of_mask(config) + 2 * cells * 16 * 16 + 2 * cells * 16 * c
    size = 2 if config.dtype == "bfloat16" else 4
    image = (size if dec.mixed else 4) * cells * c
    traffic = image * (IMAGE_PASSES * dec.depth + 2) + size * cells * (c + 4 * c // 4 * 2 + 16 * c // 8 * 2)
    traffic += 4 * 16 * cells * dec.masks
    return Work(low, high, traffic) if config.dtype == "bfloat16" else Work(0.0, low + high, traffic)


def rounds(config: SamConfig, recipe: Recipe) -> Work:
    """All rounds of one object with their gradients: three times the forward work of each.

    But for the first convolution of the mask that is fed back: nobody asks for that mask's gradient.
    """
    config = training_config(config, recipe)
    one, spared = decoder(config, recipe.points + 1, mask=True), _first_of_mask(config)
    spared = Work(spared, 0.0) if config.dtype == "bfloat16" else Work(0.0, spared)
    return (one.times(3) + spared.times(-1)).times(recipe.rounds)


def _first_of_mask(config: SamConfig) -> int:
    """The 2 x 2 convolution of stride 2 from one channel to four."""
    return 2 * 4 * config.grid[0] * config.grid[1] * 4 * 4


def step(config: SamConfig, recipe: Recipe) -> dict[str, Work]:
    """A training step's work for one image whose every place for an object is taken, without the optimiser's.

    Returns:
        "useful": forward and backward of encoder and rounds, what model-FLOPs utilisation counts; "done": with what
        rematerialisation does again.
    """
    annotator = rounds(config, recipe).times(recipe.objects)
    plain = encoder(config)
    return {"encoder": plain.times(3), "rounds": annotator, "useful": plain.times(3) + annotator,
            "done": encoder(config, config.encoder.remat, backward=True) + annotator}
