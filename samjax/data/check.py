"""`check`: every bad item of a source by name and reason, before anything is trained."""

import dataclasses
from collections.abc import Callable

from samjax.data.records import Record
from samjax.data.sources import LEAST, Source
from samjax.data.transforms import TOO_LARGE
from samjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Problem:
    """usable: whether the picture can still be trained on (its other objects are sound)."""

    name: str
    reason: str
    usable: bool = False


@dataclasses.dataclass
class Report:
    """pictures, objects: numbers of those that can be used; good: their places in the source, for `source.select`;
    unread: pictures that were not looked at."""

    source: str
    pictures: int = 0
    objects: int = 0
    good: list[int] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    unread: int = 0

    @property
    def bad(self) -> list[Problem]:
        """What makes a picture unusable."""
        return [problem for problem in self.problems if not problem.usable]

    def lines(self, most: int | None = None) -> list[str]:
        """For people: a summary, then a line for each problem, at most `most`, what is bad first."""
        bad, notes = len(self.bad), len(self.problems) - len(self.bad)
        lines = [f"{self.source}: {self.pictures} pictures with {self.objects} objects can be used; {bad} cannot, "
                 f"{notes} remarks" + (f"; {self.unread} more pictures were not looked at" if self.unread else "")]
        lines += [f"  {'note' if problem.usable else 'bad '}  {problem.name}: {problem.reason}"
                  for problem in [*self.bad, *(problem for problem in self.problems if problem.usable)][:most]]
        if most is not None and len(self.problems) > most:
            lines.append(f"  and {len(self.problems) - most} more")
        return lines


def check(source: Source, progress: Callable[[int, int], None] | None = None, most: int | None = None) -> Report:
    """Reads every picture and mask of a source once; or `most` pictures of it, evenly spread, and the others count
    among the good places unread.

    Named are: files without a partner, pictures and JSON that cannot be read, masks of another size than their picture,
    broken masks, pictures with no mask or with empty ones only; and, as remarks, single objects that training passes
    over: empty, of one pixel, under 32 px, over 90 % of the picture. progress(done, all) is called after each.
    """
    report = Report(source.name, problems=[Problem(file, reason) for file, reason in source.found])
    count = min(len(source), most or len(source))
    places = [i * len(source) // count for i in range(count)]
    report.unread = len(source) - count
    for done, index in enumerate(places, 1):
        try:
            usable, remarks = _look(source.record(index))
        except (InputError, OSError) as error:
            report.problems.append(Problem(source.item_name(index), str(error)))
        else:
            name = source.item_name(index)
            report.problems += [Problem(name, remark, usable > 0) for remark in remarks]
            if usable:
                report.pictures, report.objects = report.pictures + 1, report.objects + usable
                report.good.append(index)
        if progress is not None:
            progress(done, count)
    if report.unread:
        report.good = sorted({*range(len(source))} - {*places} | {*report.good})
    return report


def _look(record: Record) -> tuple[int, list[str]]:
    """Objects that can be used, and what is to be said."""
    picture = record.open()
    record.check_size((picture.height, picture.width))
    if not record.objects:
        return 0, ["no masks: nothing is marked"]
    pixels = picture.height * picture.width
    areas = [mask.area() for mask in record.objects]
    kinds = (("empty", lambda n: n == 0), ("of one pixel", lambda n: n == 1),
             (f"of 2 to {LEAST - 1} pixels", lambda n: 1 < n < LEAST),
             (f"over {TOO_LARGE:.0%} of the picture", lambda n: n > TOO_LARGE * pixels))
    counted = [(sum(map(belongs, areas)), what) for what, belongs in kinds]
    passed = sum(n for n, _ in counted)
    remarks = [f"{n} of {len(areas)} objects {what}" for n, what in counted if n]
    if passed == len(areas):
        remarks = [f"no usable object: {'; '.join(remarks)}"]
    return len(areas) - passed, remarks
