"""A job: the masks of everything in many pictures, as files. It may be killed at any moment and goes on when run again.

What counts is on disk: a picture is done when its JSON exists, which is renamed into place after all else of it, and
names the picture, the sha256 of its file and the job that made it. No file holds a time or says which device or process
made it, so a job that was killed, or divided among processes, leaves the same bytes as one that was not. No JAX here:
the model is handed in.

Several processes, of one machine or of many that share a file system, do a share of the pictures each. Each keeps a
manifest-00000-of-00002.json of its share; whichever ends last makes the whole job's manifest.json of them.
"""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from samjax.kept import Kept
from samjax.reading import Mark, Reading, reason_of, unchanged, worked_on
from samjax.settings import Settings, to_dict
from samjax.tiles import Tiling
from samjax.work import Work, differences, read_json, short_hash, working

FORMATS = ("sa1b", "coco")


def draw(kind: str, picture, records: list[dict]):
    """What a job draws of a picture that has its `pixels`, uint8 (h, w, c): an "overlay" or its "labels"."""
    return overlay_all(picture.pixels, records) if kind == "overlay" else label_map(records, picture.hw)


class Model(NamedTuple):
    """What a job needs of a model.

    read: a path -> the picture, which has its `hw` when its records are there; it is called in threads.
    each: these pictures, in order -> for each its records with run lengths, or the exception that it met.
    ahead: how many pictures to read before they are asked for.
    draw: "overlay" or "labels", a picture, its records -> what is saved as PNG.
    """

    read: Callable[[str], object]
    each: Callable[[Iterable[object]], Iterator[list[dict] | Exception]]
    ahead: int = 2
    draw: Callable[[str, object, list[dict]], object] = draw


@dataclass(frozen=True)
class Job:
    """What is to be done, and where its files lie.

    out/STEM.json for each source, or with format "coco" out/instances.json, made of out/parts/STEM.json;
    out/STEM_overlay.png and out/STEM_labels.png if asked for; out/manifest.json.
    model: {"name", "architecture", "sha256", "dtype"}, and "int8": True where weights were made so. skipped: files that
    were passed over, for the manifest.
    process, processes: this process does every so many-th picture, from the one of its number on.
    tiling: pictures are gone through in tiles, all of its numbers given.
    """

    sources: Sequence[Source]
    out: Path
    model: dict
    settings: Settings
    format: str = "sa1b"
    overlay: bool = False
    label_map: bool = False
    skipped: int = 0
    process: int = 0
    processes: int = 1
    tiling: Tiling | None = None

    @cached_property
    def made_with(self) -> dict:
        """All that the masks depend on, JSON-able."""
        settings = to_dict(self.settings)
        del settings["output_mode"]
        tiling = self.tiling._asdict() if self.tiling else {}
        model = {name: self.model[name] for name in ("sha256", "dtype", "int8") if name in self.model}
        return {**model, **settings, **tiling}

    @cached_property
    def key(self) -> str:
        """A short hash of `made_with`, which each JSON carries."""
        return short_hash(self.made_with)

    @property
    def manifest(self) -> Path:
        return self.out / "manifest.json"

    def share(self, process: int) -> Sequence[Source]:
        """The pictures of one process."""
        return self.sources[process :: self.processes]

    def shard(self, process: int) -> Path:
        """The manifest of one process's share."""
        return self.out / f"manifest-{process:05d}-of-{self.processes:05d}.json"

    @property
    def instances(self) -> Path:
        return self.out / "instances.json"

    def json_of(self, source: Source) -> Path:
        return (self.out / "parts" if self.format == "coco" else self.out) / f"{source.stem}.json"

    def unfinished(self, source: Source) -> Path:
        """The folder of the tiles that are done of a picture that is not."""
        return self.out / "unfinished" / f"{source.stem}.tiles"

    def pictures_of(self, source: Source, wanted: bool = True) -> dict[str, Path]:
        """What is drawn of a source (or could be, but is not wanted) -> its file."""
        return {kind: self.out / f"{source.stem}_{kind}.png"
                for kind, asked in (("overlay", self.overlay), ("labels", self.label_map)) if asked is wanted}


class Outcome(NamedTuple):
    """What became of one picture: a number of masks, or the reason why there are none."""

    name: str
    masks: int | None
    reason: str | None = None
    before: bool = False  # it was done by an earlier run
    hw: tuple[int, int] | None = None  # the picture's size, if it was done by this one


