"""Embeddings on disk, as `samjax embed` writes them: read at random, one picture at a time. NumPy only, no JAX.

A folder holds index.json, and for each shard of so many pictures shard-00000.npy, (pictures, h, w, 256), with
shard-00000.json, which names the pictures in it. bfloat16 is stored as the same bits in uint16.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from samjax.errors import InputError

DTYPES = ("float16", "float32", "bfloat16")


class Embedded(NamedTuple):
    """One picture: what the image encoder made of it.

    features: float32 (h, w, 256). size: int32 (2,), the (h, w) that the picture takes up in the encoder's frame, top
    left. image_size: int32 (2,), its own (h, w). name: relative to the folder it was found in.
    """

    features: np.ndarray
    size: np.ndarray
    image_size: np.ndarray
    name: str


class Embeddings:
    """A folder of embeddings: `len`, and an `Embedded` for a place or a picture's name.

    Attributes: names (in order); info, the dict of index.json (model, dtype, grid, failures, ...). It can be pickled
    and used by several processes; files are opened when they are needed and read by memory map.

    Raises InputError if the folder holds none, or not all yet.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.info = _read(self.folder / "index.json")
        if not self.info.get("complete"):
            raise InputError(f"{folder} holds only a part of the embeddings: run the same samjax embed again")
        shards = [_read(self.folder / f"shard-{i:05d}.json") for i in range(self.info["shards"])]
        self._entries = [(i, entry) for i, shard in enumerate(shards) for entry in shard["images"]]
        self.names = [entry["name"] for _, entry in self._entries]
        self._places = {name: place for place, name in enumerate(self.names)}
        self._open = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name) -> bool:
        return name in self._places

    def __getitem__(self, which: int | str) -> Embedded:
        if isinstance(which, str):
            if which not in self._places:
                raise InputError(f"{self.folder} has no embedding of {which}")
            which = self._places[which]
        shard, entry = self._entries[which]
        features = to_float32(self._rows(shard)[entry["row"]])
        return Embedded(features, np.int32(entry["size"]), np.int32(entry["image_size"]), entry["name"])

    def sha256(self, name: str) -> str:
        """Of the picture's file."""
        return self._entries[self._places[name]][1]["sha256"]

    def _rows(self, shard: int) -> np.ndarray:
        if shard not in self._open:
            path = self.folder / f"shard-{shard:05d}.npy"
            try:
                self._open[shard] = np.load(path, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise InputError(f"{path} cannot be read: {error}") from None
        return self._open[shard]

    def __getstate__(self):
        return self.__dict__ | {"_open": {}}


def to_float32(stored: np.ndarray) -> np.ndarray:
    """A new float32 array of what is stored: float16, float32, or bfloat16's bits as uint16."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: is {path.parent} a folder that samjax embed wrote?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
