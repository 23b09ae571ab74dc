"""Indexes of large files, built once and kept: arrays that every process maps into its memory.

An index is a directory of .npy files, named after the file's name, size and time, so that a changed file gets a new
one. It is written to a temporary name and renamed.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from samjax.errors import InputError
from samjax.weights import cache_dir

VERSION = 1


class Index:
    """Arrays by name, mapped when they are first used. Pickles as its path."""

    def __init__(self, folder: Path):
        self.folder, self._arrays = folder, {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return self._arrays[name]

    def __getstate__(self):
        return {"folder": self.folder, "_arrays": {}}


def open_index(path: Path, build: Callable[[Path], dict[str, np.ndarray]], beside: bool = False) -> Index:
    """The index of the file `path`: an old one, or what `build` makes of it.

    It is kept in the cache directory; or, with `beside`, as a hidden directory next to the file, where that can be
    written. Raises InputError where it cannot be kept at all.
    """
    path = Path(os.path.abspath(path))
    state = path.stat()
    mark = f"{state.st_size:x}-{state.st_mtime_ns:x}-v{VERSION}"
    place = hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()
    homes = [cache_dir() / "index" / f"{path.name}-{place}-{mark}"]
    if beside:
        homes.insert(0, path.parent / f".{path.name}-{mark}.samjax")
    for home in homes:
        if home.is_dir():
            return Index(home)
    arrays = build(path)
    for home in homes:
        with contextlib.suppress(OSError):
            return _write(home, arrays)
    raise InputError(f"the index of {path} cannot be written to {homes[-1].parent}: set SAMJAX_CACHE to a directory "
                     "with room")


def _write(home: Path, arrays: dict[str, np.ndarray]) -> Index:
    home.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".samjax-", dir=home.parent))
    try:
        temporary.chmod(0o755)
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        try:
            os.rename(temporary, home)
        except OSError:
            if not home.is_dir():  # otherwise another process was first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Index(home)
