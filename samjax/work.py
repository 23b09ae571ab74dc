"""What jobs share: files written whole or not at all, and folders that one job at a time works in, alone or by several
processes. No JAX.

While a job runs, out/.samjax holds its locks and unfinished files. It is gone when the last process has ended; what a
killed one left there is removed by the next. Where files cannot be locked (Windows, some network file systems) nobody
knows who is alive: nobody is refused, each process removes its own files only, and what a killed one left stays until
a process of the same number ends.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from samjax.errors import InputError

ATTEMPTS = 1000  # to lock a file that others remove


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
    def turn(self) -> Iterator[bool]:
        """What only one of a job's processes may do at a time; the others wait. Whether they do (see `_locked`)."""
        with _locked(self.root / "turn", wait=True) as sure:
            yield sure


def read_json(path: Path) -> dict:
    """What a JSON file holds; nothing if it is not there, damaged, or no dictionary."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def short_hash(made_with: dict) -> str:
    """Of all that a job's files depend on."""
    return hashlib.sha256(json.dumps(made_with, sort_keys=True).encode()).hexdigest()[:16]


def differences(then: dict, now: dict) -> str:
    """What was made with other settings, in a few words; empty if nothing was."""
    return "; ".join(f"{name} was {str(then.get(name))[:12]}, now {str(now.get(name))[:12]}"
                     for name in now | then if then.get(name) != now.get(name))


@contextlib.contextmanager
def working(out: Path, process: int = 0, processes: int = 1, key: str = "") -> Iterator[Work]:
    """The right to write into `out` as one of several processes, or as the only one.

    key: tells the job from others. Raises InputError if another job is writing there, the same one divided otherwise,
    or another process that has this one's number.
    """
    work, mine = Work(out, process, processes), False
    try:
        with contextlib.ExitStack() as stack:
            try:
                with work.turn():  # a process that ends removes folders in its turn
                    _admit(work, processes, key)
                    work.folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(_locked(work.folder / "lock"))
                    (work.folder / "key").write_text(key)
                    mine = True
            except BlockingIOError:
                raise InputError(f"another process is writing to {out}: let it end, or choose another --out") from None
            except OSError as error:
                raise InputError(f"cannot write to {out}: {(error.strerror or str(error)).lower()}") from None
            for left in work.folder.glob("unfinished*"):
                left.unlink(missing_ok=True)
            yield work
    finally:
        _clean(work, mine)


def _admit(work: Work, processes: int, key: str) -> None:
    """Raises BlockingIOError if a process is alive that does not share this one's job."""
    for other in work.root.glob("process-*"):
        together = processes > 1 and other.name.endswith(f"-of-{processes:05d}")
        with contextlib.suppress(FileNotFoundError):
            if other != work.folder and not (together and (other / "key").read_text() == key):
                with _locked(other / "lock", create=False):
                    pass


def _clean(work: Work, mine: bool) -> None:
    """Removes this process's folder and those of processes that are no more, and with the last one all of it."""
    with contextlib.suppress(OSError), work.turn() as sure:
        for folder in work.root.glob("process-*"):
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                gone = sure and not (folder / "lock").exists()  # killed before it had one
                with contextlib.nullcontext(True) if gone else _locked(folder / "lock", create=False) as free:
                    if free or (mine and folder == work.folder):
                        shutil.rmtree(folder, ignore_errors=True)
        if any(work.root.glob("process-*")):
            return
        for left in work.root.iterdir():
            if left.name != "turn":
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        (work.root / "turn").unlink(missing_ok=True)  # last: who waits for it makes a new one
        work.root.rmdir()


@contextlib.contextmanager
def _locked(path: Path, wait: bool = False, create: bool = True) -> Iterator[bool]:
    """Holds a lock on a file until the end, of the process if need be. Raises BlockingIOError if it is held elsewhere.

    Where files cannot be locked it gives False, and everyone holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield False
        return
    for attempt in range(ATTEMPTS):
        try:
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a" if create else "r+")  # noqa: SIM115 (closed below)
        except (FileNotFoundError, FileExistsError):  # the latter by mkdir, of a folder that was there and is no more
            if not create or attempt == ATTEMPTS - 1:
                raise
            continue  # the folder was removed meanwhile
        with file:
            sure = True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise
            except OSError:
                sure = False
            if not _is(file, path):  # removed meanwhile: others will lock a new one
                continue
            yield sure
            return
    raise BlockingIOError(f"{path} is removed again and again")


def _is(file, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
