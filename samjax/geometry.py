"""Between a picture's pixels and the model's: resize, normalise and pad; points there, masks back.

All of it runs on the host with NumPy and Pillow. A picture is scaled so that it fits `config.image_size`, put
at the top left, and padded right and bottom. `new_hw` is its size there, `image_hw` its own size.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

from samjax.config import SamConfig
from samjax.errors import InputError
from samjax.resample import Band, area, bilinear, blocks, compose, reduce_rows, shrink_by_area

MASK_EPS = 1e-3  # a mask prompt's logits stay within +-logit(1 - eps), about 6.9
_STRIP_BYTES = 1 << 20  # float32 scratch of one strip: stays in the cache
_WIDE = 8192  # columns worked on at once


def target_size(h: int, w: int, size: tuple[int, int]) -> tuple[int, int]:
    """(new_h, new_w) of an (h, w) picture that fits `size` (h, w), proportions kept.

    For a square size this is the official ResizeLongestSide: int(side * scale + 0.5). At least 1 px a side.
    """
    scale = _scale((h, w), size)
    return max(1, min(size[0], int(h * scale + 0.5))), max(1, min(size[1], int(w * scale + 0.5)))


def resize(image: np.ndarray, new_hw: tuple[int, int], method: str = "bilinear") -> np.ndarray:
    """uint8 (h, w, c) -> uint8 (new_h, new_w, c).

    "bilinear": Pillow's, antialiased, as the official code does it. "area": means over each new pixel's area,
    bit-equal to OpenCV's INTER_AREA (LiteMedSAM); a picture enlarged in either direction gets bilinear.
    """
    if image.shape[:2] == tuple(new_hw):
        return image
    if method == "area" and new_hw[0] <= image.shape[0] and new_hw[1] <= image.shape[1]:
        return shrink_by_area(image, tuple(new_hw))
    return _resize_bilinear(image, new_hw)


def normalise(pixels: np.ndarray, new_hw: tuple[int, int], config: SamConfig) -> np.ndarray:
    """The float32 (H, W, c) that the encoder sees, from `prepare`'s uint8: the reference for the device's.

    "mean_std": (x - mean) / std; "min_max": (x - min) / max(max - min, 1e-8), extremes over the picture, all
    channels together. Padding comes after normalising and is 0.
    """
    new_h, new_w = new_hw
    valid = pixels[:new_h, :new_w].astype(np.float32)
    if config.normalise == "mean_std":
        valid = (valid - np.float32(config.pixel_mean)) / np.float32(config.pixel_std)
    else:
        low, high = valid.min(), valid.max()
        valid = (valid - low) / np.maximum(high - low, np.float32(1e-8))
    return _pad(valid, config.image_size)


def prepare(image: np.ndarray, config: SamConfig) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 (h, w, c) -> (uint8 (H, W, c), new_hw): scaled, zero-padded right and bottom to image_size."""
    new_hw = target_size(*image.shape[:2], config.image_size)
    return _pad(resize(image, new_hw, config.resize), config.image_size), new_hw


def scale_points(xy: np.ndarray, image_hw: tuple[int, int], config: SamConfig) -> np.ndarray:
    """Points (..., 2), x before y, from the picture's pixels to the model's, float64.

    The official code scales each axis by its rounded size (new_w / w, new_h / h); LiteMedSAM, known by its
    "area" resize, scales both by the one exact factor. Boxes are pairs of points: reshape to (..., 2, 2).
    """
    xy = np.asarray(xy, np.float64)
    if config.resize == "area":
        return xy * _scale(image_hw, config.image_size)
    new_h, new_w = target_size(*image_hw, config.image_size)
    return xy * np.array([new_w / image_hw[1], new_h / image_hw[0]])


def masks_to_image(logits: np.ndarray, config: SamConfig, new_hw: tuple[int, int], image_hw: tuple[int, int],
                   threshold: float = 0.0) -> np.ndarray:
    """Low-resolution logits (..., mh, mw) -> masks bool (..., h, w) at the picture's size: logit > threshold.

    The official postprocess: bilinear to image_size, crop the padding to new_hw, bilinear to image_hw, never
    antialiased. Both steps are linear, so they are one matrix a side. Needs about 10 MB beside the result.
    """
    out = np.empty((*np.shape(logits)[:-2], *image_hw), bool)
    for mask, rows, cols, values in _upscaled(logits, config, new_hw, image_hw, out):
        np.greater(values, threshold, out=mask[rows, cols])
    return out


def logits_to_image(logits: np.ndarray, config: SamConfig, new_hw: tuple[int, int],
                    image_hw: tuple[int, int]) -> np.ndarray:
    """As `masks_to_image`, without the threshold: float32 (..., h, w)."""
    out = np.empty((*np.shape(logits)[:-2], *image_hw), np.float32)
    for mask, rows, cols, values in _upscaled(logits, config, new_hw, image_hw, out):
        mask[rows, cols] = values
    return out


