"""What a training learns from: its sources, checked; embeddings made once; a thinner copy for quick scores."""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from samjax.data import open_source
from samjax.data.check import Report, check
from samjax.data.records import Record
from samjax.data.sources import LEAST, NoSplit, Source, halves
from samjax.errors import InputError
from samjax.train.options import Options
from samjax.train.training_options import TrainingOptions

MANY = 20_000  # pictures of a source that are read before training starts, at most


def open_all(options: Options) -> dict[str, list[Source]]:
    """{"train": [...], "val": [...], "mix": [...], "kept": [...]}: kept are the val splits of what is mixed in."""
    settings = {"images": options.images or None, "masks": options.masks}
    if options.val:
        train = [_not_held_out(path, settings) for path in options.data]
        val = [_held_out(path, settings, options.data) for path in options.val]
    else:
        train, val = _columns(_train_and_val(path, settings) for path in options.data)
    mix, kept = _columns(_train_and_val(path, {}) for path in options.mix)
    return {"train": train, "val": val, "mix": mix, "kept": kept}


def open_for_training(options: TrainingOptions) -> dict[str, list[Source]]:
    """{"train": [...], "val": [...]}. What is validated on is what --val names, or the val splits that the data
    themselves name, or nothing: no picture is held out otherwise."""
    if options.images and not os.path.isdir(options.images):
        raise InputError(f"--images {options.images}: no such folder")
    settings = {"images": options.images or None, "masks": options.masks}
    train = [_not_held_out(path, settings) for path in options.data]
    if options.val:
        return {"train": train, "val": [_held_out(path, settings, options.data, "give others")
                                        for path in options.val]}
    val = []
    for path in options.data:
        with contextlib.suppress(NoSplit):
            val.append(open_source(path, "val", **settings, by_hash=False))
    return {"train": train, "val": val}


def _columns(pairs) -> tuple[list[Source], list[Source]]:
    pairs = list(pairs)
    return [train for train, _ in pairs], [val for _, val in pairs]


def _train_and_val(path: str, settings: dict) -> tuple[Source, Source]:
    """As the data say; where they name no val split, a fifth of train by hash: a test split is left alone."""
    train = open_source(path, "train", **settings)
    try:
        return train, open_source(path, "val", **settings)
    except NoSplit:
        return halves(train)


def _not_held_out(path: str, settings: dict) -> Source:
    """The train split; of data that name no splits all, since others are there to validate on."""
    try:
        return open_source(path, "train", **settings, by_hash=False)
    except NoSplit as error:
        if error.known:
            raise
        return open_source(path, None, **settings)


def _held_out(path: str, settings: dict, data: Sequence[str],
              otherwise: str = "leave --val out, and a fifth of them is") -> Source:
    """The val split, else the test split; else all of it, since it was given for this."""
    try:
        return open_source(path, "val", **settings, by_hash=False)
    except NoSplit as error:
        if "test" in error.known:
            return open_source(path, "test", **settings)
        if os.path.realpath(path) in map(os.path.realpath, data):
            raise InputError(f"--val {path} is trained on too, and does not say which of its pictures are for "
                             f"validation: {otherwise}") from None
        return open_source(path, None, **settings)


def check_all(sources: dict[str, list[Source]], progress: Callable | None = None) -> dict[str, list[Report]]:
    """Reads everything once, of huge sources `MANY` pictures; reports in the places of the sources."""
    return {part: [check(source, progress, MANY) for source in found] for part, found in sources.items()}


def usable(sources: dict[str, list[Source]], reports: dict[str, list[Report]]) -> dict[str, list[Source]]:
    """The sources without what cannot be used. Raises InputError where nothing is left."""
    kept = {part: [source.select(report.good, source.name) for source, report in zip(found, reports[part])]
            for part, found in sources.items()}
    kept["kept"] = [source for source in kept["kept"] if len(source)]  # only scored
    for part in ("train", "val", "mix"):
        for source, report in zip(kept[part], reports[part]):
            if not len(source):
                reason = f"; the first: {report.bad[0].name}: {report.bad[0].reason}" if report.bad else ""
                raise InputError(f"{source.name}: none of its pictures in the split {part!r} can be used{reason}")
    return kept


