"""`samjax.embed`: embeddings of many pictures as files, for training and search; `samjax.embeddings` reads them.

Pictures, in the order of their names, are cut into shards of a fixed number; a shard's files are written when all its
pictures are done. So a killed job loses at most the shard it was at, its processes share whole shards, and the files
do not depend on devices, processes or interruptions. A picture that is broken leaves a row of zeros that no entry of
the shard's JSON points at.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np

from samjax import __version__
from samjax.embeddings import DTYPES
from samjax.errors import InputError
from samjax.inputs import Source, find_sources
from samjax.outputs import check_folder
from samjax.reading import Mark, reason_of, unchanged, worked_on
from samjax.work import Work, differences, read_json, short_hash, working


@dataclass(frozen=True)
class Bulk:
    """What is to be embedded, and how. model: {"name", "architecture", "sha256", "dtype"}; store: see DTYPES."""

    sources: Sequence[Source]
    out: Path
    model: dict
    store: str = "float16"
    shard: int = 64
    process: int = 0
    processes: int = 1

    @cached_property
    def made_with(self) -> dict:
        model = {name: self.model[name] for name in ("sha256", "dtype", "int8") if name in self.model}
        return {**model, "store": self.store, "shard": self.shard}

    @cached_property
    def key(self) -> str:
        return short_hash(self.made_with)

    @property
    def index(self) -> Path:
        return self.out / "index.json"

    @property
    def shards(self) -> int:
        return -(-len(self.sources) // self.shard)

    def of(self, shard: int) -> Sequence[Source]:
        return self.sources[shard * self.shard : (shard + 1) * self.shard]

    def files(self, shard: int) -> tuple[Path, Path]:
        return self.out / f"shard-{shard:05d}.npy", self.out / f"shard-{shard:05d}.json"


@dataclass(frozen=True)
class Encoder:
    """What the work needs of a model: `read` as in `samjax.job.Model`; `each` gives stored features for pictures."""

    read: Callable[[str], object]
    each: Callable[[Iterable[object]], Iterator[np.ndarray | Exception]]
    size: Callable[[tuple[int, int]], tuple[int, int]]  # a picture's (h, w) -> its (h, w) in the frame
    ahead: int = 2


def embed(model, paths, out, *, dtype: str = "float32", store: str = "float16", shard: int = 64, restart: bool = False,
          process: int = 0, processes: int = 1, progress: Callable[[str, str | None], None] | None = None,
          int8: bool = False) -> dict:
    """Writes the embeddings of pictures into a folder, by all devices of this process. Goes on where it was killed.

    Args:
        model: a known name, a path, or a `Sam`.
        paths: a picture, a folder (with its subfolders), a pattern, or a list of these.
        out: the folder to write into; `samjax.embeddings.Embeddings(out)` reads it.
        dtype: of the computation, "float32" or "bfloat16" (a `Sam` has its own).
        store: of the files: "float16" (2 MB a picture), "bfloat16" or "float32" (4 MB).
        shard: pictures in a file.
        restart: replace what was made otherwise.
        process, processes: this process embeds every so many-th shard.
        progress: called with each picture's name and None, or the reason why it failed.
        int8: see `samjax.load` (a `Sam` has its own).

    Returns:
        {"images": n, "failures": {name: reason}, "skipped": other files, "done_before": n, "complete": bool}: the
        counts are of this process's share, complete says whether all shares are done.

    Raises InputError.
    """
    if store not in DTYPES:
        raise InputError(f"store {store!r} is none of {', '.join(DTYPES)}")
    if isinstance(shard, bool) or not isinstance(shard, int) or not 0 < shard < 100_000:
        raise InputError(f"shard must be a whole number of pictures, not {shard!r}")
    sources, skipped = find_sources([paths] if isinstance(paths, (str, os.PathLike)) else list(paths), out, False)
    check_folder(out)
    about, open_encoder = _model(model, dtype, store, int8)
    bulk = Bulk(sources, Path(out), about, store, shard, process, processes)
    failures, before, images = {}, 0, 0
    for name, reason, earlier in run(bulk, open_encoder, restart):
        images, before = images + (reason is None), before + earlier
        if reason is not None:
            failures[name] = reason
        if progress is not None:
            progress(name, reason)
    return {"images": images, "failures": failures, "skipped": skipped, "done_before": before,
            "complete": bool(read_json(bulk.index).get("complete"))}


def check(bulk: Bulk, restart: bool = False) -> None:
    """Raises InputError if the folder belongs to something else, or (unless `restart`) was filled otherwise."""
    if not bulk.index.exists():
        files = (path for shard in range(bulk.shards) for path in bulk.files(shard))
        others = next((path for path in files if path.exists()), None)
        if others is None:
            return
        if not bulk.index.exists():  # otherwise the job has begun meanwhile, in another process
            raise InputError(f"{others} exists and was not written by samjax embed: choose another --out")
    then = read_json(bulk.index).get("made_with")
    if not isinstance(then, dict):
        raise InputError(f"{bulk.index} is not of samjax embed: choose another --out")
    changes = differences(then, bulk.made_with)
    if changes and not restart:
        raise InputError(f"{bulk.out} holds embeddings that were made otherwise ({changes}): choose another --out, or "
                         "give --restart to replace them")


def run(bulk: Bulk, open_encoder: Callable[[], Encoder], restart: bool = False) -> Iterator[tuple]:
    """Does what is not done of this process's shards; yields (name, reason of failure or None, done before).

    Raises InputError: see `check`; or if files cannot be written.
    """
    with working(bulk.out, bulk.process, bulk.processes, bulk.key) as work:
        with work.turn():
            check(bulk, restart)
            work.put_json(bulk.index, _index(bulk), indent=1)
        shards = range(bulk.process, bulk.shards, bulk.processes)
        kept = {shard: {} if restart else _kept(bulk, shard) for shard in shards}
        left = [source for shard in shards for source in bulk.of(shard) if source.name not in kept[shard]]
        results = _results(left, open_encoder)
        for shard in shards:
            yield from _shard(bulk, work, shard, kept[shard], results)
        with work.turn():
            _end(bulk, work)


def _shard(bulk: Bulk, work: Work, shard: int, kept: dict, results: Iterator) -> Iterator[tuple]:
    """Brings a shard up to date, with the next results for those of its sources that are not kept."""
    sources, (array, about) = bulk.of(shard), bulk.files(shard)
    yield from ((source.name, None, True) for source in sources if source.name in kept)
    if len(kept) == len(sources) == read_json(about).get("sources"):
        return
    entries, failures, rows, temporary = dict(kept), [], None, work.folder / "rows.npy"
    for row, source in enumerate(sources):
        if source.name in kept:
            continue
        entry, found = next(results)
        failed = isinstance(found, Exception)
        if failed:
            failures.append({"file": source.name, "reason": reason_of(source, found)})
            found = _stale(array, row) if kept else None
        if found is not None:
            if rows is None:
                rows = _rows(bulk, temporary, (len(sources), *found.shape), found.dtype, array if kept else None)
            rows[row] = found
        if not failed:
            entries[source.name] = {"name": source.name, "row": row, **entry}
        yield source.name, failures[-1]["reason"] if failed else None, False
    if rows is None and kept and len(old := np.load(array, mmap_mode="r")) != len(sources):  # the list is another now
        rows = _rows(bulk, temporary, (len(sources), *old.shape[1:]), old.dtype, array)
    if rows is not None:
        rows.flush()
        del rows
        about.unlink(missing_ok=True)  # it tells of the old rows
        work.put(array, partial(shutil.move, temporary))
    if not entries:
        array.unlink(missing_ok=True)
    images = [entries[source.name] for source in sources if source.name in entries]
    work.put_json(about, {"key": bulk.key, "sources": len(sources), "images": images, "failures": failures},
                  indent=1)


def _stale(array: Path, row: int) -> np.ndarray | None:
    """Zeros for a row of an older array that holds something else."""
    before = np.load(array, mmap_mode="r")
    return np.zeros_like(before[row]) if row < len(before) and before[row].any() else None


def _rows(bulk: Bulk, path: Path, shape: tuple, dtype, old: Path | None) -> np.ndarray:
    """A shard's array on disk, with what the old one holds."""
    try:
        rows = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if old is not None:
            before = np.load(old, mmap_mode="r")
            rows[: len(before)] = before[: len(rows)]
    except OSError as error:
        raise InputError(f"cannot write to {bulk.out}: {(error.strerror or str(error)).lower()}; what is done stays, "
                         "and the same command goes on from there") from None
    return rows


