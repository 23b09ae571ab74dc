"""Parts of a TIFF or BigTIFF file: its first picture's tiles or strips, each decoded when asked for.

A segment is put into a small TIFF file of its own, in memory, and given to Pillow: so whatever Pillow and its libtiff
read (none, deflate, LZW, PackBits, JPEG, WebP, ZSTD, predictors, palettes, 1 to 16 bits) comes out as from the whole
file. NumPy and Pillow only.
"""

import io
import math
import struct
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from PIL import Image

from samjax.errors import InputError

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIPS, TURN, SAMPLES, ROWS, STRIP_BYTES, PLANES = 273, 274, 277, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = 322, 323, 324, 325
# What a segment's own file takes over: also fill order, predictor, colour map, inks, extra samples, sample format,
# JPEG tables, and how YCbCr is meant.
COPIED = (BITS, COMPRESSION, PHOTOMETRIC, 266, SAMPLES, 317, 320, 332, 338, 339, 347, 529, 530, 531, 532)
OF_ONE_PLANE = (COMPRESSION, 266, 317, 347)
NONE, OLD_JPEG, YCBCR, PALETTE = 1, 6, 6, 3
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
FORMATS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
MERGED = {(1, 1): "L", (2, 3): "RGB", (2, 4): "RGBA", (5, 4): "CMYK"}  # (photometric, planes)
MAX_SEGMENT = 2**26  # samples: larger ones would be a picture in themselves
CACHE = 2**28  # bytes of decoded segments kept: neighbouring windows share them
MAX_ENTRIES = 1000


class Entry(NamedTuple):
    """A tag's type, its number of values, and their bytes."""

    kind: int
    count: int
    raw: bytes


