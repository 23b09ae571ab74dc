"""What jobs share: files written whole or not at all, and folders that one job at a time works in, alone or by several
processes. No JAX.

While a job runs, out/.samjax holds its locks and unfinished files. It is gone when the last process has ended; what a
killed one left there is removed by the next.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from samjax.errors import InputError


class Work:
    """One process's right to write into a job's folder; made by `working`."""

    def __init__(self, out: Path, process: int, processes: int):
        self.root = out / ".samjax"
        self.folder = self.root / f"process-{process:05d}-of-{processes:05d}"

    def put(self, path: Path, write: Callable[[Path], None]) -> None:
        """A file, which `write` writes elsewhere, renamed into place. Raises InputError."""
        temporary = self.folder / f"unfinished{path.suffix}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            os.replace(temporary, path)
        except OSError as error:
            raise InputError(f"cannot write {path}: {(error.strerror or str(error)).lower()}; what is done stays, and "
                             "the same command goes on from there") from None
        except InputError as error:
            raise InputError(str(error).replace(os.fspath(temporary), os.fspath(path))) from None

    def put_json(self, path: Path, value, indent: int | None = None) -> None:
        self.put(path, lambda temporary: temporary.write_text(json.dumps(value, indent=indent) + "\n"))

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """What only one of a job's processes may do at a time; the others wait."""
        with _locked(self.root / "turn", wait=True):
            yield


@contextlib.contextmanager
def working(out: Path, process: int = 0, processes: int = 1) -> Iterator[Work]:
    """The right to write into `out` as one of several processes, or as the only one.

    Raises InputError if another job is writing there, or another process that has this one's number.
    """
    work = Work(out, process, processes)
    try:
        with contextlib.ExitStack() as stack:
            try:
                work.root.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_locked(work.root / "lock", shared=processes > 1))
                with work.turn():
                    work.folder.mkdir(exist_ok=True)
                    stack.enter_context(_locked(work.folder / "lock"))
            except BlockingIOError:
                raise InputError(f"another process is writing to {out}: let it end, or choose another --out") from None
            except OSError as error:
                raise InputError(f"cannot write to {out}: {(error.strerror or str(error)).lower()}") from None
            for left in work.folder.glob("unfinished*"):
                left.unlink(missing_ok=True)
            yield work
    finally:
        _clean(work)


def _clean(work: Work) -> None:
    """Removes the folders of processes that are no more, and with the last one all of it."""
    with contextlib.suppress(OSError), work.turn():
        for folder in work.root.glob("process-*"):
            with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(folder / "lock", create=False):
                shutil.rmtree(folder, ignore_errors=True)
        if not any(work.root.glob("process-*")):
            with _locked(work.root / "lock"):
                shutil.rmtree(work.root, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, shared: bool = False, wait: bool = False, create: bool = True) -> Iterator[None]:
    """Holds a lock on a file until the end, of the process if need be. Raises BlockingIOError if it is held elsewhere.

    Where files cannot be locked (Windows, some network file systems) it is held by everyone.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a" if create else "r") as file:
            try:
                fcntl.flock(file, how)
            except BlockingIOError:
                raise
            except OSError:  # it cannot be locked
                pass
            if not _is(file, path):  # removed meanwhile: others will lock a new one
                continue
            yield
            return


def _is(file, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
