"""A file read a piece at a time, and a file written whole or not at all."""

import contextlib
import math
import mmap
import os
import stat
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import BinaryIO

import numpy as np

from samjax.errors import InputError

_SHORT = "is damaged or cut short; fetch or save it again"


def bad_file(path, what: str) -> InputError:
    """An error about one file, on one line whatever it holds: `what` may quote names found inside it."""
    text = f"{os.fspath(path)}: {what}"
    return InputError("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def quote(name: object) -> str:
    """A name found in a file, short enough for a message."""
    text = name if isinstance(name, str) else f"<{type(name).__name__}>"
    return repr(text if len(text) <= 100 else text[:97] + "...")


def contiguous(shape: tuple[int, ...], step: int = 1) -> tuple[int, ...]:
    """The strides of C order, where an axis that does not move has 0; `step` is the element's size."""
    return tuple(step * math.prod(shape[axis + 1:]) if n > 1 else 0 for axis, n in enumerate(shape))


def strided_copy(buffer, dtype: np.dtype, start: int, shape: tuple[int, ...], strides) -> np.ndarray:
    """A C-contiguous copy of elements of a buffer, with any alignment; `strides` are in bytes."""
    # As plain integers, whose copy never interprets the values.
    return _typed(np.ndarray(shape, f"u{dtype.itemsize}", buffer, start, strides).copy(order="C"), dtype)


def _typed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Unsigned integers as what they are; a truth value is any byte but 0."""
    return np.asarray(values != 0) if dtype.kind == "b" else values.view(dtype)


class InputFile:
    """A regular file open for reading, by any number of threads; it is closed when nothing refers to it."""

    def __init__(self, path):
        self.path = Path(path)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: a pipe would wait for its writer
                raise bad_file(path, "is not a file")
            self._file = open(path, "rb")  # noqa: SIM115 (closed by the finalizer)
        except OSError as error:
            raise bad_file(path, f"cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise bad_file(path, f"cannot be read: {error}") from None
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self.size = os.fstat(self._file.fileno()).st_size
        if not self.size:
            raise bad_file(path, "is empty; fetch or save it again")

    def bad(self, what: str) -> InputError:
        """`bad_file` about this file."""
        return bad_file(self.path, what)

    def read(self, start: int, count: int) -> bytes:
        """The bytes [start, start + count). Raises InputError if the file does not have them."""
        return self._at(start, self._within(start, count), self._file.read)

    def array(self, dtype: np.dtype, start: int, shape: tuple[int, ...], strides=None) -> np.ndarray:
        """A new C-contiguous array of the elements at byte `start`, which lie `strides` bytes apart (as given
        by `contiguous`, or otherwise not negative; the default is C order). Raises InputError if the file
        does not have them."""
        size = dtype.itemsize * math.prod(shape)
        if not size:
            return np.empty(shape, dtype)
        if strides in (None, contiguous(shape, dtype.itemsize)):
            data = np.empty(self._within(start, size), np.uint8)
            self._at(start, size, lambda count: memoryview(data)[:self._file.readinto(data)])
            return _typed(data.view(f"u{dtype.itemsize}").reshape(shape), dtype)
        span = dtype.itemsize + sum((n - 1) * step for n, step in zip(shape, strides))
        if start + span > os.fstat(self._file.fileno()).st_size:  # a page beyond the end kills the process
            raise self.bad(_SHORT)
        try:  # through a map: the elements may be few and far between
            with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return strided_copy(mapped, dtype, start, shape, strides)
        except OSError as error:
            raise self.bad(f"cannot be read: {error.strerror or error}") from None

    def _within(self, start: int, count: int) -> int:
        if start < 0 or count < 0 or start + count > self.size:
            raise self.bad(_SHORT)
        return count

    def _at(self, start: int, count: int, read: Callable[[int], Sized]) -> Sized:
        try:
            with self._lock:
                self._file.seek(start)
                data = read(count)
        except OSError as error:
            raise self.bad(f"cannot be read: {error.strerror or error}") from None
        if len(data) < count:
            raise self.bad(_SHORT)
        return data


@contextlib.contextmanager
def replacing(path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` once the block has ended well; otherwise nothing is left.

    An OSError (no such folder, no permission, disk full) becomes an InputError.
    """
    path = Path(path)
    temporary = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        try:
            with open(temporary, "xb") as file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise bad_file(path, f"cannot be written: {error.strerror or error}") from None
    except ValueError as error:
        if "\0" in str(path):
            raise bad_file(path, "cannot be written: a NUL in its name") from None
        raise error