class Tiff:
    """The first picture of a TIFF file, unturned.

    hw: its stored height and width. turn: its orientation tag (1 upright). deep: 16 bits a pixel (uint16, grey).
    """

    def __init__(self, file, name: str):
        self.file, self.name = file, name
        self.order, self.tags = _header(file, name)
        self.hw = self._one(HEIGHT), self._one(WIDTH)
        if 0 in self.hw:
            raise InputError(f"{name} has no pixels")
        self.turn = self._one(TURN, 1)
        self.planes = self._one(SAMPLES, 1) if self._one(PLANES, 1) == 2 else 1
        self._lay_out()
        self._kept, self._bytes = OrderedDict(), 0

    @property
    def readable(self) -> bool:
        """Whether parts can be read; otherwise Pillow may still read the whole."""
        compression, photometric = self._one(COMPRESSION, NONE), self._one(PHOTOMETRIC, 1)
        if (compression == OLD_JPEG or (photometric == YCBCR and (compression == NONE or self.planes > 1))
                or (self.planes > 1 and (photometric, self.planes) not in MERGED)
                or math.prod(self.segment_hw) * self._one(SAMPLES, 1) > MAX_SEGMENT):
            return False
        try:
            image = self._image(0)
        except InputError:
            return False
        self.deep = image.mode.startswith("I;16")
        return self.deep or image.mode[0] not in "IF"

    def read(self, box: tuple[int, int, int, int], convert) -> np.ndarray:
        """The pixels in x0, y0, x1, y1 (exclusive): `convert`, which is always the same, makes arrays of images."""
        x0, y0, x1, y1 = box
        high, wide = self.segment_hw
        out = None
        for row in range(y0 // high, -(-y1 // high)):
            for column in range(x0 // wide, -(-x1 // wide)):
                part, top, left = self._segment(row * self.across + column, convert), row * high, column * wide
                if out is None:
                    out = np.empty((y1 - y0, x1 - x0, *part.shape[2:]), part.dtype)
                inside = (slice(max(y0, top), min(y1, top + high)), slice(max(x0, left), min(x1, left + wide)))
                out[_less(inside, (y0, x0))] = part[_less(inside, (top, left))]
        return out

    def _lay_out(self) -> None:
        """Where segments lie. Uncompressed strips may be cut anywhere between rows: into pieces of a megabyte."""
        h, w = self.hw
        tiled = TILES in self.tags
        if not tiled and STRIP_BYTES not in self.tags and len(self._all(STRIPS)) == 1:
            self._to_the_end()
        self.offsets, self.sizes = (self._all(tag) for tag in ((TILES, TILE_BYTES) if tiled else (STRIPS, STRIP_BYTES)))
        if tiled:
            self.segment_hw = self._one(TILE_HEIGHT), self._one(TILE_WIDTH)
        else:
            self.segment_hw = min(h, self._one(ROWS, h)), w
        if 0 in self.segment_hw:
            raise InputError(f"{self.name} is damaged: its tiles have no size")
        high, wide = self.segment_hw
        self.across, self.down = -(-w // wide), -(-h // high)
        if not len(self.offsets) == len(self.sizes) == self.across * self.down * self.planes:
            raise InputError(f"{self.name} is damaged: it lists {len(self.offsets)} tiles or strips where "
                             f"{self.across * self.down * self.planes} are needed")
        if not tiled and self._one(COMPRESSION, NONE) == NONE:
            self._cut_strips()

    def _to_the_end(self) -> None:
        """Some old writers leave out how long the one strip is: all that follows it may be of it."""
        here = self.file.tell()
        length = self.file.seek(0, 2) - int(self._all(STRIPS)[0])
        self.file.seek(here)
        self.tags[STRIP_BYTES] = Entry(16, 1, struct.pack(f"{self.order}Q", max(length, 0)))

    def _cut_strips(self) -> None:
        (h, w), (high, _) = self.hw, self.segment_hw
        bits = self._all(BITS) if BITS in self.tags else [1]
        row = -(-w * (bits[0] if self.planes > 1 else sum(bits)) // 8)
        most = max(1, 2**20 // row)
        fewer = min(high, most) if self.down == 1 else max(d for d in range(1, min(high, most) + 1) if high % d == 0)
        if fewer == high or not self.sizes.all():
            return
        offsets = self.offsets.reshape(self.planes, -1, 1) + np.arange(0, high, fewer) * row
        self.segment_hw, self.down = (fewer, w), -(-h // fewer)
        self.offsets = offsets.reshape(self.planes, -1)[:, :self.down].ravel()
        rows = np.minimum(fewer, h - np.arange(self.down) * fewer)
        self.sizes = np.tile(rows * row, self.planes)

    def _segment(self, index: int, convert) -> np.ndarray:
        """A decoded segment, kept while there is room."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        part = self._kept[index] = convert(self._image(index))
        self._bytes += part.nbytes
        while self._bytes > CACHE and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return part

    def _image(self, index: int) -> Image.Image:
        if self.planes == 1:
            return self._decoded(index)
        each = self.across * self.down
        layers = [self._decoded(index + plane * each) for plane in range(self.planes)]
        return Image.merge(MERGED[self._one(PHOTOMETRIC, 1), self.planes], layers)

    def _decoded(self, index: int) -> Image.Image:
        high, wide = self.segment_hw
        if TILES not in self.tags:
            row = index % self.down
            high = min(high, self.hw[0] - row * high)
        offset, size = int(self.offsets[index]), int(self.sizes[index])
        if not size:  # a sparse file leaves out tiles of zeros
            return self._zeros((wide, high))
        self.file.seek(offset)
        data = self.file.read(size)
        if len(data) < size:
            raise InputError(f"{self.name} is damaged: it ends before its pixels do")
        try:
            image = Image.open(io.BytesIO(self._wrapped(data, wide, high)), formats=("TIFF",))
            image.load()
        except Exception as error:  # what decoders raise on damaged data
            raise InputError(f"{self.name} is damaged, or compressed in a way that Pillow does not read: "
                             f"{str(error).splitlines()[0] if str(error) else type(error).__name__}") from None
        return image

    def _zeros(self, size) -> Image.Image:
        """Background in the mode of the other tiles."""
        there = np.flatnonzero(self.sizes)
        if not len(there):
            return Image.new("L", size)
        image = self._decoded(int(there[0]))
        blank = Image.new(image.mode, size)
        if image.mode == "P":
            blank.putpalette(image.palette)
        return blank

    def _wrapped(self, data: bytes, wide: int, high: int) -> bytes:
        """A TIFF file with these pixels in one strip."""
        copied = COPIED if self.planes == 1 else OF_ONE_PLANE
        entries = {tag: self.tags[tag] for tag in copied if tag in self.tags}
        number = lambda value: Entry(4, 1, struct.pack(f"{self.order}I", value))
        entries |= {WIDTH: number(wide), HEIGHT: number(high), ROWS: number(high), STRIP_BYTES: number(len(data))}
        if self.planes > 1:
            bits = struct.pack(f"{self.order}H", int(self._all(BITS)[0]))
            entries |= {BITS: Entry(3, 1, bits), PHOTOMETRIC: number(1), SAMPLES: number(1)}
        start = 8 + 2 + 12 * (len(entries) + 1) + 4
        values = {}
        for tag, entry in entries.items():
            if len(entry.raw) > 4:
                values[tag] = start
                start += len(entry.raw) + len(entry.raw) % 2
        entries[STRIPS] = number(start)
        out = [b"II*\0" if self.order == "<" else b"MM\0*", struct.pack(f"{self.order}IH", 8, len(entries))]
        for tag, (kind, count, raw) in sorted(entries.items()):
            out.append(struct.pack(f"{self.order}HHI", tag, kind, count))
            out.append(struct.pack(f"{self.order}I", values[tag]) if tag in values else raw.ljust(4, b"\0"))
        out.append(b"\0\0\0\0")
        out += [entries[tag].raw + b"\0" * (len(entries[tag].raw) % 2) for tag in values]
        return b"".join([*out, data])

    def _all(self, tag: int) -> np.ndarray:
        entry = self.tags.get(tag)
        if entry is None or entry.kind not in FORMATS:
            raise InputError(f"{self.name} is damaged: tag {tag} is missing or no number")
        return np.frombuffer(entry.raw, f"{self.order}{FORMATS[entry.kind]}").astype(np.int64)

    def _one(self, tag: int, default: int | None = None) -> int:
        if tag not in self.tags and default is not None:
            return default
        values = self._all(tag)
        if not len(values):
            raise InputError(f"{self.name} is damaged: tag {tag} is empty")
        return int(values[0])


def is_tiff(start: bytes) -> bool:
    """Whether a file's first four bytes are those of a TIFF or BigTIFF file."""
    return start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _header(file, name: str) -> tuple[str, dict[int, Entry]]:
    """The byte order and the tags of the first picture."""
    end = file.seek(0, io.SEEK_END)
    damaged = InputError(f"{name} is damaged: it ends within its header")

    def take(at: int, size: int) -> bytes:
        if at + size > end:
            raise damaged
        file.seek(at)
        return file.read(size)

    start = take(0, 8)
    order, big = ("<" if start[:2] == b"II" else ">"), b"+" in start[2:4]
    count_of, entry_of, long, inline = ("Q", "HHQ", "Q", 8) if big else ("H", "HHI", "I", 4)
    at = struct.unpack(f"{order}Q", take(8, 8))[0] if big else struct.unpack(f"{order}I", start[4:])[0]
    wide = struct.calcsize(f"{order}{count_of}")
    n, = struct.unpack(f"{order}{count_of}", take(at, wide))
    if n > MAX_ENTRIES:
        raise damaged
    width = struct.calcsize(f"{order}{entry_of}") + inline
    table, tags = take(at + wide, n * width), {}
    for i in range(n):
        entry = table[i * width : (i + 1) * width]
        tag, kind, count = struct.unpack_from(f"{order}{entry_of}", entry)
        size, raw = SIZES.get(kind, 0) * count, entry[-inline:]
        tags[tag] = Entry(kind, count, raw[:size] if size <= inline else
                          take(struct.unpack(f"{order}{long}", raw)[0], size))
    return order, tags


def _less(area, corner):
    return tuple(slice(part.start - by, part.stop - by) for part, by in zip(area, corner))
