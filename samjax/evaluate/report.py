"""What an evaluation found: a row for each object, means, and both as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from samjax.evaluate.boxes import SIZES, size_of
from samjax.evaluate.crops import Box

ESTIMATE = "_predicted"  # ends the names of what the model said of itself


@dataclass(frozen=True)
class Row:
    """One object. object: its place among those of its picture; box: x0, y0, x1, y1, the last exclusive; scores: IoU
    (and the model's estimates of it) by name; clicks: the points given, x, y, label."""

    image: str
    object: int
    area: int
    box: Box
    scores: dict[str, float]
    clicks: Sequence[tuple[int, int, int]] = ()


@dataclass
class Report:
    """Scores of a source. names: of the IoUs that rows have; pictures: how many were scored; failures: (name, reason)
    of those that could not be."""

    name: str
    names: list[str]
    pictures: int = 0
    rows: list[Row] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """The mean IoU over all objects by name: {"point": 0.52, "point_oracle": 0.66, "box": 0.74}."""
        return {name: self._mean(self.rows, name) for name in self.names}

    def by_size(self) -> dict[str, dict]:
        """`summary` of small, medium and large objects as COCO has them, with their number; sizes that there are."""
        found = {size: [row for row in self.rows if size_of(row.area) == size] for size in SIZES}
        return {size: {"objects": len(rows), **{name: self._mean(rows, name) for name in self.names}}
                for size, rows in found.items() if rows}

    def joined(self, other: "Report") -> "Report":
        """The same objects with the scores of both: what only one of them has is left out."""
        found = {(row.image, row.object): row for row in other.rows}
        rows = [replace(row, scores=row.scores | found[row.image, row.object].scores)
                for row in self.rows if (row.image, row.object) in found]
        failures = list(dict.fromkeys([*self.failures, *other.failures]))
        return Report(self.name, [*self.names, *other.names], min(self.pictures, other.pictures), rows, failures)

    def to_json(self) -> dict:
        """Plain lists and numbers. `rows` are lists in the order of `columns`."""
        estimates = sorted({name for row in self.rows for name in row.scores if name.endswith(ESTIMATE)})
        scores = [*self.names, *estimates]
        return {
            "name": self.name, "pictures": self.pictures, "objects": len(self.rows),
            "summary": {name: number(mean) for name, mean in self.summary().items()},
            "by_size": {size: {name: number(mean) for name, mean in found.items()}
                        for size, found in self.by_size().items()},
            "failures": [list(failure) for failure in self.failures],
            "columns": ["image", "object", "area", "bounds", "clicks", *scores],
            "rows": [[row.image, row.object, row.area, list(row.box), [list(click) for click in row.clicks],
                      *(number(row.scores[name]) for name in scores)] for row in self.rows],
        }

    def _mean(self, rows: Sequence[Row], name: str) -> float:
        return float(np.mean([row.scores[name] for row in rows])) if rows else float("nan")


def number(value: float) -> float | int | None:
    """JSON has no NaN, which is what a broken model predicts."""
    return round(value, 6) if np.isfinite(value) else None
