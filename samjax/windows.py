"""Pictures of any size, read in windows: what is not asked for is not in memory, where the format permits.

Pictures of up to 2**26 pixels (200 MB as RGB) are read whole, by `samjax.image.read_image`. Larger ones:

- TIFF and BigTIFF in tiles, or in strips of some rows: only those that a window touches, of which 256 MB are kept.
- .npy: only the rows and columns of the window.
- an array, a memory map, a PIL image: sliced where it is. (A map's pages count as memory in use until the system takes
  them back; a path to the .npy does not have that.)
- PNG, JPEG and all else that Pillow reads, TIFF in one compressed strip: cannot be read at random. Decoded whole, once,
  in a process of its own, into a temporary file of which windows are read (1.2 GB for 20,000 x 20,000 as RGB). While
  that lasts the process holds 4 bytes a pixel (1.6 GB); all of it is returned.

Values are those of `read_image`: RGB or grey, EXIF orientation applied, 16-bit grey stretched between its 0.1 and 99.9
percentiles, of the whole picture and exact. NumPy and Pillow only.
"""

import os
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from samjax.errors import InputError
from samjax.image import ORIENTATION, _checked, _decode, _from_array, _from_pil, _is_deep, _open_header, read_image
from samjax.spool import spool
from samjax.tiff import Tiff, is_tiff

IN_MEMORY = 2**26  # pixels
_STRIP = 2**22  # pixels of a strip, where all of a picture is gone through
Box = tuple[int, int, int, int]


class Turn(NamedTuple):
    """What turns a stored picture upright: flips of its rows' and columns' order, then a transposition."""

    rows: bool = False
    columns: bool = False
    swap: bool = False


TURNS = {1: Turn(), 2: Turn(columns=True), 3: Turn(True, True), 4: Turn(rows=True), 5: Turn(swap=True),
         6: Turn(rows=True, swap=True), 7: Turn(True, True, True), 8: Turn(columns=True, swap=True)}


