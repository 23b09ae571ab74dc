"""The overlay: a picture with its masks, points and boxes drawn on it. NumPy and Pillow only."""

import colorsys
import contextlib
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from samjax.errors import InputError

FILL = 0.45  # opacity of a mask
HALO = 0.45  # opacity of the dark rim that keeps lines visible on any ground
POSITIVE, NEGATIVE = (0, 190, 90), (235, 50, 60)
_FINE = 4  # markers and corners are drawn this many times larger, then reduced
_GOLDEN = (math.sqrt(5) - 1) / 2


class Part(NamedTuple):
    """A mask that lies in a box: bool (h, w) of the box, and its top left pixel (x, y) in the picture."""

    mask: np.ndarray
    corner: tuple[int, int]


def overlay(image: np.ndarray, masks: np.ndarray | Sequence[np.ndarray], points=None, labels=None,
            boxes=None) -> Image.Image:
    """The picture, RGB, with each object in a colour of its own.

    Args:
        image: uint8 (h, w, 3); (h, w) and (h, w, c) are taken too, as grey or by their first three channels.
        masks: bool (n, h, w); filled, with an outline. Large ones are drawn first. A sequence of n masks that is
            neither list nor tuple is asked for one mask at a time (see `samjax.annotations`), which may be a `Part`.
        points: (n, t, 2) pixels, x before y, and labels (n, t): 1 is a green disc, 0 a red cross; slots with
            other labels are not drawn. Points without labels are foreground.
        boxes: (n, 4) x0 y0 x1 y1 in pixels, each in its object's colour.

    Sizes of lines and markers follow the picture's. Raises ValueError where shapes do not fit.
    """
    canvas = Image.fromarray(_rgb(np.asarray(image)))
    lazy = isinstance(masks, Sequence) and not isinstance(masks, (list, tuple))
    masks = masks if lazy else np.ascontiguousarray(masks, bool)
    if not lazy or (len(masks) and not isinstance(masks[0], Part)):
        shape = (len(masks), *masks[0].shape) if lazy else masks.shape
        if shape[1:] != (canvas.height, canvas.width):
            raise ValueError(f"masks {shape} do not fit an image of {canvas.height} x {canvas.width}")
    width = line_width(canvas.size)
    canvas = _draw_masks(canvas, masks, width)
    for n, box in enumerate([] if boxes is None else np.asarray(boxes, np.float64).reshape(-1, 4)):
        _draw_box(canvas, box, colour(n), width)
    if points is not None:
        points = np.asarray(points, np.float64)
        labels = np.ones(points.shape[:-1], int) if labels is None else np.asarray(labels)
        _draw_points(canvas, points.reshape(-1, 2), labels.reshape(-1))
    return canvas


def colour(n: int) -> tuple[int, int, int]:
    """The n-th object's colour: hues a golden section apart, so that neighbours in number differ most."""
    hue = (0.575 + n * _GOLDEN) % 1.0
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.9, 0.82))[n // 8 % 3]
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))


def line_width(size: tuple[int, int]) -> int:
    """Pixels of an outline: 2 at 800 px, 20 at 8000 px."""
    return max(2, round(max(size) / 400))


def save_png(path, picture) -> None:
    """Writes a PIL image or an array (bool as 0/255, uint8) as PNG: whole or not at all.

    Raises InputError where it cannot be written.
    """
    if not isinstance(picture, Image.Image):
        array = np.asarray(picture)
        picture = Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array)
    path = os.fspath(path)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        picture.save(temporary, "PNG", compress_level=1)  # higher levels cost time, save little
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _rgb(image: np.ndarray) -> np.ndarray:
    image = image[..., None] if image.ndim == 2 else image
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f"an image is uint8 (h, w, 3), not {image.dtype} {image.shape}")
    image = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    return np.ascontiguousarray(image)


