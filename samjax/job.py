"""A job: the masks of everything in many pictures, as files. It may be killed at any moment and goes on when run again.

What counts is on disk: a picture is done when its JSON exists, which is renamed into place after all else of it, and
names the picture and the job that made it. No file holds a time, so a job that was killed leaves the same bytes as one
that was not. No JAX here: the model is handed in.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from samjax import __version__
from samjax.annotations import CATEGORY, coco, label_map, overlay_all, sa1b
from samjax.draw import save_png
from samjax.errors import InputError
from samjax.inputs import Source
from samjax.settings import Settings, to_dict

FORMATS = ("sa1b", "coco")
Model = tuple[Callable[[str], np.ndarray], Callable[[np.ndarray], list[dict]]]


@dataclass(frozen=True)
class Job:
    """What is to be done, and where its files lie.

    out/STEM.json for each source, or with format "coco" out/instances.json, made of out/parts/STEM.json;
    out/STEM_overlay.png and out/STEM_labels.png if asked for; out/manifest.json.
    model: {"name", "architecture", "sha256", "dtype"}. skipped: files that were passed over, for the manifest.
    """

    sources: Sequence[Source]
    out: Path
    model: dict
    settings: Settings
    format: str = "sa1b"
    overlay: bool = False
    label_map: bool = False
    skipped: int = 0

    @cached_property
    def made_with(self) -> dict:
        """All that the masks depend on, JSON-able."""
        settings = to_dict(self.settings)
        del settings["output_mode"]
        return {"sha256": self.model["sha256"], "dtype": self.model["dtype"], **settings}

    @cached_property
    def key(self) -> str:
        """A short hash of `made_with`, which each JSON carries."""
        return hashlib.sha256(json.dumps(self.made_with, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def manifest(self) -> Path:
        return self.out / "manifest.json"

    @property
    def instances(self) -> Path:
        return self.out / "instances.json"

    def json_of(self, source: Source) -> Path:
        return (self.out / "parts" if self.format == "coco" else self.out) / f"{source.stem}.json"

    def pictures_of(self, source: Source) -> dict[str, Path]:
        """What is drawn of a source -> its file."""
        return {kind: self.out / f"{source.stem}_{kind}.png"
                for kind, wanted in (("overlay", self.overlay), ("labels", self.label_map)) if wanted}


class Outcome(NamedTuple):
    """What became of one picture: a number of masks, or the reason why there are none."""

    name: str
    masks: int | None
    reason: str | None = None
    before: bool = False  # it was done by an earlier run


def check(job: Job, restart: bool = False) -> None:
    """Raises InputError if `out` belongs to something else: another job (unless `restart`), inputs, others' files."""
    _check_inputs(job)
    try:
        manifest = json.loads(job.manifest.read_text())
        then = {"format": manifest["format"], **manifest["made_with"]}
    except FileNotFoundError:
        _check_untouched(job)
        return
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{job.manifest} is not of samjax everything: choose another --out") from None
    now = {"format": job.format, **job.made_with}
    changes = [f"{name} was {str(then.get(name))[:12]}, now {str(now[name])[:12]}"
               for name in now if then.get(name) != now[name]]
    if changes and not restart:
        raise InputError(f"{job.out} holds masks that were made otherwise ({'; '.join(changes)}): choose another "
                         "--out, or give --restart to replace them")


def run(job: Job, open_model: Callable[[], Model], restart: bool = False) -> Iterator[Outcome]:
    """Does what is not done yet (with `restart` everything); yields an Outcome for each picture.

    open_model: gives `read` (path -> uint8 (h, w, c)) and `segment` (that -> records with run lengths); called only if
    something is left to do. A picture is read while the one before is segmented. What fails for a picture is its
    outcome; InputError is raised if files cannot be written, and the job can be run again when that is mended.
    """
    done: dict[Source, int] = {}
    failures = []
    with _work_folder(job.out) as work:
        _put_json(work, job.manifest, _manifest(job, done, failures, complete=False))
        for source in job.sources:
            masks = None if restart else _finished(job, source)
            if masks is not None:
                done[source] = masks
                yield Outcome(source.name, masks, before=True)
        left = [source for source in job.sources if source not in done]
        read, segment = open_model() if left else (None, None)
        for source, picture in _ahead(left, read):
            outcome = _one(job, work, source, picture, segment)
            if outcome.reason is None:
                done[source] = outcome.masks
            else:
                failures.append({"file": outcome.name, "reason": outcome.reason})
            yield outcome
        if job.format == "coco":
            _put(work, job.instances, partial(_assemble, job, [source for source in job.sources if source in done]))
        _put_json(work, job.manifest, _manifest(job, done, failures, complete=True))


