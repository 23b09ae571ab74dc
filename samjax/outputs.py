"""Several files written together: all of them or none."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
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
