"""What every source of pictures is, and sources made of others: a part, several in a row, with cached embeddings.

A source is a sequence of `Record`s with random access. It can be pickled, and holds no open files.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from samjax.data.records import Record
from samjax.errors import InputError

LEAST = 32  # pixels of an object
VAL_FRACTION = 0.2  # of the pictures, where nothing says how they are split
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
          "test": "test", "testing": "test"}  # names of folders and files -> split


class NoSplit(InputError):
    """A split was asked for that the data do not name. known: those that they do name, none where there are none."""

    def __init__(self, message: str, known: Sequence[str] = ()):
        super().__init__(message)
        self.known = tuple(known)


class Source:
    """A sequence of records.

    name: for messages; found: (file, reason) of what was passed over when the source was opened.
    """

    name: str = ""
    found: Sequence[tuple[str, str]] = ()

    def __len__(self) -> int:
        raise NotImplementedError

    def record(self, index: int) -> Record:
        """The record with all of its objects, however small. Raises InputError: damaged, missing."""
        raise NotImplementedError

    def item_name(self, index: int) -> str:
        """The record's name, without reading it."""
        raise NotImplementedError

    def segmentations(self, index: int) -> list[np.ndarray]:
        """The record's mask pictures as ids, int (h, w), where each is the whole picture segmented by another
        annotator (as in BSDS500). Raises InputError where the layout has no mask pictures."""
        raise InputError(f"{self.name}: only folders with mask pictures have segmentations of whole pictures")

    def __getitem__(self, index: int) -> Record:
        """The record with its objects of at least 32 px."""
        record = self.record(index)
        return dataclasses.replace(record, objects=[mask for mask in record.objects if mask.area() >= LEAST])

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def names(self) -> list[str]:
        return [self.item_name(i) for i in range(len(self))]

    def select(self, indices: Sequence[int], name: str | None = None) -> "Subset":
        """The records at these places, in this order."""
        return Subset(self, indices, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} pictures)"


class Subset(Source):
    """Some records of a source."""

    def __init__(self, source: Source, indices: Sequence[int], name: str | None = None):
        self.source, self.indices = source, np.asarray(indices, np.int64)
        self.name, self.found = name or source.name, source.found

    def __len__(self) -> int:
        return len(self.indices)

    def record(self, index: int) -> Record:
        return self.source.record(int(self.indices[index]))

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.indices[index])]

    def item_name(self, index: int) -> str:
        return self.source.item_name(int(self.indices[index]))

    def segmentations(self, index: int) -> list[np.ndarray]:
        return self.source.segmentations(int(self.indices[index]))


class Joined(Source):
    """Several sources in a row. prefixes: put before the names of each, where they would not differ otherwise."""

    def __init__(self, sources: Sequence[Source], name: str = "", prefixes: Sequence[str] | None = None):
        self.sources, self.prefixes = list(sources), list(prefixes or [""] * len(sources))
        self.ends = np.cumsum([len(source) for source in self.sources])
        self.name = name or ", ".join(source.name for source in self.sources)
        self.found = [(prefix + file, reason) for source, prefix in zip(self.sources, self.prefixes)
                      for file, reason in source.found]

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def place(self, index: int) -> tuple[int, int]:
        """Which source has this record, and the record's place in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = int(np.searchsorted(self.ends, index, side="right"))
        return which, int(index - (self.ends[which - 1] if which else 0))

    def record(self, index: int) -> Record:
        which, place = self.place(index)
        record = self.sources[which].record(place)
        return dataclasses.replace(record, name=self.prefixes[which] + record.name)

    def __getitem__(self, index: int) -> Record:
        which, place = self.place(index)
        record = self.sources[which][place]
        return dataclasses.replace(record, name=self.prefixes[which] + record.name)

    def item_name(self, index: int) -> str:
        which, place = self.place(index)
        return self.prefixes[which] + self.sources[which].item_name(place)

    def segmentations(self, index: int) -> list[np.ndarray]:
        which, place = self.place(index)
        return self.sources[which].segmentations(place)


class WithFeatures(Source):
    """A source whose records bring their cached embeddings, so that no picture is read."""

    def __init__(self, source: Source, reader, rename: Callable[[str], str] | None = None):
        self.source, self.reader, self.rename = source, reader, rename
        self.name, self.found = source.name, source.found

    def __len__(self) -> int:
        return len(self.source)

    def _add(self, record: Record) -> Record:
        name = self.rename(record.name) if self.rename else record.name
        return dataclasses.replace(record, features=_Read(self.reader, name))

    def record(self, index: int) -> Record:
        return self._add(self.source.record(index))

    def __getitem__(self, index: int) -> Record:
        return self._add(self.source[index])

    def item_name(self, index: int) -> str:
        return self.source.item_name(index)

    def segmentations(self, index: int) -> list[np.ndarray]:
        return self.source.segmentations(index)


@dataclasses.dataclass
class _Read:
    reader: object
    name: str

    def __call__(self):
        try:
            features, size = self.reader[self.name][:2]
        except KeyError:
            raise InputError("has no cached embedding: make the embeddings again") from None
        return features, tuple(int(side) for side in size)


def with_features(source: Source, reader, rename: Callable[[str], str] | None = None) -> Source:
    """The source with cached embeddings.

    reader[name] -> (features (h, w, c), size, ...): size is the picture's (h, w) in the model's frame; KeyError where
    it has none. `samjax.embeddings.Embeddings` is one. rename: from a record's name to the reader's, if they differ.
    Both must be picklable if the pipeline has workers.
    """
    return WithFeatures(source, reader, rename)


def hash_split(names: Sequence[str], split: str, fraction: float = VAL_FRACTION) -> np.ndarray:
    """Places of the names that belong to "train" or "val", by a hash of each name alone.

    A name stays in its split whatever else comes or goes. Of two names or more, each split has at least one.
    """
    value = np.array([int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") for name in names],
                     np.uint64)
    val = value < fraction * 2**32
    if len(names) > 1 and not val.any():
        val[value.argmin()] = True
    if len(names) > 1 and val.all():
        val[value.argmax()] = False
    return np.flatnonzero(val if split == "val" else ~val)


def pick_split(source: Source, split: str | None, label: Callable[[int], str | None] | None = None,
               fraction: float = VAL_FRACTION, by_hash: bool = True) -> Source:
    """The part of a source that `split` names (None: all).

    label(index) says which split a record has been put into. Where it says so of none, `hash_split` decides, if
    by_hash. Raises NoSplit for a split that does not exist.
    """
    if split is None:
        return source
    labels = [label(i) for i in range(len(source))] if label else []
    known = sorted({found for found in labels if found})
    if known:
        if split not in known:
            raise NoSplit(f"{source.name} has no split {split!r}: its splits are {', '.join(known)}", known)
        return source.select([i for i, found in enumerate(labels) if found == split])
    if not by_hash:
        raise NoSplit(f"{source.name} does not say how it is split")
    if split not in ("train", "val"):
        raise NoSplit(f"{source.name} does not say how it is split: ask for 'train' or 'val', which are then made by "
                      f"hash ({fraction:.0%} val)")
    return source.select(hash_split(source.names(), split, fraction))


def halves(source: Source) -> tuple[Source, Source]:
    """(train, val) by `hash_split`."""
    train, val = (source.select(hash_split(source.names(), split)) for split in ("train", "val"))
    return train, val
