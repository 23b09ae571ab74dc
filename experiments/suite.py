"""What the experiments of the evaluation suite share: sets and their pictures, options, tables, how they end.

DATASETS holds a folder for each set, as `samjax.data.open_source` reads it. What is found of each picture goes to a
record (records.py): a run that was stopped goes on where it was, and one with other settings is refused.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import records
from records import Record

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


class Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors: one line, without the usage."""

    def error(self, message):
        from samjax.errors import InputError

        raise InputError(f"{message} (see --help)")


def run(main: Callable[[], int | None]) -> None:
    """Ends with main's status; with 2 and one line on stderr where the input is wrong."""
    from samjax.errors import InputError

    try:
        status = main()
    except InputError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        status = 2
    raise SystemExit(status)


def whole(text: str) -> int:
    """A number of 0 or more, for argparse."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text} is no whole number of 0 or more")
    return int(text)


def arguments(doc: str, result: str, images: int | None = None) -> argparse.ArgumentParser:
    """The options of all that take a folder of sets. images: default of --images."""
    parser = Parser(description=doc.splitlines()[0])
    parser.add_argument("datasets", type=Path, help="a folder with a folder for each set")
    parser.add_argument("--sets", nargs="+", help="default: all that there are")
    parser.add_argument("--split", default="val")
    return common(parser, result, images)


def common(parser: argparse.ArgumentParser, result: str, images: int | None) -> argparse.ArgumentParser:
    """The options of all that go picture by picture."""
    parser.add_argument("--images", type=whole, default=images, help="pictures of each set, evenly spread; 0: all")
    parser.add_argument("--model", default="mobile_sam")
    parser.add_argument("--out", type=Path, default=RESULTS / result)
    parser.add_argument("--redo", action="store_true", help="forget what is recorded")
    return parser


def model_of(name: str) -> dict:
    """What identifies a model: its name, architecture and the sha256 of its weights. Raises InputError."""
    import convert
    from samjax import job
    from samjax.weights import KNOWN, resolve

    path = resolve(name)
    sha256 = KNOWN[name].sha256 if name in KNOWN else job.fingerprint(path)
    return {"name": name if name in KNOWN else Path(name).name, "architecture": convert.read(path).config.name,
            "sha256": sha256}


def loaded(name: str, **settings) -> Callable[[], object]:
    """A function that gives the model, loaded at its first call: what is only summed up again needs none."""
    @cache
    def sam():
        import samjax

        return samjax.load(name, **settings)

    return sam


def sets_of(args) -> list[tuple[str, object, list[int]]]:
    """(name, source, places of the pictures) of the sets that have this split and are there. Raises InputError."""
    from samjax.data import open_source
    from samjax.errors import InputError

    if not args.datasets.is_dir():
        raise InputError(f"{args.datasets}: no such folder")
    names, found = args.sets or sorted(path.parent.name for path in args.datasets.glob("*/meta.json")), []
    for name in names:
        if not args.sets and name in WITHOUT_OBJECTS:
            continue
        try:
            source = open_source(args.datasets / name, args.split)
        except InputError as error:
            if args.sets:
                raise
            print(f"{name}: passed over: {error}", flush=True)
            continue
        found.append((name, source, places_of(source, args.images)))
    if not found:
        raise InputError(f"{args.datasets} holds no set with a meta.json and the split {args.split}")
    return found


def places_of(source, images: int | None) -> list[int]:
    """Places of so many pictures (0: all), evenly spread, in an order in which the first ones, however many, are spread
    evenly too: a stopped run leaves a fair sample."""
    from samjax.evaluate.pictures import spread

    places = spread(len(source), images or None)
    bits = len(places).bit_length()
    backwards = lambda i: int(f"{(i << bits) // len(places):0{bits}b}"[::-1], 2)  # 0, 1/2, 1/4, 3/4, 1/8, ...
    return [places[i] for i in sorted(range(len(places)), key=backwards)]


def record_of(args, sets: Iterable, sums: Callable[[dict], dict], **settings) -> Record:
    """The record at args.out with an entry for each of the sets. Raises InputError where it was made otherwise."""
    record = Record.open(args.out, {"model": model_of(args.model), "settings": {"split": args.split, **settings}}, sums,
                         redo=args.redo)
    for name, source, _ in sets:
        record.group(name, domain=domain_of(name), of=len(source))
    return record


def each_picture(sets: Iterable, record: Record, work: Callable, part: str = "", folder: Path | None = None) -> None:
    """Calls work(set, source, place) for each picture that has given nothing yet, and records what it returns.

    A picture that cannot be scored is recorded as {"failed": why}. sets: as of `sets_of`. part: put before the
    pictures' names, where a record has several things of each. folder: not named in the record.
    """
    from samjax.errors import InputError

    for name, source, places in sets:
        start, fresh, pictures = time.perf_counter(), 0, record.pictures(name)
        if strange := {each for each in pictures if each.startswith(part)} - {part + each for each in source.names()}:
            raise InputError(f"{record.path} has pictures of {name} that are not among those given, such as "
                             f"{min(strange)}: give the same folder and --split, or another --out")
        for place in places:
            picture = part + source.item_name(place)
            if picture in pictures and not records.failed(pictures[picture]):
                continue
            begin = time.perf_counter()
            try:
                found = work(name, source, place)
            except (InputError, OSError) as error:
                found = {"failed": reason(error, folder)}
            record.add(name, picture, found, time.perf_counter() - begin)
            fresh += 1
        print(f"{part}{name}: {fresh} new of {len(places)} pictures in {time.perf_counter() - start:.0f} s", flush=True)


def reason(error: Exception, folder: Path | None) -> str:
    """Why a picture failed, without the folder of this machine."""
    text = getattr(error, "strerror", None) or str(error)
    return text if folder is None else without(text, folder)


def without(text: str, folder: Path) -> str:
    """A message without the folder that the files in it lie in."""
    return text.replace(f"{folder}{os.sep}", "")


def ended(record: Record) -> int:
    """Says what could not be scored; the exit status, 1 where there is something. A rerun tries it again."""
    failures = record.failures()
    if failures:
        print(f"{len(failures)} pictures could not be scored:", *failures, sep="\n", file=sys.stderr)
    return int(bool(failures))


def some(record, number: int):
    """A source's record with at most so many of its objects, evenly spread (0: all)."""
    import dataclasses

    from samjax.evaluate.pictures import spread

    return dataclasses.replace(record, objects=[record.objects[i] for i in spread(len(record.objects), number or None)])


def percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def mean(values) -> float | None:
    """Of what is known; None of nothing."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def number(value: float | None, digits: int = 4) -> float | None:
    """Rounded; None for what is no number."""
    return None if value is None or value != value or abs(value) == float("inf") else round(float(value), digits)


def part_of(one: dict, what: str = "pictures") -> str:
    """"3 of 8" pictures (or objects) of a set; where "of" is not recorded, "3 of ?"."""
    return f"{one[what]:,} of {'?' if one.get('of') is None else format(one['of'], ',')}"


def table(rows: Sequence[Sequence], heading: Sequence[str]) -> str:
    """Text in columns, the first to the left; numbers with one decimal."""
    cells = [heading, *([cell if isinstance(cell, str) else "-" if cell is None else f"{cell:,}"
                         if isinstance(cell, int) else f"{cell:.1f}" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width
                                                          in zip(row[1:], widths[1:]))]) for row in cells)
