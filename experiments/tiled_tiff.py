"""A tiled TIFF file, written tile by tile: for pictures that are never whole in memory. Used by huge.py and tests."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

CODES = {"none": 1, "deflate": 8, "packbits": 32773, "tiff_lzw": 5, "jpeg": 7}


def write_tiled(path, hw: tuple[int, int], tile_at: Callable, *, tile: tuple[int, int] = (256, 256), channels: int = 3,
                dtype=np.uint8, compression: str = "deflate", predictor: bool = False, big: bool = False,
                order: str = "<", planar: bool = False, turn: int = 1, sparse: bool = False) -> None:
    """Writes a picture of size hw: tile_at(x0, y0, x1, y1) gives its pixels there, (h, w, channels) or (h, w).

    tile: (height, width), multiples of 16. turn: the orientation tag. sparse: tiles of zeros are left out. JPEG tiles
    hold RGB, without subsampling; LZW, PackBits and JPEG are Pillow's.
    """
    (h, w), (high, wide), size = hw, tile, np.dtype(dtype).itemsize
    across, down, planes = -(-w // wide), -(-h // high), channels if planar else 1
    offsets, lengths = [], []
    with open(path, "wb") as file:
        file.write(b"\0" * 16)
        for plane in range(planes):
            for row in range(down):
                for column in range(across):
                    part = np.zeros((high, wide, channels), dtype)
                    x0, y0 = column * wide, row * high
                    x1, y1 = min(w, x0 + wide), min(h, y0 + high)
                    part[: y1 - y0, : x1 - x0] = np.asarray(tile_at(x0, y0, x1, y1)).reshape(y1 - y0, x1 - x0, channels)
                    part = part[..., plane : plane + 1] if planar else part
                    data = b"" if sparse and not part.any() else _coded(part, compression, predictor, order)
                    offsets.append(file.tell() if data else 0)
                    lengths.append(len(data))
                    file.write(data + b"\0" * (len(data) % 2))
        long = 16 if big else 4
        entries = [(256, 4, [w]), (257, 4, [h]), (258, 3, [8 * size] * channels), (259, 3, [CODES[compression]]),
                   (262, 3, [{1: 1, 2: 1, 3: 2, 4: 2}[channels]]), (274, 3, [turn]), (277, 3, [channels]),
                   (284, 3, [2 if planar else 1]), (317, 3, [2 if predictor else 1]),
                   (322, 4, [wide]), (323, 4, [high]), (324, long, offsets), (325, long, lengths)]
        if channels in (2, 4):
            entries.append((338, 3, [2]))
        _directory(file, entries, big, order)


def _directory(file, entries, big: bool, order: str) -> None:
    codes = {3: "H", 4: "I", 16: "Q"}
    inline, long = (8, "Q") if big else (4, "I")
    raws = []
    for tag, kind, values in entries:
        raw = struct.pack(f"{order}{len(values)}{codes[kind]}", *values)
        if len(raw) > inline:
            at = file.tell()
            file.write(raw + b"\0" * (len(raw) % 2))
            raw = struct.pack(f"{order}{long}", at)
        raws.append(struct.pack(f"{order}HH{long}", tag, kind, len(values)) + raw.ljust(inline, b"\0"))
    at = file.tell()
    file.write(struct.pack(f"{order}{'Q' if big else 'H'}", len(raws)) + b"".join(raws) + b"\0" * inline)
    file.seek(0)
    file.write(b"II" if order == "<" else b"MM")
    file.write(struct.pack(f"{order}HHHQ", 43, 8, 0, at) if big else struct.pack(f"{order}HI", 42, at))


def _coded(part: np.ndarray, compression: str, predictor: bool, order: str) -> bytes:
    if compression not in ("none", "deflate"):
        return _coded_by_pillow(part, compression, predictor)
    if predictor:
        part = np.diff(part, axis=1, prepend=part[:, :1] * 0)  # unsigned, so modulo 256 or 65536
    raw = part.astype(part.dtype.newbyteorder(order)).tobytes()
    return zlib.compress(raw, 1) if compression == "deflate" else raw


def _coded_by_pillow(part: np.ndarray, compression: str, predictor: bool) -> bytes:
    from samjax.tiff import STRIP_BYTES, STRIPS, Tiff

    image, buffer = Image.fromarray(part[..., 0] if part.shape[2] == 1 else part), io.BytesIO()
    if compression == "jpeg":
        image.save(buffer, "JPEG", quality=90, keep_rgb=True, subsampling=0)
        return buffer.getvalue()
    image.save(buffer, "TIFF", compression=compression,
               tiffinfo={278: part.shape[0], **({317: 2} if predictor else {})})
    written = Tiff(buffer, "a tile")
    buffer.seek(int(written._all(STRIPS)[0]))
    assert len(written._all(STRIPS)) == 1
    return buffer.read(int(written._all(STRIP_BYTES)[0]))
