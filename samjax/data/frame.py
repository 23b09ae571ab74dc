"""Where a picture lies in the model's square."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from samjax import geometry
from samjax.config import SamConfig
from samjax.image import read_image


@dataclass(frozen=True)
class Frame:
    """The picture is flipped, scaled to scaled_hw, and put into the square size so that `offset` is at the top left.

    image_hw: the picture's own (h, w); offset: (y, x), scaled pixels cut off above and left; flip: left for right;
    upside: top for bottom.
    """

    image_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)
    flip: bool = False
    upside: bool = False

    @property
    def valid(self) -> tuple[int, int]:
        """(h, w) of the picture within the square; what is below and right of it is padding."""
        return tuple(min(n - o, s) for n, o, s in zip(self.scaled_hw, self.offset, self.size))

    @property
    def plain(self) -> bool:
        """Whether this is what `geometry.prepare` does."""
        return self == plain(self.image_hw, self.size)


def plain(image_hw: tuple[int, int], size: tuple[int, int]) -> Frame:
    """The frame of inference: the longest side fits, nothing is cut off."""
    return Frame(tuple(image_hw), geometry.target_size(*image_hw, size), tuple(size))


def pixels(picture: Image.Image, frame: Frame, config: SamConfig) -> np.ndarray:
    """The picture in the frame: uint8 (H, W, channels), zeros outside. Bit-equal to `geometry.prepare` if plain."""
    (valid_h, valid_w), (off_y, off_x) = frame.valid, frame.offset
    if frame.flip:  # the mirror image of a window is the window of the mirror image
        off_x = frame.scaled_hw[1] - off_x - valid_w
    if frame.upside:
        off_y = frame.scaled_hw[0] - off_y - valid_h
    if picture.mode == "RGB" and config.in_channels == 3 and config.resize == "bilinear":
        part = _window(picture, frame, off_y, off_x)
    else:
        image = geometry.resize(read_image(picture, config.in_channels), frame.scaled_hw, config.resize)
        part = image[off_y:off_y + valid_h, off_x:off_x + valid_w]
    out = np.zeros((*frame.size, config.in_channels), np.uint8)
    out[:valid_h, :valid_w] = part[::-1 if frame.upside else 1, ::-1 if frame.flip else 1]
    return out


def _window(picture: Image.Image, frame: Frame, off_y: int, off_x: int) -> np.ndarray:
    """Resizing and cutting by Pillow alone: an array of the whole picture would cost as much as decoding it."""
    (w, h), (scaled_h, scaled_w), (valid_h, valid_w) = picture.size, frame.scaled_hw, frame.valid
    if (valid_h, valid_w) == (scaled_h, scaled_w):
        box = None
    else:
        box = (off_x * w / scaled_w, off_y * h / scaled_h,
               min(w, (off_x + valid_w) * w / scaled_w), min(h, (off_y + valid_h) * h / scaled_h))
    return np.asarray(picture.resize((valid_w, valid_h), Image.Resampling.BILINEAR, box=box))