def mask_to_logits(mask: np.ndarray, config: SamConfig,
                   image_hw: tuple[int, int] | None = None) -> np.ndarray:
    """A mask (h, w) of the picture (bool, 0/255, any non-zero) -> a mask prompt, float32 config.mask_size.

    The mask is resized, not its logits: each low-resolution cell gets the share of it that is covered (of the
    part of it inside the picture), as logit(clip(share, eps, 1 - eps)). Padding is background. Where no cell
    is half covered (small or thin objects), shares are scaled so that the largest is 1: nothing vanishes.
    Raises InputError for an empty mask, another shape, NaN, or a size other than image_hw.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or 0 in mask.shape:
        raise InputError(f"a mask must be an array (h, w), not {mask.shape}")
    if image_hw is not None and mask.shape != tuple(image_hw):
        raise InputError(f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels, but the image is "
                         f"{image_hw[1]} x {image_hw[0]}: they must be of one size")
    if mask.dtype.kind == "f" and np.isnan(mask).any():
        raise InputError("the mask holds NaN")
    mask = mask != 0
    if not mask.any():
        raise InputError("the mask is empty: it must mark at least one pixel")
    rows, cols = _mask_cells(mask.shape, config)
    share = reduce_rows(cols, reduce_rows(rows, mask).T).T
    if share.max() < 0.5:
        share = share / share.max()
    share = _pad(np.clip(share.astype(np.float64), MASK_EPS, 1 - MASK_EPS), config.mask_size, MASK_EPS)
    return np.log(share / (1 - share)).astype(np.float32)


def _mask_cells(image_hw: tuple[int, int], config: SamConfig) -> list[Band]:
    """For both axes, the low-resolution cells that touch the picture, in its pixels."""
    new_hw = target_size(*image_hw, config.image_size)
    bands = []
    for n, new, size, cells in zip(image_hw, new_hw, config.image_size, config.mask_size):
        stride = size / cells  # model pixels a cell
        bands.append(area(n, int(np.ceil(new / stride)), n / new * stride))
    return bands


def _upscaled(logits, config: SamConfig, new_hw, image_hw, out):
    """Yields (out's 2-D mask, rows, columns, float32 values): each mask once, strip by strip."""
    logits = np.asarray(logits, np.float32)
    if logits.shape[-2:] != config.mask_size:
        raise ValueError(f"logits {logits.shape} do not end in the mask size {config.mask_size}")
    h, w = image_hw
    strip = max(1, _STRIP_BYTES // (4 * min(w, _WIDE)))
    rows = _upscaling(config.mask_size[0], config.image_size[0], new_hw[0], h, strip)
    cols = _upscaling(config.mask_size[1], config.image_size[1], new_hw[1], w, 128)
    scratch = np.empty((min(h, strip), min(w, _WIDE)), np.float32)
    wide = np.empty((config.mask_size[0], min(w, _WIDE)), np.float32)
    flat = logits.reshape(-1, *config.mask_size)
    for mask, target in zip(flat, out.reshape(-1, h, w)):
        for start in range(0, w, _WIDE):
            stop = min(w, start + _WIDE)
            for to, source, dense in cols[start // 128:-(-stop // 128)]:
                np.matmul(mask[:, source], dense.T, out=wide[:, to.start - start:to.stop - start])
            for to, source, dense in rows:
                values = scratch[:to.stop - to.start, :stop - start]
                np.matmul(dense, wide[source, :stop - start], out=values)
                yield target, to, slice(start, stop), values


@lru_cache(maxsize=64)
def _upscaling(n_mask: int, n_model: int, n_new: int, n_image: int, step: int) -> list:
    """Mask grid -> model pixels, cropped -> picture, along one axis, in blocks of `step` outputs."""
    up = bilinear(n_mask, n_model)
    cropped = Band(up.index[:n_new], up.weight[:n_new])
    return list(blocks(compose(bilinear(n_new, n_image), cropped), step))


def _scale(image_hw, size) -> float:
    return min(size[0] / image_hw[0], size[1] / image_hw[1])


def _pad(array: np.ndarray, size: tuple[int, int], value: float = 0) -> np.ndarray:
    out = np.full((*size, *array.shape[2:]), value, array.dtype)
    out[:array.shape[0], :array.shape[1]] = array
    return out


def _resize_bilinear(image: np.ndarray, new_hw: tuple[int, int]) -> np.ndarray:
    size = new_hw[1], new_hw[0]
    if image.shape[2] == 3:
        return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    # Channel by channel: Pillow would take two or four channels for alpha and premultiply.
    layers = [Image.fromarray(np.ascontiguousarray(image[..., c])).resize(size, Image.Resampling.BILINEAR)
              for c in range(image.shape[2])]
    return np.stack(layers, axis=-1)