class Picture:
    """A picture of which windows are read: `shape` (h, w, c), `read(x0, y0, x1, y1)`. Made by `open_picture`.

    One thread may read at a time. It is a context manager; what it holds goes with it at the latest.
    """

    def __init__(self, source, channels: int, turn: Turn = TURNS[1], name: str = "the picture"):
        """source: has `hw`, `read(box)` -> array (h, w) or (h, w, c), `close()`."""
        self._source, self._turn, self.name = source, turn, name
        h, w = source.hw
        self.shape = (w, h, channels) if turn.swap else (h, w, channels)
        self._limits = self._stretch() if source.deep else None

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """The window x0, y0, x1, y1 (exclusive) as uint8 (y1 - y0, x1 - x0, c), C-contiguous."""
        h, w, channels = self.shape
        if not (0 <= x0 < x1 <= w and 0 <= y0 < y1 <= h):
            raise ValueError(f"window {x0, y0, x1, y1} does not lie in a picture of {w} x {h}")
        part = self._source.read(self._stored((x0, y0, x1, y1)))
        part = part[:: -1 if self._turn.rows else 1, :: -1 if self._turn.columns else 1]
        part = part.swapaxes(0, 1) if self._turn.swap else part
        if self._limits is not None:
            part = _linear(part, *self._limits)
        return np.ascontiguousarray(_from_array(part, channels))

    def close(self) -> None:
        """Closes files; temporary ones are removed."""
        self._source.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _stored(self, box: Box) -> Box:
        """Where a window of the upright picture lies in the stored one."""
        x0, y0, x1, y1 = box
        h, w = self._source.hw
        if self._turn.swap:
            x0, y0, x1, y1 = y0, x0, y1, x1
        if self._turn.columns:
            x0, x1 = w - x1, w - x0
        if self._turn.rows:
            y0, y1 = h - y1, h - y0
        return x0, y0, x1, y1

    def _stretch(self) -> tuple[float, float]:
        """What becomes 0 and 255 of a picture of 16 bits, as `samjax.image` has it, from a histogram."""
        h, w = self._source.hw
        counts, step = np.zeros(2**16, np.int64), max(1, _STRIP // w)
        for y in range(0, h, step):
            counts += np.bincount(self._source.read((0, y, w, min(h, y + step))).ravel(), minlength=2**16)
        low, high = (_percentile(counts, q) for q in (0.1, 99.9))
        if high <= low:
            there = np.flatnonzero(counts)
            low, high = float(there[0]), float(there[-1])
        return low, high


def open_picture(source, channels: int = 3, in_memory: int = IN_MEMORY) -> Picture:
    """A picture to be read in windows.

    Args:
        source: a path (also of a .npy), a PIL image, an array (h, w) or (h, w, c), a numpy.memmap, or a Picture, which
            is returned as it is. Arrays as for `read_image`; what must hold for values is checked window by window.
        channels: 3 (RGB) or 1 (grey), or exactly those that the source has.
        in_memory: pictures of no more pixels are read whole; see above for others.

    Raises InputError: no such file, not an image, damaged, values or channels of a wrong kind, no room for the
    temporary file; float and 32-bit files above in_memory (make them 8 or 16 bits).
    """
    if isinstance(source, Picture):
        if source.shape[2] != channels:
            raise InputError(f"the picture was opened with {source.shape[2]} channels; the model takes {channels}")
        return source
    if isinstance(source, (str, os.PathLike)):
        return _open_file(os.fspath(source), channels, in_memory)
    if isinstance(source, Image.Image):
        return _open_pil(source, channels, in_memory)
    array = _checked(source)
    if array.shape[0] * array.shape[1] <= in_memory:
        return Picture(_Array(read_image(array, channels)), channels, name="the array")
    return Picture(_Array(array), channels, name="the array")


def _open_file(name: str, channels: int, in_memory: int) -> Picture:
    try:
        with open(name, "rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{name} is a directory, not an image") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {(error.strerror or str(error)).lower()}") from None
    if start[:6] == b"\x93NUMPY":
        return _open_npy(name, channels, in_memory)
    if is_tiff(start[:4]):
        tiff = Tiff(open(name, "rb", buffering=0), name)  # noqa: SIM115 (closed with the picture)
        h, w = tiff.hw
        if h * w > in_memory and tiff.readable:
            return Picture(_Segments(tiff, channels), channels, TURNS.get(tiff.turn, Turn()), name)
        tiff.file.close()
    elif start:
        with _header(name) as image:
            w, h = image.size
    if not start or h * w <= in_memory:
        return Picture(_Array(read_image(name, channels)), channels, name=name)
    file, hw, dtype, turn = spool(name, channels)
    shape = hw if dtype == np.uint16 else (*hw, channels)
    return Picture(_Rows(file, 0, shape, dtype), channels, TURNS.get(turn, Turn()), name)


def _header(name: str) -> Image.Image:
    try:
        return _open_header(name, name)
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError(f"{name} is not an image that Pillow can read") from None
    except Exception as error:  # plugins raise all sorts on damaged headers
        raise InputError(f"{name} cannot be read as an image: {str(error).splitlines()[0]}") from None


def _open_npy(name: str, channels: int, in_memory: int) -> Picture:
    try:
        array = np.load(name, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{name} is no array that can be read: {str(error).splitlines()[0]}") from None
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "buif":
        raise InputError(f"{name} holds an array {array.shape} of {array.dtype}, not an image (h, w) or (h, w, c)")
    if array.shape[0] * array.shape[1] <= in_memory:
        return Picture(_Array(read_image(array, channels)), channels, name=name)
    if not array.flags.c_contiguous:
        return Picture(_Array(array), channels, name=name)
    # Read, not mapped: pages of a map that were touched would count as this process's memory.
    return Picture(_Rows(open(name, "rb", buffering=0), array.offset, array.shape, array.dtype), channels, name=name)


def _open_pil(image: Image.Image, channels: int, in_memory: int) -> Picture:
    if image.width * image.height <= in_memory:
        return Picture(_Array(read_image(image, channels)), channels, name="the PIL image")
    if _is_deep(image) and not image.mode.startswith("I;16"):
        raise InputError(f"a picture of mode {image.mode} and this size is not supported: make it 8 or 16 bits")
    image = _decode(image, "the PIL image")  # before its orientation is asked for: of a TIFF, Pillow turns it then
    return Picture(_Pil(image, channels), channels, TURNS.get(image.getexif().get(ORIENTATION), Turn()),
                   "the PIL image")


class _Array:
    def __init__(self, array: np.ndarray):
        self.array, self.hw = array, array.shape[:2]
        self.deep = array.dtype.kind == "u" and array.dtype.itemsize == 2

    def read(self, box: Box) -> np.ndarray:
        x0, y0, x1, y1 = box
        return self.array[y0:y1, x0:x1]

    def close(self) -> None:
        self.array = None


class _Rows:
    """An array in a file, row after row."""

    def __init__(self, file, offset: int, shape: tuple[int, ...], dtype):
        self.file, self.offset, self.shape, self.dtype = file, offset, shape, np.dtype(dtype)
        self.hw, self.deep = shape[:2], self.dtype.kind == "u" and self.dtype.itemsize == 2

    def read(self, box: Box) -> np.ndarray:
        x0, y0, x1, y1 = box
        pixel = self.dtype.itemsize * int(np.prod(self.shape[2:]))
        width, out = (x1 - x0) * pixel, bytearray((y1 - y0) * (x1 - x0) * pixel)
        for y in range(y0, y1):
            self.file.seek(self.offset + (y * self.hw[1] + x0) * pixel)
            row = memoryview(out)[(y - y0) * width : (y - y0 + 1) * width]
            while len(row):
                got = self.file.readinto(row)
                if not got:
                    raise InputError("a file of pixels has become shorter while it was read")
                row = row[got:]
        part = np.frombuffer(out, self.dtype).reshape(y1 - y0, x1 - x0, *self.shape[2:])
        return part if self.dtype.isnative else part.astype(self.dtype.newbyteorder("="))

    def close(self) -> None:
        self.file.close()


class _Segments:
    def __init__(self, tiff: Tiff, channels: int):
        self.tiff, self.hw, self.deep = tiff, tiff.hw, tiff.deep
        self.convert = _grey16 if tiff.deep else partial(_from_pil, channels=channels, name=tiff.name)

    def read(self, box: Box) -> np.ndarray:
        return self.tiff.read(box, self.convert)

    def close(self) -> None:
        self.tiff.file.close()


class _Pil:
    def __init__(self, image: Image.Image, channels: int):
        self.image, self.hw, self.deep = image, (image.height, image.width), _is_deep(image)
        self.convert = _grey16 if self.deep else partial(_from_pil, channels=channels, name="the PIL image")

    def read(self, box: Box) -> np.ndarray:
        return self.convert(self.image.crop(box))

    def close(self) -> None:
        self.image = None


def _grey16(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.uint16)


def _linear(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """low .. high becomes 0 .. 255, clipped; zeros where both are the same."""
    if high <= low:
        return np.zeros(array.shape, np.uint8)
    return np.rint(np.clip((array.astype(np.float64) - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)


def _percentile(counts: np.ndarray, q: float) -> float:
    """numpy.percentile of values 0, 1, 2, ... that occur `counts` times."""
    ends = np.cumsum(counts)
    at = (ends[-1] - 1) * (q / 100)
    a, b = (int(np.searchsorted(ends, i, side="right")) for i in (int(at), min(int(at) + 1, int(ends[-1]) - 1)))
    share = at - int(at)
    return b - (b - a) * (1 - share) if share >= 0.5 else a + (b - a) * share
