"""Pictures of a job, read and resized ahead of the devices by a grain pipeline in threads. No JAX."""

import contextlib
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from samjax.errors import InputError
from samjax.inputs import Source

THREADS = 8


class Mark(NamedTuple):
    """What tells a file from another: its size in bytes and its sha256."""

    bytes: int
    sha256: str


class Reading(NamedTuple):
    """A source with what was read of it, or with the error that was met."""

    source: Source
    picture: object = None
    mark: Mark | None = None
    error: Exception | None = None


def mark(path) -> Mark:
    """The mark of a file. Raises OSError."""
    with open(path, "rb") as file:
        return Mark(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def unchanged(items: Sequence[tuple[Source, Mark | None]]) -> list[bool]:
    """For each source whether its file has that mark still; files of another size are not read."""
    def same(item) -> bool:
        source, before = item
        with contextlib.suppress(OSError):
            return before is not None and os.path.getsize(source.path) == before.bytes and mark(source.path) == before
        return False

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(same, items))


def reason_of(source: Source, error: Exception) -> str:
    """Why there is nothing of a source, in one line that does not name it."""
    if isinstance(error, InputError):
        return str(error).removeprefix(source.path).lstrip(": ")
    return " ".join(f"{type(error).__name__}: {error}".split())


def worked_on(sources: Sequence[Source], read: Callable[[str], object],
              each: Callable[[Iterable[object]], Iterator[object]], ahead: int) -> Iterator[tuple[Reading, object]]:
    """Each source, in order, with what `each` makes of its picture: None where the reading has an error.

    each: pictures, in order -> something for each. What cannot be read passes by it.
    """
    taken: deque[Reading] = deque()

    def readable():
        for reading in read_ahead(sources, read, ahead):
            taken.append(reading)
            if reading.error is None:
                yield reading.picture

    for end, found in itertools.chain(zip(itertools.repeat(False), each(readable())), [(True, None)]):
        while taken and taken[0].error is not None:
            yield taken.popleft(), None
        if not end:
            yield taken.popleft(), found


def read_ahead(sources: Sequence[Source], read: Callable[[str], object], ahead: int) -> Iterator[Reading]:
    """Each source with what `read` makes of its path, in order; up to `ahead` of them are read before they are taken.

    read may raise anything: it becomes the reading's error.
    """
    if not sources:
        return
    import grain

    def one(source: Source) -> Reading:
        try:
            before = None
            with contextlib.suppress(OSError):  # read says better what is wrong
                before = mark(source.path)  # first: of a file that is replaced meanwhile, the next run sees it
            picture = read(source.path)
            return Reading(source, picture, before or mark(source.path))
        except Exception as error:  # one picture's failure is not the others'
            return Reading(source, error=error)

    options = grain.ReadOptions(num_threads=min(THREADS, ahead), prefetch_buffer_size=ahead)
    pipeline = iter(grain.MapDataset.source(sources).map(one).to_iter_dataset(options))
    try:
        yield from pipeline
    finally:
        with contextlib.suppress(AttributeError):
            pipeline.close()
