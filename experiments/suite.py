"""What the experiments of the evaluation suite share: sets, pictures, and a record that is written as it grows.

DATASETS holds a folder for each set, as `samjax.data.open_source` reads it. A record is a JSON file of what it was made
with, and for each set what was found of each picture; a run that was stopped goes on where it was, and a run with
other settings is refused.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "experiments" / "results"
DOMAINS = {  # of the sets by name; those that are not listed are of the domain "other"
    "natural": ("bsds500", "camo_sample", "cleargrasp", "coco128seg", "davis"),
    "agriculture": ("cwfid",),
    "manufacturing": ("crackforest", "kolektorsdd", "magnetic_tile"),
    "remote sensing": ("nwpu_vhr10", "ortho_buildings"),
    "healthcare": ("busi", "chase_db1", "ct_organs", "dsb2018", "isbi_em", "kvasir_polyp"),
}
WITHOUT_OBJECTS = ("bsds500",)  # segmentations into regions, by several people: only for edges


def domain_of(name: str) -> str:
    return next((domain for domain, sets in DOMAINS.items() if name in sets), "other")


def arguments(doc: str, result: str, images: int | None = None) -> argparse.ArgumentParser:
    """The options of all of them. images: default of --images."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("datasets", type=Path, help="a folder with a folder for each set")
    parser.add_argument("--sets", nargs="+", help="default: all that there are")
    parser.add_argument("--split", default="val")
    parser.add_argument("--images", type=int, default=images, help="pictures of each set, evenly spread; 0: all")
    parser.add_argument("--model", default="mobile_sam")
    parser.add_argument("--out", type=Path, default=RESULTS / result)
    parser.add_argument("--redo", action="store_true", help="forget what is recorded")
    return parser


def model_of(name: str) -> dict:
    """What identifies a model: its name, architecture and the sha256 of its weights."""
    import convert
    from samjax import job
    from samjax.errors import InputError
    from samjax.weights import KNOWN, resolve

    try:
        path = resolve(name)
    except InputError as error:
        raise SystemExit(str(error)) from None
    sha256 = KNOWN[name].sha256 if name in KNOWN else job.fingerprint(path)
    return {"name": name if name in KNOWN else Path(name).name, "architecture": convert.read(path).config.name,
            "sha256": sha256}


def read(path: Path) -> dict:
    """A result of an experiment; ends the program with one line where it is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise SystemExit(f"{path} is no result of an experiment")
    return found


def load(path: Path) -> dict:
    """What a record holds; ends the program with one line where it is none."""
    found = read(path)
    if "sets" not in found:
        raise SystemExit(f"{path} is no record of an experiment on data sets")
    return found


@dataclass
class Record:
    """A result file. found: what is in it; found["sets"][set]["pictures"][picture] is what one picture gave."""

    path: Path
    found: dict = field(default_factory=dict)

    @classmethod
    def open(cls, args, **settings) -> "Record":
        """The record at args.out, or a new one. Ends the program where that was made with another model or settings."""
        stamp = {"model": model_of(args.model), "settings": {"split": args.split, **settings}}
        record = cls(args.out)
        if args.out.exists() and not args.redo:
            record.found = load(args.out)
            for key, value in json.loads(json.dumps(stamp)).items():
                if record.found.get(key) != value:
                    raise SystemExit(f"{args.out} was made with {key} {record.found.get(key)} and not {value}: give "
                                     "--redo to replace it, or another --out")
        record.found = {**stamp, "versions": {}, "commit": None, "sets": {}, **record.found}
        return record

    def pictures(self, name: str) -> dict:
        """What was found of a set's pictures, by name."""
        one = self.found["sets"].setdefault(name, {"domain": domain_of(name), "seconds": 0, "pictures": {}})
        return one["pictures"]

    def add(self, name: str, picture: str, found, seconds: float) -> None:
        """Keeps what a picture gave, and writes the file."""
        self.pictures(name)[picture] = found
        one = self.found["sets"][name]
        one["seconds"] = round(one["seconds"] + seconds, 2)
        self.write()

    def write(self, **more) -> None:
        """more: further entries, such as tables made of the sets."""
        from samjax.evaluate.made import commit, versions

        self.found |= {"versions": versions(), "commit": commit(), "machine": machine(), **more}
        sets = self.found.pop("sets")  # what is long comes last
        self.found["sets"] = sets
        write(self.path, self.found)


def sets_of(args) -> Iterator[tuple[str, object, list[int]]]:
    """Yields (name, source, places of the pictures) of the sets that have this split and are there."""
    from samjax.data import open_source
    from samjax.errors import InputError

    if not args.datasets.is_dir():
        raise SystemExit(f"{args.datasets}: no such folder")
    names = args.sets or sorted(path.parent.name for path in args.datasets.glob("*/meta.json"))
    for name in names:
        if not args.sets and name in WITHOUT_OBJECTS:
            continue
        try:
            source = open_source(args.datasets / name, args.split)
        except InputError as error:
            if args.sets:
                raise SystemExit(str(error)) from None
            print(f"{name}: passed over: {error}", flush=True)
            continue
        count = min(args.images or len(source), len(source))
        yield name, source, [i * len(source) // count for i in range(count)]


def each_picture(args, record: Record, work: Callable, part: str = "") -> None:
    """Calls work(set, source, place) for each picture that is not in the record, and records what it returns.

    A picture that cannot be scored is recorded as {"failed": why}. part: put before the pictures' names, where a
    record has several things of each.
    """
    from samjax.errors import InputError

    for name, source, places in sets_of(args):
        start, fresh = time.perf_counter(), 0
        for place in places:
            picture = part + source.item_name(place)
            if picture in record.pictures(name):
                continue
            begin = time.perf_counter()
            try:
                found = work(name, source, place)
            except InputError as error:
                found = {"failed": str(error).replace(str(args.datasets), "DATASETS")}
            record.add(name, picture, found, time.perf_counter() - begin)
            fresh += 1
        print(f"{part}{name}: {fresh} of {len(places)} pictures in {time.perf_counter() - start:.0f} s", flush=True)


def some(record, count: int):
    """A source's record with at most so many of its objects, evenly spread (0: all)."""
    import dataclasses

    objects = record.objects
    number = min(count or len(objects), len(objects))
    return dataclasses.replace(record, objects=[objects[i * len(objects) // number] for i in range(number)])


def percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def mean(values) -> float | None:
    """Of what is known; None of nothing."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def machine() -> dict:
    import platform

    import jax

    return {"system": platform.system(), "architecture": platform.machine(), "cores": os.cpu_count(),
            "device": jax.devices()[0].device_kind}


def write(path: Path, found) -> None:
    """JSON by rename; lists of plain values are on one line."""
    joined = lambda match: "[" + re.sub(r"\n *", " ", match[1]) + "]"
    text = re.sub(r"\[\n *([^\[\]{}]*?)\n *\]", joined, json.dumps(found, indent=1, allow_nan=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)


def number(value: float | None, digits: int = 4) -> float | None:
    """Rounded; None for what is no number."""
    return None if value is None or value != value or abs(value) == float("inf") else round(float(value), digits)


def table(rows: list[list], heading: list[str]) -> str:
    """Text in columns, the first to the left; numbers with one decimal."""
    cells = [heading, *([cell if isinstance(cell, str) else "-" if cell is None else f"{cell:,}"
                         if isinstance(cell, int) else f"{cell:.1f}" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width
                                                          in zip(row[1:], widths[1:]))]) for row in cells)
