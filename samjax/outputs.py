"""Several files written together: all of them or none."""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from samjax.errors import InputError


def check_folder(folder) -> None:
    """Raises InputError if files can evidently not be written to `folder`, which need not exist yet."""
    path = Path(os.path.abspath(folder))
    nearest = next(p for p in (path, *path.parents) if p.exists())
    if not nearest.is_dir():
        raise InputError(f"cannot write to {folder}: {nearest} is a file, not a directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}: no permission in {nearest}; choose another directory")


def write_all(folder, writers: Mapping[str, Callable[[str], None]]) -> None:
    """Writes files into `folder` (made if need be): all of them, or none.

    writers: file name -> a function that writes the path it is given. They run in threads, into a directory beside
    the files; when all have ended well, the files are renamed into place. Raises InputError: no permission, no room.
    """
    folder = Path(folder)
    made, temporary = [], None
    try:
        made = _make(folder)
        temporary = Path(tempfile.mkdtemp(prefix=".samjax-", dir=folder))
        with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
            list(pool.map(lambda item: item[1](os.fspath(temporary / item[0])), writers.items()))
        _rename(temporary, folder, writers)
        made = []
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {(error.strerror or str(error)).lower()}; nothing was written, "
                         "choose another directory or make room") from None
    except InputError as error:  # of a writer, which knows only the temporary name
        raise InputError(str(error).replace(f"{temporary}{os.sep}", f"{folder}{os.sep}")) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()


def _make(folder: Path) -> list[Path]:
    """Makes the directory; returns those that were not there before, outermost first."""
    missing = [path for path in (*reversed(folder.parents), folder) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _rename(temporary: Path, folder: Path, names) -> None:
    for name in names:  # before any is renamed
        if (folder / name).is_dir():
            raise InputError(f"cannot write {folder / name}: a directory has that name")
    done = []
    try:
        for name in names:
            os.replace(temporary / name, folder / name)
            done.append(folder / name)
    except OSError:
        for path in done:
            path.unlink(missing_ok=True)
        raise


def check_whole(folder, names: Collection[str]) -> None:
    """Raises InputError if `whole_folder` evidently cannot write `folder`."""
    folder = Path(os.path.abspath(folder))
    check_folder(folder.parent)
    check_folder(folder)
    if folder.exists() and (others := set(os.listdir(folder)) - set(names) - {"__pycache__"}):
        raise InputError(f"{folder}: holds {min(others)}, which would be lost; choose another directory")


@contextlib.contextmanager
def whole_folder(folder, names: Collection[str]) -> Iterator[Path]:
    """Yields a new directory beside `folder`, renamed to it at the end; if anything fails, all stays as it was.

    names: of the files that may be written. A folder that holds no others is replaced, any other existing path refused.
    Raises InputError, also for a disk that gets full meanwhile.
    """
    check_whole(folder, names)
    folder = Path(os.path.realpath(folder))  # what a link leads to
    temporary, old = (folder.parent / f".{folder.name}.{uuid.uuid4().hex}{end}" for end in ("", ".old"))
    made = []
    try:
        made = _make(folder.parent)
        temporary.mkdir()
        yield temporary
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        made = []
    except OSError as error:
        raise InputError(f"cannot write {folder}: {(error.strerror or str(error)).lower()}; nothing was written, "
                         "choose another directory or make room") from None
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        for path in (temporary, old):
            shutil.rmtree(path, ignore_errors=True)
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()
