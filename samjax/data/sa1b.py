"""SA-1B: sa_*.jpg beside sa_*.json with COCO run lengths, as a folder or in tar shards that are read where they lie."""

import json
import os
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from samjax.data.index import open_index
from samjax.data.records import Record, Rle, to_rle
from samjax.data.sources import Source
from samjax.errors import InputError
from samjax.image import open_bytes, open_image

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


class Sa1bFolder(Source):
    """A folder of pairs X.jpg, X.json. Its JSON gives each object's area, so none is decoded to be counted."""

    def __init__(self, folder):
        self.folder, self.name = Path(folder), os.fspath(folder)
        files = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
        self.pairs, self.found = pair(files)

    def __len__(self) -> int:
        return len(self.pairs)

    def item_name(self, index: int) -> str:
        return self.pairs[index][0]

    def record(self, index: int) -> Record:
        image, annotation = self.pairs[index]
        try:
            text = (self.folder / annotation).read_bytes()
        except OSError as error:
            raise InputError(f"{annotation}: {error.strerror}") from None
        return Record(image, partial(open_image, self.folder / image), objects_of(text, annotation))

    def __getitem__(self, index: int) -> Record:
        return self.record(index)  # SA-1B has no objects under 100 px, and a batch takes none under 32


class Sa1bTar(Source):
    """One tar shard."""

    def __init__(self, path):
        self.path, self.name = Path(os.path.abspath(path)), os.fspath(path)
        self.index = open_index(self.path, read_headers, beside=True)
        self.length = len(self.index["places"])
        self.found = [(f"{self.name}/{name.decode()}", reason.decode()) for name, reason in self.index["found"]]

    def __len__(self) -> int:
        return self.length

    def item_name(self, index: int) -> str:
        return bytes(self.index["names"][index]).decode()

    def record(self, index: int) -> Record:
        name = self.item_name(index)
        image_at, image_size, json_at, json_size = (int(value) for value in self.index["places"][index])
        text = self._read(json_at, json_size)
        return Record(name, partial(self._picture, image_at, image_size, name),
                      objects_of(text, os.path.splitext(name)[0] + ".json"))

    def __getitem__(self, index: int) -> Record:
        return self.record(index)

    def _picture(self, start: int, size: int, name: str, longest: int | None = None) -> Image.Image:
        return open_bytes(self._read(start, size), f"{self.name}/{name}", longest)

    def _read(self, start: int, size: int) -> bytes:
        try:
            file = os.open(self.path, os.O_RDONLY)  # opened each time: nothing to share between threads and processes
        except OSError as error:
            raise InputError(f"{self.name}: {error.strerror}") from None
        try:
            parts = []
            while size > 0 and (part := os.pread(file, size, start)):
                parts.append(part)
                start, size = start + len(part), size - len(part)
        finally:
            os.close(file)
        if size:
            raise InputError(f"{self.name} is cut off: fetch it again")
        return b"".join(parts)


def pair(files: list[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(pairs of picture and JSON, (file, reason) of those that have no partner)."""
    annotations = {os.path.splitext(file)[0]: file for file in files if file.lower().endswith(".json")}
    pictures = {os.path.splitext(file)[0]: file for file in files if file.lower().endswith(PICTURES)}
    pairs = [(pictures[stem], annotations[stem]) for stem in pictures if stem in annotations]
    found = [(file, "has no .json of its name: no masks") for stem, file in pictures.items() if stem not in annotations]
    found += [(file, "has no picture of its name") for stem, file in annotations.items() if stem not in pictures]
    return pairs, found


def read_headers(path: Path) -> dict[str, np.ndarray]:
    """Where the members of a tar lie: one pass over its headers."""
    members = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    members[member.name.removeprefix("./")] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise InputError(f"{path} cannot be read as an uncompressed tar ({error}): unpack it, or fetch it again"
                         ) from None
    pairs, found = pair(list(members))
    if not pairs:
        raise InputError(f"{path} holds no pairs of a picture and a .json of that name, as SA-1B has them")
    places = np.array([(*members[image], *members[annotation]) for image, annotation in pairs], np.int64)
    return {"places": places, "names": np.array([image.encode() for image, _ in pairs]),
            "found": np.array([(file.encode(), reason.encode()) for file, reason in found], "S").reshape(-1, 2)}


def objects_of(text: bytes, name: str) -> list[Rle]:
    """The masks of one picture's JSON."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is broken JSON: {error}") from None
    try:
        return [to_rle(found["segmentation"]) for found in content["annotations"]]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{name} is not as SA-1B has it: no 'annotations' with 'segmentation' in 'size' and 'counts'"
                         ) from None