def _draw_masks(canvas: Image.Image, masks: np.ndarray | Sequence[np.ndarray], width: int) -> Image.Image:
    """All fills, then all outlines, so that no fill covers a line."""
    if not len(masks):
        return canvas
    areas = np.array([np.count_nonzero(mask.mask if isinstance(mask, Part) else mask) for mask in masks])
    order = [n for n in np.argsort(-areas, kind="stable") if areas[n]]
    bare = canvas.copy()  # a mask within others has its own colour, not a mixture, and the picture stays as visible
    for n in order:
        part, (left, top) = _part(masks[n])
        box = left, top, left + part.shape[1], top + part.shape[0]
        tint = [round(v * (1 - FILL) + c * FILL) for c in colour(n) for v in range(256)]
        through = Image.fromarray(part)  # mode "1": pasting through it is the quick way
        canvas.paste(bare.crop(box).point(tint), box[:2], through)
    pixels = np.array(canvas)
    for n in order:
        thin = max(1, round(math.sqrt(areas[n]) / 10))  # a small mask would be all outline
        _draw_outline(pixels, _part(masks[n]), colour(n), min(width, thin))
    return Image.fromarray(pixels)


def _part(mask: np.ndarray | Part) -> Part:
    """What is inside the mask's box; it is not empty."""
    if isinstance(mask, Part):
        return mask
    x0, y0, x1, y1 = Image.fromarray(mask).getbbox()
    return Part(mask[y0:y1, x0:x1], (x0, y0))


