"""The folder of a training: whose it is, what of it may be removed, whether all is done."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from samjax.errors import InputError
from samjax.train.material import write_json

JOB, REPORT = "job.json", "report.json"


def claim(out: Path, job: dict, usual: dict, own: Sequence[str], restart: bool, what: str,
          kept: Sequence[str] = ()) -> dict | None:
    """Makes `out` this job's; returns its report.json if it is done already.

    Args:
        job: what must be the same where it is taken up again, JSON-able: "options", a dict, and what else there is.
        usual: options by name that a job.json of before may lack. own: names of the job's files.
        restart: removes another job's files, but for those named `kept`. what: a noun, for messages.

    Raises InputError if another job's files, or others, are there.
    """
    job = json.loads(json.dumps(job))
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        try:
            changes = _changes(json.loads((out / JOB).read_text()), job, usual)
        except (ValueError, KeyError, TypeError, AttributeError):
            changes = [f"its {JOB} cannot be read"]
        if not changes and not restart:
            _tidy(out, own)
            return finished(out)
        if changes and not restart:
            raise InputError(f"{out} holds another {what} ({'; '.join(changes)}): choose another --out, or give "
                             "--restart to replace it")
    if out.is_dir():
        _only_own(out, own if (out / JOB).exists() else (JOB, *kept))
        if restart:
            _clear(out, own, kept)
    write_json(out / JOB, job)
    return None


def finished(out: Path) -> dict | None:
    """What report.json holds, or None where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((out / REPORT).read_text())
    return None


def _changes(then: dict, now: dict, usual: dict) -> list[str]:
    before = {name: then["options"].get(name, usual.get(name)) for name in now["options"]}
    changes = [f"{name.replace('_', '-')} was {before[name]}, now {value}"
               for name, value in now["options"].items() if before[name] != value]
    if then["init"] != now["init"]:
        changes.append("the model to start from has changed")
    if then["pictures"] != now["pictures"] and not changes:
        changes.append("the pictures are others")
    return changes


def _is_own(name: str, own: Sequence[str]) -> bool:
    """Whether a file is of a training, or what is left of one being written when it was killed."""
    return name in own or any(name.startswith(f".{known}.") for known in own)


def _only_own(out: Path, own: Sequence[str]) -> None:
    if others := sorted(entry.name for entry in out.iterdir() if not _is_own(entry.name, own)):
        raise InputError(f"{out} holds other files, such as {others[0]}: choose another --out")


def _tidy(out: Path, own: Sequence[str]) -> None:
    """Removes what was being written when a run was killed; what was being replaced goes back to its place."""
    for path in [path for path in out.iterdir() if path.name not in own and _is_own(path.name, own)]:
        known = next(name for name in own if path.name.startswith(f".{name}."))
        if path.name.endswith(".old") and not (out / known).exists():
            path.rename(out / known)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _clear(out: Path, own: Sequence[str], kept: Sequence[str]) -> None:
    """Whose it was goes last: until then what is left is not taken for another's."""
    found = [path for path in out.iterdir() if _is_own(path.name, own) and path.name not in kept]
    for path in sorted(found, key=lambda path: path.name == JOB):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
