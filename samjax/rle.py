"""Run-length coded masks, as COCO and SA-1B store them. NumPy only.

Runs go down the columns, column by column, zeros first: {"size": [h, w], "counts": [...]}. The compressed form writes
the counts as text, five bits a character, most as differences from the count before last (pycocotools' own coding).
"""

from collections.abc import Sequence

import numpy as np

from samjax.errors import InputError


def encode(mask: np.ndarray, corner: tuple[int, int] = (0, 0), image_hw: tuple[int, int] | None = None) -> np.ndarray:
    """The counts (int64) of a mask, bool (h, w).

    mask may be a part of the picture image_hw, all the rest being background: corner is its top left pixel (x, y)
    there. The cost is that of the part.
    """
    h, w = mask.shape
    (left, top), (height, width) = corner, image_hw or mask.shape
    if left < 0 or top < 0 or left + w > width or top + h > height:
        raise ValueError(f"a part of {h} x {w} at {corner} does not lie in {height} x {width}")
    framed = np.zeros((w, h + 2), bool)
    framed[:, 1:-1] = mask.T
    x, y = np.nonzero(framed[:, 1:] != framed[:, :-1])  # each column's runs start and end within it
    edges = (x + left) * height + y + top
    goes_on = np.flatnonzero(edges[1:] == edges[:-1])  # a run from one column's foot to the next one's head
    edges = np.delete(edges, np.concatenate([goes_on, goes_on + 1]))
    counts = np.diff(edges, prepend=0, append=height * width)
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def decode(counts: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """The mask, bool (h, w), C-contiguous. Raises InputError where the counts do not fill it."""
    counts = np.asarray(counts, np.int64)
    h, w = image_hw
    if (counts < 0).any() or counts.sum() != h * w:
        raise InputError(f"run lengths that sum to {counts.sum()} are no mask of {h} x {w}")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(flat.reshape(w, h).T)


def area(counts: np.ndarray) -> int:
    """Pixels of the mask."""
    return int(np.sum(counts[1::2]))


def to_counts(segmentation) -> tuple[np.ndarray, tuple[int, int]]:
    """Counts and (h, w) of a mask in any form: bool (h, w), or {"size", "counts"} with a list or a text of counts."""
    if not isinstance(segmentation, dict):
        mask = np.asarray(segmentation, bool)
        return encode(mask), mask.shape
    counts = segmentation["counts"]
    counts = decompress(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts, np.int64)
    return counts, tuple(int(side) for side in segmentation["size"])


def to_mask(segmentation) -> np.ndarray:
    """The mask, bool (h, w), in any form that `to_counts` takes."""
    return decode(*to_counts(segmentation)) if isinstance(segmentation, dict) else np.asarray(segmentation, bool)


def compress(counts: np.ndarray) -> str:
    """Counts as pycocotools writes them."""
    if not len(counts):
        return ""
    rest = np.array(counts, np.int64)
    rest[3:] -= np.asarray(counts, np.int64)[1:-2]
    characters, used = [], []
    going = np.ones(len(rest), bool)
    while going.any():
        low = rest & 31
        rest = rest >> 5
        used.append(going)
        going = going & (rest != np.where(low & 16, -1, 0))  # bit 4 of the last character is the sign
        characters.append(low + 32 * going + 48)
    characters, used = np.stack(characters, axis=1), np.stack(used, axis=1)
    return characters[used].astype(np.uint8).tobytes().decode("ascii")


def decompress(text: str | bytes) -> np.ndarray:
    """The inverse of `compress`: counts, int64. Raises InputError for what is no such text."""
    return decompress_all([text])[0]


def decompress_all(texts: Sequence[str | bytes]) -> list[np.ndarray]:
    """`decompress` of many texts, much quicker than one by one."""
    raw = [text.encode() if isinstance(text, str) else bytes(text) for text in texts]
    codes = np.frombuffer(b"".join(raw), np.uint8).astype(np.int64) - 48
    ends = np.cumsum([len(text) for text in raw])
    last = (codes & 32) == 0  # of a number's characters
    if not len(codes):
        return [np.zeros(0, np.int64) for _ in raw]
    if codes.min() < 0 or codes.max() > 63 or not last[ends[ends > 0] - 1].all():
        raise InputError("a compressed run-length text is damaged")
    start = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    length = np.diff(start, append=len(codes))
    if length.max() > 12:
        raise InputError("a compressed run-length text is damaged")
    place = np.arange(len(codes)) - np.repeat(start, length)
    numbers = np.add.reduceat((codes & 31) << (5 * place), start)
    negative = (codes[last] & 16) != 0
    numbers[negative] -= np.int64(1) << (5 * length[negative])
    stops = np.concatenate([[0], np.cumsum(last)])[ends]
    counts = np.split(numbers, stops[:-1])
    for each in counts:  # from the fourth on they are differences from the count before last
        each[1::2] = np.cumsum(each[1::2])
        each[2::2] = np.cumsum(each[2::2])
    return counts