def _draw_outline(pixels: np.ndarray, part: Part, rgb, width: int) -> None:
    """A smooth line along the mask's edge: blurring turns a mask into distance from its edge.

    The blur is done at a lower resolution where the line is wide; only the line's own pixels are blended.
    """
    (h, w), (x, y) = pixels.shape[:2], part.corner
    k = max(1, width // 2)
    margin = 3 * width
    left, top = x - margin, y - margin
    right = left + k * -(-(part.mask.shape[1] + 2 * margin) // k)
    bottom = top + k * -(-(part.mask.shape[0] + 2 * margin) // k)
    near = Image.fromarray(part.mask).crop((left - x, top - y, right - x, bottom - y)).convert("L")
    sigma = 0.6 * width
    soft = near.reduce(k).filter(ImageFilter.GaussianBlur(sigma / k))
    peak = soft.getextrema()[1]
    if 0 < peak < 150:  # thinner than the line itself: let its middle count as the edge
        soft = soft.point([min(255, v * 150 // peak) for v in range(256)])
    if k > 1:
        soft = soft.resize(near.size, Image.Resampling.BILINEAR)
    inside = slice(max(top, 0) - top, min(bottom, h) - top), slice(max(left, 0) - left, min(right, w) - left)
    soft = np.asarray(soft)[inside]
    line, halo = _profile(width, sigma)
    y, x = np.divmod(np.flatnonzero((halo > 0)[soft]), soft.shape[1])
    level = soft[y, x]
    y, x = y + max(top, 0), x + max(left, 0)
    dark, bright = halo[level][:, None], line[level][:, None]
    blended = pixels[y, x] * ((1 - dark) * (1 - bright)) + np.float32(_lighter(rgb)) * bright
    pixels[y, x] = np.rint(blended).astype(np.uint8)


def _profile(width: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Opacity of the line and of the dark rim outside it for each grey level 0..255 of a blurred edge."""
    far = np.linspace(-4, 4, 801)
    level = np.array([255 * 0.5 * (1 + math.erf(d / math.sqrt(2))) for d in far])
    inward = np.interp(np.arange(256), level, far) * sigma
    inward[0], inward[-1] = -np.inf, np.inf
    rim = max(1, 0.4 * width)
    line = np.clip(width / 2 + 0.5 - np.abs(inward), 0, 1)
    halo = np.where(inward < width / 2, np.clip((width / 2 + 0.5 + rim + inward) / rim, 0, 1) * HALO, 0)
    return line.astype(np.float32), halo.astype(np.float32)


def _lighter(rgb) -> tuple[int, ...]:
    return tuple(round(c + (255 - c) * 0.2) for c in rgb)


def _draw_box(canvas: Image.Image, box: np.ndarray, rgb, width: int) -> None:
    x0, y0, x1, y1 = (round(v) for v in box)
    rim = max(1, width // 3)
    if min(x1 - x0, y1 - y0) < 1:
        return
    _frame(canvas, (x0, y0, x1, y1), width + 2 * rim, (0, 0, 0), HALO)
    _frame(canvas, (x0, y0, x1, y1), width, _lighter(rgb), 1.0)


def _frame(canvas: Image.Image, box, width: int, rgb, opacity: float) -> None:
    """A rounded frame whose line is centred on the box: four bars and the quarters of a smooth ring."""
    x0, y0, x1, y1 = box
    outer = width // 2
    x0, y0, x1, y1 = x0 - outer, y0 - outer, x1 - outer + width, y1 - outer + width
    r = min(3 * width, (x1 - x0) // 2, (y1 - y0) // 2)
    ring = Image.new("L", (2 * r * _FINE, 2 * r * _FINE))
    level = round(255 * opacity)
    edge = 2 * r * _FINE - 1
    ImageDraw.Draw(ring).ellipse((0, 0, edge, edge), outline=level, width=min(width, r) * _FINE)
    ring = ring.reduce(_FINE)
    for left, px in ((0, x0), (r, x1 - r)):
        for top, py in ((0, y0), (r, y1 - r)):
            canvas.paste(rgb, (px, py), ring.crop((left, top, left + r, top + r)))
    for bar in ((x0 + r, y0, x1 - r, y0 + width), (x0 + r, y1 - width, x1 - r, y1),
                (x0, y0 + r, x0 + width, y1 - r), (x1 - width, y0 + r, x1, y1 - r)):
        size = bar[2] - bar[0], bar[3] - bar[1]
        if min(size) > 0:
            canvas.paste(rgb, bar[:2], Image.new("L", size, level))


def _draw_points(canvas: Image.Image, points: np.ndarray, labels: np.ndarray) -> None:
    radius = max(6, round(max(canvas.size) / 90))
    stamps = {1: _disc(radius), 0: _cross(radius)}
    for (x, y), label in zip(points, labels):
        stamp = stamps.get(int(label))
        if stamp is not None:
            at = round(x - stamp.width / 2 + 0.5), round(y - stamp.height / 2 + 0.5)
            canvas.paste(stamp, at, stamp)


def _disc(radius: int) -> Image.Image:
    """A green disc in a white ring with a dark rim."""
    stamp, draw, middle = _stamp(radius)
    for share, fill in ((1.16, (0, 0, 0, 130)), (1.0, (255, 255, 255, 255)), (0.68, (*POSITIVE, 255))):
        r = share * radius * _FINE
        draw.ellipse((middle - r, middle - r, middle + r, middle + r), fill=fill)
    return stamp.reduce(_FINE)


def _cross(radius: int) -> Image.Image:
    """A red diagonal cross with a white edge and a dark rim."""
    stamp, draw, middle = _stamp(radius)
    for half, fill in ((0.54, (0, 0, 0, 130)), (0.4, (255, 255, 255, 255)), (0.2, (*NEGATIVE, 255))):
        thick = half * radius * _FINE
        arm = 0.72 * radius * _FINE
        for sign in (1, -1):
            ends = [(middle - arm, middle - sign * arm), (middle + arm, middle + sign * arm)]
            draw.line(ends, fill=fill, width=round(2 * thick))
            for x, y in ends:
                draw.ellipse((x - thick, y - thick, x + thick, y + thick), fill=fill)
    return stamp.reduce(_FINE)


def _stamp(radius: int):
    side = (2 * math.ceil(1.3 * radius) + 1) * _FINE
    stamp = Image.new("RGBA", (side, side))
    return stamp, ImageDraw.Draw(stamp), side / 2