def spread(source: Source, most: int) -> Source:
    """At most so many pictures, evenly spread; of a spread of twice as many, every other one."""
    count = min(len(source), most)
    return source.select([i * len(source) // count for i in range(count)], source.name)


def names_of(sources: Sequence[Source]) -> list[str]:
    return [f"{source.name}: {name}" for source in sources for name in source.names()]


def names_hash(names: Sequence[str]) -> str:
    """Of names of pictures, whatever their order."""
    return hashlib.sha256("\n".join(sorted(names)).encode(errors="surrogateescape")).hexdigest()[:16]


class Thinned(Source):
    """At most `objects` objects of all pictures together, every picture with about as many; `pictures` limits those."""

    def __init__(self, source: Source, objects: int, pictures: int | None = None):
        count = min(len(source), objects, pictures or len(source))
        self.source, self.name = source, source.name
        self.indices = [i * len(source) // count for i in range(count)]
        self.most = max(objects // count, 1)

    def __len__(self) -> int:
        return len(self.indices)

    def item_name(self, index: int) -> str:
        return self.source.item_name(self.indices[index])

    def record(self, index: int) -> Record:
        record = self.source.record(self.indices[index])
        objects = [mask for mask in record.objects if mask.area() >= LEAST]
        if len(objects) > self.most:
            random = np.random.default_rng(len(objects))
            objects = [objects[i] for i in sorted(random.choice(len(objects), self.most, replace=False))]
        return replace(record, objects=objects)


class Listening(Source):
    """A source that remembers the names of the records that are asked for."""

    def __init__(self, source: Source, heard: list[str]):
        self.source, self.heard, self.name = source, heard, source.name

    def __len__(self) -> int:
        return len(self.source)

    def item_name(self, index: int) -> str:
        return self.source.item_name(index)

    def record(self, index: int) -> Record:
        return self.source.record(index)

    def __getitem__(self, index: int) -> Record:
        self.heard.append(self.item_name(index))
        return self.source[index]


class Features:
    """Embeddings on disk, one file a picture, float16; `features[name] -> (features, size)`, as `with_features` asks.

    What is there already is not made again, so it can be broken off at any moment. Each file says by a hash which
    pixels it was made of.
    """

    def __init__(self, folder, prefix: str):
        self.folder, self.prefix = os.fspath(folder), prefix

    def path(self, name: str) -> str:
        return os.path.join(self.folder, hashlib.blake2b(f"{self.prefix}\n{name}".encode(), digest_size=12).hexdigest()
                            + ".npz")

    def __getitem__(self, name: str) -> tuple[np.ndarray, tuple[int, int]]:
        try:
            with np.load(self.path(name)) as found:
                return found["features"].astype(np.float32), tuple(found["size"].tolist())
        except FileNotFoundError:
            raise KeyError(name) from None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path(name)} is damaged ({error}): remove it") from None

    def made_of(self, name: str) -> str:
        """The hash that `write` was given; "" where there is none."""
        with contextlib.suppress(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile), np.load(
                self.path(name)) as found:
            return str(found["pixels"])
        return ""

    def write(self, name: str, features: np.ndarray, size: tuple[int, int], pixels: str = "") -> None:
        path = Path(self.path(name))
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(temporary, features=features.astype(np.float16), size=np.array(size, np.int32),
                     pixels=np.array(pixels))
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise InputError(f"cannot write embeddings to {self.folder}: {(error.strerror or str(error)).lower()}; "
                             "make room, and the same command goes on from there") from None


def embed(sam, source: Source, folder, mark: str, progress: Callable[[int, int], None] | None = None,
          places: Iterable[int] | None = None) -> Features:
    """Makes the embeddings of a source's pictures that are missing in a folder, or were made of other pixels.

    mark: what they depend on beside the picture. places: of the pictures (all by default); progress as they go.
    """
    from samjax.geometry import target_size

    features = Features(folder, f"{mark}\n{source.name}")
    for done, index in enumerate(range(len(source)) if places is None else places, 1):
        name, image = source.item_name(index), source.record(index).image
        pixels = hashlib.blake2b(image.tobytes(), digest_size=12).hexdigest()
        if features.made_of(name) != pixels:
            made = sam.encode(image)
            size = target_size(*made.image_sizes[0].tolist(), sam.config.image_size)
            features.write(name, np.asarray(made.features[0]), size, pixels)
        if progress is not None:
            progress(done, len(source))
    return features


def write_json(path, value) -> None:
    """A file of JSON, renamed into place. Raises InputError: a full disk, no permission."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(value, indent=1) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