def check(job: Job, restart: bool = False) -> None:
    """Raises InputError if `out` belongs to something else: another job (unless `restart`), inputs, others' files."""
    _check_inputs(job)
    try:
        manifest = json.loads(job.manifest.read_text())
        then = {"format": manifest["format"], **manifest["made_with"]}
        empty = manifest["complete"] and not manifest["images"]
    except FileNotFoundError:
        others = _others(job)
        if others is not None and job.manifest.exists():  # the job has begun meanwhile, in another process
            check(job, restart)
        elif others is not None:
            raise InputError(f"{others} exists and was not written by such a job: choose another --out") from None
        return
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{job.manifest} is not of samjax everything: choose another --out") from None
    changes = differences(then, {"format": job.format, **job.made_with})
    if changes and not (restart or empty):
        raise InputError(f"{job.out} holds masks that were made otherwise ({changes}): choose another --out, or give "
                         "--restart to replace them")


def run(job: Job, open_model: Callable[[], Model], restart: bool = False) -> Iterator[Outcome]:
    """Does what is not done yet of this process's share (with `restart` all of it); yields an Outcome for each picture.

    open_model is called only if something is left to do. What fails for a picture is its outcome; InputError is raised
    by `check`, and if files cannot be written: the job can be run again when that is mended.
    """
    share = job.share(job.process)
    done: dict[Source, int] = {}
    failures = {}
    with working(job.out, job.process, job.processes, f"{job.format} {job.key}") as work:
        with work.turn():
            check(job, restart)
            before = _begin(job, work)
        for source, masks in zip(share, [None] * len(share) if restart else _finished(job, share)):
            if restart or masks is not None:
                _drop_tiles(job, source)
            if masks is not None:
                done[source] = masks
                yield Outcome(source.name, masks, before=True)
        left = [source for source in share if source not in done]
        for source, outcome in _work(job, work, left, open_model) if left else ():
            if outcome.reason is None:
                done[source] = outcome.masks
            else:
                failures[source.name] = outcome.reason
            yield outcome
        with work.turn():
            _end(job, work, _counts(len(done), sum(done.values()), failures), before)


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


def _others(job: Job) -> Path | None:
    """A file that is where the job would write one."""
    files = (path for source in job.sources for path in (job.json_of(source), *job.pictures_of(source).values()))
    every = itertools.chain(files, [job.instances] if job.format == "coco" else [])
    return next((path for path in every if path.exists()), None)


def _begin(job: Job, work: Work) -> dict[str, str]:
    """Says that the folder is this job's and not complete. Returns the failures that it told of, if it was."""
    before = read_json(job.manifest)
    for left in job.out.glob("manifest-*-of-*.json"):
        ours = {"key", "complete"} <= read_json(left).keys()
        if ours and (job.processes == 1 or not left.name.endswith(f"-of-{job.processes:05d}.json")):
            left.unlink()
    ours = before.get("key") == job.key
    drawn = {name: getattr(job, name) or bool(ours and before.get(name)) for name in ("overlay", "label_map")}
    work.put_json(job.manifest, _manifest(job) | drawn, indent=1)
    if job.processes > 1:
        work.put_json(job.shard(job.process), {"key": job.key, "complete": False}, indent=1)
    if not (before.get("complete") and before.get("key") == job.key):
        return {}
    return {failure["file"]: failure["reason"] for failure in before["failures"]}


def _end(job: Job, work: Work, counts: dict, before: dict[str, str]) -> None:
    """Says that this share is done, and if all are, makes the whole job's files."""
    if job.processes > 1:
        work.put_json(job.shard(job.process), {"key": job.key, "complete": True, **counts}, indent=1)
    shares = [counts if i == job.process else _share_of(job, i, before) for i in range(job.processes)]
    if None in shares:
        return
    failures = {name: reason for share in shares for name, reason in share["failures"].items()}
    good = [source for source in job.sources if source.name not in failures]
    if job.format == "coco":
        work.put(job.instances, partial(_assemble, job, good))
    listed = [{"file": source.name, "reason": failures[source.name]} for source in job.sources
              if source.name in failures]
    whole = _counts(len(good), sum(share["masks"] for share in shares), listed)
    whole |= {"complete": True, "skipped": job.skipped, **_drawn(job, good)}
    work.put_json(job.manifest, _manifest(job) | whole, indent=1)
    for i in range(job.processes):
        job.shard(i).unlink(missing_ok=True)


