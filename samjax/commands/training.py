"""What the commands that train share: data checked, bars on a terminal, a last line on stderr."""

import contextlib
import json
import sys
from dataclasses import asdict, replace

from samjax.commands.common import emit


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


def stopped(args, report: dict) -> int:
    """Says that a signal ended a run; the status."""
    text = (f"stopped by {report['stopped']} after step {report['step']}, saved; the same command goes on from there: "
            f"--out {args.out}")
    return complain(text, 0 if report["stopped"] == "SIGTERM" else 130)


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
