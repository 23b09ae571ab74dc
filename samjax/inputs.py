"""Which pictures a job works on: files, folders and patterns become one sorted list, each picture once and named."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path, PurePath

from samjax.errors import InputError

# What is taken for a picture in a folder. HEIC and JPEG XL need plugins of Pillow's; without them they are reported.
SUFFIXES = frozenset((
    ".apng", ".avif", ".bmp", ".dds", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2",
    ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".jxl", ".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd",
    ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp",
))
RESERVED = re.compile(r"(manifest(-\d+-of-\d+)?|instances)", re.IGNORECASE)  # stems of a job's own files


@dataclass(frozen=True)
class Source:
    """A picture of a job.

    path: as it is opened. name: as outputs call it, relative to the folder or pattern it was found by, with "/".
    stem: of its output files: the name without its suffix, or with it where another picture has that stem.
    """

    path: str
    name: str
    stem: str


def find_sources(paths: Sequence[str], out, drawing: bool = True) -> tuple[list[Source], int]:
    """The pictures that `paths` mean, sorted by name, and the number of other files that were passed over.

    A file is taken whatever its suffix. Of a folder (with its subfolders) and of a pattern such as `photos/*.jpg` the
    files with a picture's suffix are, hidden ones never, and nothing that lies in `out`. A file that is reached twice
    counts once. Where two pictures would have one name, all are named from the folder that is common to all.

    drawing: the job writes pictures, so that `out` may not be one of the folders itself.

    Raises InputError: nothing there, no picture, `out` is one of the folders.
    """
    paths, found, others = [os.fspath(path) for path in paths], {}, set()
    for path in sorted(set(paths), key=lambda path: (os.path.isfile(path), path)):
        for file, root in _reach(path, out, drawing):
            real = os.path.realpath(file)
            if root is not None and not _like_picture(file):
                others.add(real)
            else:
                found.setdefault(real, (file, _name(file, root)))
    others -= found.keys()
    if not found:
        raise InputError(f"no pictures in {', '.join(paths)} ({len(others)} other "
                         f"file{'' if len(others) == 1 else 's'}): give pictures, folders that "
                         "hold some, or patterns")
    return _sources(list(found.values())), len(others)


def _reach(path: str, out, drawing: bool) -> Iterator[tuple[str, str | None]]:
    """Yields (file, the folder its name counts from): None for a file that was given itself."""
    if os.path.isfile(path):
        yield path, None
    elif os.path.isdir(path):
        for file in _walk(path, _spared(path, out, drawing)):
            yield file, path
    elif glob.has_magic(path):
        root = os.path.join("", *takewhile(lambda part: not glob.has_magic(part), Path(path).parts)) or "."
        spared = _spared(root, out, drawing)
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise InputError(f"{path}: no file has such a name")
        for match in matches:
            if spared is not None and _inside(match, spared):
                continue
            for file in _walk(match, spared) if os.path.isdir(match) else [match]:
                yield file, root
    elif os.path.exists(path):
        raise InputError(f"{path} is neither a file nor a folder")
    else:
        raise InputError(f"{path}: no such file or folder")


def _spared(root: str, out, drawing: bool) -> str | None:
    """The real path of `out` if it lies below root, so that a job's pictures are not its next inputs."""
    if os.path.realpath(root) == os.path.realpath(out):
        if not drawing:
            return None
        raise InputError(f"--out {out} is the folder that the pictures come from: choose another, "
                         f"{os.path.join(out, 'masks')} for one")
    return os.path.realpath(out) if _inside(out, os.path.realpath(root)) else None


def _inside(path, folder: str) -> bool:
    """Whether path is the folder (a real path) or lies below it."""
    return Path(os.path.realpath(path)).is_relative_to(folder)


def _walk(folder: str, spared: str | None) -> Iterator[str]:
    """The files below a folder. Links to folders are followed, but each folder is entered once."""
    def fail(error):
        raise InputError(f"{error.filename}: cannot be listed: {error.strerror}")

    entered = {os.path.realpath(folder), spared}
    for where, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(where, name))
            if not name.startswith(".") and real not in entered:
                entered.add(real)
                kept.append(name)
        folders[:] = kept
        yield from (os.path.join(where, name) for name in sorted(files) if not name.startswith("."))


def _like_picture(file: str) -> bool:
    """By its suffix; a pipe is none, a link that leads nowhere is one (to be reported)."""
    known = os.path.splitext(file)[1].lower() in SUFFIXES
    return known and (os.path.isfile(file) or not os.path.exists(file))


def _name(file: str, root: str | None) -> str:
    relative = os.path.basename(file) if root is None else os.path.relpath(file, root)
    return PurePath(os.path.basename(file) if relative.startswith(os.pardir) else relative).as_posix()


def _sources(found: list[tuple[str, str]]) -> list[Source]:
    if len({name for _, name in found}) < len(found):
        common = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file, _ in found])
        found = [(file, _name(file, common)) for file, _ in found]
    sources, taken = [], set()
    for file, name in sorted(found, key=lambda item: item[1]):
        stem = next(stem for stem in _stems(name) if stem.casefold() not in taken and not RESERVED.fullmatch(stem))
        taken.add(stem.casefold())  # some file systems do not tell A.json from a.json
        sources.append(Source(file, name, stem))
    return sources


def _stems(name: str) -> Iterator[str]:
    yield os.path.splitext(name)[0]
    yield name
    yield from (f"{name}-{number}" for number in count(2))
