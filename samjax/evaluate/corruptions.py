"""Pictures made worse on purpose: noise, blur, JPEG, brightness and contrast, each at five strengths.

The strengths of noise, JPEG, brightness and contrast are those of ImageNet-C (Hendrycks and Dietterich, "Benchmarking
neural network robustness to common corruptions and perturbations", 2019). Its blur is of pictures of 224 px; here the
deviation is in pixels of a picture whose longest side is 1024, and scales with it. NumPy, SciPy and Pillow.
"""

import io
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from samjax.errors import InputError

STRENGTHS = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # deviation of Gaussian noise, of the range of values
    "blur": (1, 2, 4, 6, 10),  # deviation of a Gaussian, in 1/1024 of the longest side
    "jpeg": (25, 18, 15, 10, 7),  # quality
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added to HSV's value
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # of the differences from the channels' means, what is left
}


def corrupt(image: np.ndarray, kind: str, strength: int, seed: int = 0, name: str = "") -> np.ndarray:
    """The picture made worse: uint8 (h, w, 3) -> the same shape.

    kind: of STRENGTHS. strength: 1 to 5. The noise depends on seed, name (of the picture) and strength alone.
    Raises InputError.
    """
    if kind not in STRENGTHS:
        raise InputError(f"corruption {kind!r} is none of {', '.join(STRENGTHS)}")
    if strength not in range(1, 6):
        raise InputError(f"a corruption's strength is 1 to 5, not {strength!r}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"a picture to be corrupted must be uint8 (h, w, 3), not {image.dtype} {image.shape}")
    random = np.random.default_rng([seed, zlib.crc32(name.encode()), strength])
    return _KINDS[kind](image, STRENGTHS[kind][strength - 1], random)


def _noise(image: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    return _bytes(image + 255 * deviation * random.standard_normal(image.shape, np.float32))


def _blur(image: np.ndarray, deviation: float, _) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    sigma = deviation * max(image.shape[:2]) / 1024
    return _bytes(gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), mode="nearest"))


def _jpeg(image: np.ndarray, quality: int, _) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def _brightness(image: np.ndarray, more: float, _) -> np.ndarray:
    """Hue and saturation stay: all channels grow by the factor by which the largest does."""
    value = image.max(axis=2, keepdims=True).astype(np.float32)
    brighter = np.minimum(value + 255 * more, 255)
    return _bytes(np.where(value > 0, image * (brighter / np.maximum(value, 1)), brighter))


def _contrast(image: np.ndarray, left: float, _) -> np.ndarray:
    mean = image.mean(axis=(0, 1), dtype=np.float64)
    return _bytes((image - mean) * left + mean)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


_KINDS: dict[str, Callable] = {"noise": _noise, "blur": _blur, "jpeg": _jpeg, "brightness": _brightness,
                               "contrast": _contrast}