def _kept(bulk: Bulk, shard: int) -> dict[str, dict]:
    """The entries of a shard that an earlier run made of the same pictures in the same rows, by name."""
    array, about = bulk.files(shard)
    found = read_json(about)
    if found.get("key") != bulk.key or not array.is_file():
        return {}
    entries = {entry["name"]: entry for entry in found["images"]}
    sources = [source for row, source in enumerate(bulk.of(shard))
               if source.name in entries and entries[source.name]["row"] == row]
    marks = [(source, Mark(entries[source.name]["bytes"], entries[source.name]["sha256"])) for source in sources]
    return {source.name: entries[source.name] for source, same in zip(sources, unchanged(marks)) if same}


def _end(bulk: Bulk, work: Work) -> None:
    """If all shards are there, says so in the index, and removes those of a longer list."""
    shards = [read_json(bulk.files(shard)[1]) for shard in range(bulk.shards)]
    if any(found.get("key") != bulk.key or found.get("sources") != len(bulk.of(i)) for i, found in enumerate(shards)):
        return
    for about in sorted(bulk.out.glob("shard-?????.json")):
        number = about.stem.removeprefix("shard-")
        if number.isdigit() and int(number) >= bulk.shards and {"key", "sources", "images"} <= read_json(about).keys():
            for path in bulk.files(int(number)):
                path.unlink(missing_ok=True)
    first = next((i for i, found in enumerate(shards) if found["images"]), None)
    shape = [] if first is None else list(np.load(bulk.files(first)[0], mmap_mode="r").shape[1:])
    work.put_json(bulk.index, _index(bulk) | {
        "complete": True, "images": sum(len(found["images"]) for found in shards), "shape": shape,
        "failures": [failure for found in shards for failure in found["failures"]]}, indent=1)


