"""What the commands that train share: options, data checked, bars on a terminal, a last line on stderr."""

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TypeVar

from samjax.commands.common import emit
from samjax.errors import InputError

Options = TypeVar("Options")


def add_conduct(parser, what: str) -> None:
    """The options of every training that say what is done and where; what: a noun."""
    parser.add_argument("--out", metavar="DIR", help="where everything is written (needed without --check)")
    parser.add_argument("--val", metavar="DATA", action="append", default=[], help="other data to validate on")
    parser.add_argument("--images", metavar="DIR", default="", help="the folder of a COCO file's pictures")
    parser.add_argument("--check", action="store_true", help="only read and check the data")
    parser.add_argument("--restart", action="store_true", help=f"replace what another {what} left in DIR")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def add_numbers(parser, groups: dict, unset: Mapping[str, str] = {}) -> None:
    """Options that are numbers: groups by title, of (name, type, default, help). unset: by title what is said of those
    whose default is 0; a help that has the word says it itself."""
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        for name, kind, default, text in options:
            said = default or unset.get(title)
            shown = f" (default: {said})" if said and "default" not in text else ""
            group.add_argument(f"--{name}", type=kind, default=default, metavar="N" if kind is int else "X",
                               help=text + shown)


def options_of(args, kind: type[Options]) -> Options:
    """The options, checked. Raises InputError, also for an --out that cannot be written to."""
    names = {name: getattr(args, name) for name in kind.__dataclass_fields__}
    options = kind(**names | {"out": args.out or ""}).check()
    if not args.out and not args.check:
        raise InputError("--out DIR is needed: where the model is written")
    if args.out:
        from samjax.outputs import check_folder

        check_folder(args.out)
    return options


def conducted(args, train: Callable[[], dict]) -> tuple[dict | None, int]:
    """(report, 0) of train(); or None and the status, where it ended otherwise and that has been said."""
    from samjax.train.loop import Diverged

    try:
        report = train()
    except Diverged as error:
        return None, complain(f"error: {error} (--lr, --restart)", 1)
    except SystemExit:  # SIGTERM while nothing was trained
        return None, complain(f"stopped by SIGTERM; the same command goes on: --out {args.out}", 0)
    if "stopped" not in report:
        return report, 0
    text = (f"stopped by {report['stopped']} after step {report['step']}, saved; the same command goes on from there: "
            f"--out {args.out}")
    return None, complain(text, 0 if report["stopped"] == "SIGTERM" else 130)


def checked(sources: dict, say, notes: bool) -> dict:
    """Says what is wrong with the data, and with notes what is remarkable about them."""
    from samjax.train import material

    reports = {}
    for part, found in sources.items():
        with meter(f"checking {part}") as progress:
            reports |= material.check_all({part: found}, progress)
        for report in reports[part]:
            shown = report if notes else replace(report, problems=report.bad)
            say(f"{part}: {report.lines(0)[0]}")
            for line in shown.lines(200 if notes else 20)[1:]:
                say(line)
    return reports


def checks(args, sources: dict, say) -> int:
    """--check: only reads the data and says what is bad; the status."""
    reports = checked(sources, say, True)
    if args.json:
        emit(json.dumps({part: [asdict(report) for report in found] for part, found in reports.items()}, indent=1))
    return 1 if any(report.bad for found in reports.values() for report in found) else 0


def how_to_use(out: str) -> str:
    """The last line of a training: how its result is used. A known name would mean the published model."""
    from samjax.weights import KNOWN

    return f"samjax segment PICTURE --model {'./' if out in KNOWN else ''}{out}    uses the result"


def complain(text: str, status: int) -> int:
    """Says what ended a run, on stderr; returns the status."""
    with contextlib.suppress(OSError, AttributeError):  # stderr may be closed
        print("samjax:", " ".join(text.split()), file=sys.stderr, flush=True)
    return status


@contextlib.contextmanager
def meter(what: str):
    """A function of (done, all) that shows a bar on a terminal; elsewhere it does nothing."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=what, file=sys.stderr, leave=False) as bar:
        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