def _drawn(job: Job, good: Sequence[Source]) -> dict[str, bool]:
    """What is drawn of every picture: what was asked for now, and what an earlier run has left."""
    claimed, names = read_json(job.manifest), {"overlay": "overlay", "label_map": "labels"}
    left = lambda kind: all(job.pictures_of(source, False)[kind].exists() for source in good)
    return {name: getattr(job, name) or bool(claimed.get(name) and left(kind)) for name, kind in names.items()}


def _share_of(job: Job, process: int, before: dict[str, str]) -> dict | None:
    """The counts of another process's share, or None if it is not done.

    Its manifest is gone if the job was complete once and this process has been run again: then what is on disk counts.
    """
    share, found = job.share(process), read_json(job.shard(process))
    if found:
        done = found.get("complete") and found["key"] == job.key
        return found if done and found["images"] + len(found["failures"]) == len(share) else None
    failures = {source.name: before[source.name] for source in share if source.name in before}
    masks = _finished(job, [source for source in share if source.name not in failures])
    return None if None in masks else _counts(len(masks), sum(masks), failures)


def _counts(images: int, masks: int, failures) -> dict:
    return {"images": images, "masks": masks, "failures": failures}


def _manifest(job: Job) -> dict:
    return {"samjax": __version__, "model": job.model, "made_with": job.made_with, "key": job.key,
            "format": job.format, "overlay": job.overlay, "label_map": job.label_map, "complete": False}


def _finished(job: Job, sources: Sequence[Source]) -> list[int | None]:
    """The number of masks of each source that an earlier run has done, or None; also None if the picture changed."""
    found = [_found(job, source) for source in sources]
    same = unchanged([(source, there[1] if there else None) for source, there in zip(sources, found)])
    return [there[0] if there and kept else None for there, kept in zip(found, same)]


def _found(job: Job, source: Source) -> tuple[int, Mark] | None:
    """The number of masks in a source's JSON, and the mark of the picture it was made of."""
    try:
        found = json.loads(job.json_of(source).read_text())
        ours = found["info"]["job"] == job.key and found["image"]["file_name"] == source.name
        there = len(found["annotations"]), Mark(found["info"]["bytes"], found["info"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return there if ours and all(path.is_file() for path in job.pictures_of(source).values()) else None


def _work(job: Job, work: Work, sources: list[Source], open_model) -> Iterator[tuple[Source, Outcome]]:
    """What becomes of each source, in order. Pictures are read ahead; those that cannot be read pass by the model."""
    model = open_model()
    for reading, found in worked_on(sources, model.read, model.each, model.ahead):
        yield reading.source, (_write(job, work, reading, found, model.draw) if reading.error is None else
                               _failed(job, reading.source, reading.error))


def _write(job: Job, work: Work, reading: Reading, found: list[dict] | Exception, draw) -> Outcome:
    source, picture = reading.source, reading.picture
    try:
        if isinstance(found, Exception):
            raise found
        records = [_finite(record) for record in found]
        info = {"info": {"job": job.key, **reading.mark._asdict()}}
        whole = sa1b(records, picture.hw, source.name, _image_id(source.name)) | info
        pictures = [(path, draw(kind, picture, records)) for kind, path in job.pictures_of(source).items()]
    except Exception as error:  # such as no memory for this one: the others go on
        return _failed(job, source, error)
    _forget(job, source)
    for path, drawn in pictures:
        work.put(path, partial(save_png, picture=drawn))
    work.put_json(job.json_of(source), whole)  # last: it says that the picture is done
    _drop_tiles(job, source)
    return Outcome(source.name, len(records), hw=picture.hw)


def _failed(job: Job, source: Source, error: Exception) -> Outcome:
    """Nothing stays of a picture that failed, not even what an earlier run has made of it."""
    _forget(job, source)
    for path in (job.json_of(source), *job.pictures_of(source).values()):
        path.unlink(missing_ok=True)
    return Outcome(source.name, None, reason_of(source, error))


def _forget(job: Job, source: Source) -> None:
    """Removes what an earlier run drew and this one will not: it would be taken for drawn of the new masks."""
    if "job" in read_json(job.json_of(source)).get("info", {}):
        for path in job.pictures_of(source, wanted=False).values():
            path.unlink(missing_ok=True)


def _drop_tiles(job: Job, source: Source) -> None:
    """Removes what is kept of a picture's tiles."""
    folder = job.unfinished(source)
    if not folder.exists():
        return
    Kept(folder, "").clear()
    for above in folder.relative_to(job.out).parents[:-1]:
        with contextlib.suppress(OSError):  # another picture is under way
            (job.out / above).rmdir()


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