def _index(bulk: Bulk) -> dict:
    return {"samjax": __version__, "model": bulk.model, "made_with": bulk.made_with, "key": bulk.key,
            "dtype": bulk.store, "shards": bulk.shards, "complete": False}


def _results(sources: list[Source], open_encoder) -> Iterator[tuple[dict, np.ndarray | Exception]]:
    """For each source its entry and its features, or an exception; in order."""
    if not sources:
        return
    encoder = open_encoder()
    for reading, features in worked_on(sources, encoder.read, encoder.each, encoder.ahead):
        if reading.error is not None:
            yield {}, reading.error
        else:
            hw = reading.picture.pixels.shape[:2]
            yield {"size": list(encoder.size(hw)), "image_size": list(hw), **reading.mark._asdict()}, features


def _model(model, dtype: str, store: str, int8: bool) -> tuple[dict, Callable[[], Encoder]]:
    """What the index says of a model, and a function that opens it."""
    if not isinstance(model, (str, os.PathLike)):
        config = model.config
        about = {"name": config.name, "architecture": config.name, "sha256": _hash(model), "dtype": config.dtype}
        return about, lambda: _encoder(model, store)
    import convert
    from samjax.job import fingerprint
    from samjax.weights import KNOWN, resolve

    path = resolve(model)
    config = convert.read(path).config
    sha256 = KNOWN[model].sha256 if model in KNOWN else fingerprint(path)
    about = {"name": os.fspath(model), "architecture": config.name, "sha256": sha256, "dtype": dtype}
    return about | ({"int8": True} if int8 else {}), lambda: _encoder(_load(path, dtype, int8), store)


def _load(path, dtype: str, int8: bool):
    from samjax.predict import load

    return load(path, dtype=dtype, int8=int8)


def _hash(sam) -> str:
    """Of a model that is in memory: its config and its image encoder's parameters."""
    import jax

    digest = hashlib.sha256(repr(sam.config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(sam.params["image_encoder"]):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _encoder(sam, store: str) -> Encoder:
    from samjax.automatic import read
    from samjax.geometry import target_size
    from samjax.lockstep import Lockstep

    capacity = Lockstep(sam).capacity
    return Encoder(partial(read, sam.config), lambda pictures: _encoded(sam, pictures, store, capacity),
                   lambda hw: target_size(*hw, sam.config.image_size), ahead=1 + capacity)


def _encoded(sam, pictures: Iterable, store: str, size: int) -> Iterator[np.ndarray | Exception]:
    """The stored features of each picture, `size` at a time; the next are under way then."""
    pictures, waiting = iter(pictures), None
    program = _program(sam.config, store)
    while True:
        group = list(itertools.islice(pictures, size))
        begun = _begin(sam, program, group, size) if group else None
        if waiting is not None:
            yield from _fetched(sam, program, *waiting)
        if begun is None:
            return
        waiting = group, begun


def _begin(sam, program, group: list, size: int):
    from samjax.geometry import target_size

    filled = group + group[-1:] * (size - len(group))
    valid = np.array([target_size(*picture.hw, sam.config.image_size) for picture in filled], np.int32)
    return program(sam.everywhere, program.feed((np.stack([picture.frame for picture in filled]), valid)))


def _fetched(sam, program, group: list, begun) -> Iterator[np.ndarray | Exception]:
    """Where a batch failed, each of its pictures is tried alone."""
    try:
        rows = program.fetch(begun)[: len(group)]
    except Exception as error:
        if len(group) == 1:
            yield error
            return
        for picture in group:
            yield from _fetched(sam, program, [picture], _begin(sam, program, [picture], len(program.devices)))
        return
    yield from rows if rows.dtype in (np.float16, np.float32) else rows.view(np.uint16)


@lru_cache(maxsize=8)
def _program(config, store: str):
    from samjax.model.sam import encode_image
    from samjax.parallel import mesh_map
    from samjax.predict import normalise

    return mesh_map(lambda params, batch: encode_image(config, params, normalise(config, *batch)).astype(store))