def fingerprint(path) -> str:
    """sha256 of a file; of a directory, that of its files' names and hashes."""
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = [f"{file.relative_to(path).as_posix()} {fingerprint(file)}\n"
             for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_inputs(job: Job) -> None:
    inputs = {os.path.realpath(source.path) for source in job.sources}
    folder = os.path.realpath(job.out)
    for source in job.sources:
        for path in job.pictures_of(source).values():
            if os.path.join(folder, path.relative_to(job.out)) in inputs:
                raise InputError(f"{path} is one of the pictures, and what is drawn of {source.name} would replace it: "
                                 "choose another --out")


def _check_untouched(job: Job) -> None:
    files = [path for source in job.sources for path in (job.json_of(source), *job.pictures_of(source).values())]
    for path in [*files, *([job.instances] if job.format == "coco" else [])]:
        if path.exists():
            raise InputError(f"{path} exists and was not written by such a job: choose another --out")


def _manifest(job: Job, done: dict, failures: list, complete: bool) -> dict:
    counts = {"images": len(done), "masks": sum(done.values()), "failures": failures, "skipped": job.skipped}
    return {"samjax": __version__, "model": job.model, "made_with": job.made_with, "key": job.key,
            "format": job.format, "overlay": job.overlay, "label_map": job.label_map, "complete": complete,
            **(counts if complete else {})}


def _finished(job: Job, source: Source) -> int | None:
    """The number of masks of a source that an earlier run has done, or None."""
    try:
        found = json.loads(job.json_of(source).read_text())
        ours = found["info"]["job"] == job.key and found["image"]["file_name"] == source.name
        masks = len(found["annotations"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return masks if ours and all(path.is_file() for path in job.pictures_of(source).values()) else None


def _ahead(sources: Iterable[Source], read: Callable) -> Iterator[tuple[Source, Future]]:
    """Yields each source with its picture; the next one is read meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for source in sources:
            coming = source, pool.submit(read, source.path)
            if waiting is not None:
                yield waiting
            waiting = coming
        if waiting is not None:
            yield waiting


def _one(job: Job, work: Path, source: Source, picture: Future, segment: Callable) -> Outcome:
    try:
        pixels = picture.result()
        records = [_finite(record) for record in segment(pixels)]
        found = sa1b(records, pixels.shape[:2], source.name, _image_id(source.name)) | {"info": {"job": job.key}}
        pictures = _draw(job, source, pixels, records)
    except InputError as error:
        return Outcome(source.name, None, str(error).removeprefix(source.path).lstrip(": "))
    except Exception as error:  # such as no memory for this one: the others go on
        return Outcome(source.name, None, " ".join(f"{type(error).__name__}: {error}".split()))
    for path, drawn in pictures:
        _put(work, path, partial(save_png, picture=drawn))
    _put_json(work, job.json_of(source), found)  # last: it says that the picture is done
    return Outcome(source.name, len(records))


def _draw(job: Job, source: Source, pixels: np.ndarray, records: list[dict]) -> list[tuple[Path, object]]:
    makers = {"overlay": lambda: overlay_all(pixels, records), "labels": lambda: label_map(records, pixels.shape[:2])}
    return [(path, makers[kind]()) for kind, path in job.pictures_of(source).items()]


def _finite(record: dict) -> dict:
    """JSON has no NaN, which is the stability of a mask that is empty at both cuts."""
    return record if np.isfinite(record["stability_score"]) else {**record, "stability_score": 0.0}


def _image_id(name: str) -> int:
    """48 bits of a hash: it stays the same whatever other pictures a job has."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:6], "big")


def _assemble(job: Job, sources: list[Source], path: Path) -> None:
    """One COCO file of the parts, of which one at a time is in memory; ids count from 1."""
    images, number = [], 0
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"annotations": [')
        for image, source in enumerate(sources, start=1):
            part = coco([json.loads(job.json_of(source).read_text())])
            images.append(part["images"][0] | {"id": image})
            for found in part["annotations"]:
                number += 1
                line = json.dumps(found | {"id": number, "image_id": image})
                file.write(f"{',' if number > 1 else ''}\n{line}")
        file.write(f'],\n"images": {json.dumps(images)},\n"categories": {json.dumps([CATEGORY])},\n'
                   f'"info": {json.dumps({"job": job.key})}}}\n')


def _put_json(work: Path, path: Path, value) -> None:
    indent = 1 if path.name == "manifest.json" else None
    _put(work, path, lambda temporary: temporary.write_text(json.dumps(value, indent=indent) + "\n"))


def _put(work: Path, path: Path, write: Callable[[Path], None]) -> None:
    """A file, written elsewhere and renamed into place."""
    temporary = work / f"unfinished{path.suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {(error.strerror or str(error)).lower()}; what is done stays, and the "
                         "same command goes on from there") from None
    except InputError as error:
        raise InputError(str(error).replace(os.fspath(temporary), os.fspath(path))) from None


@contextlib.contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """A folder for unfinished files, for this process alone; what a killed one left in it is removed."""
    work = out / ".samjax"
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = open(work / "lock", "w")  # noqa: SIM115 (held until the end)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {(error.strerror or str(error)).lower()}") from None
    with lock:
        if not _alone(lock):
            raise InputError(f"another process is writing to {out}: let it end, or choose another --out")
        for left in work.glob("unfinished*"):
            left.unlink(missing_ok=True)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _alone(lock) -> bool:
    """Locks the file until it is closed, by kill -9 if need be; True also where files cannot be locked."""
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows, some network file systems
        pass
    return True
