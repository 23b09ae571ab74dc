"""MobileSAM's scores on sets of pictures with masks, beside those of the official PyTorch code, object by object.

    python experiments/scores_val.py OFFICIAL.json [--record experiments/results/weaknesses.json]

OFFICIAL.json (scores_val.json of the reference folder, see tests/data/README.md) has the official means and a row for
each object: one point in the middle (three masks: the most confident one and the best) and the box (a single mask).
The record is what experiments/weaknesses.py wrote: the same prompts, a row for each object. Only sets of which the
record has every picture are compared. Its scores are rounded to 0.01 points (of 100), as the official rows are: means
may differ by 0.005 for that alone, objects by 0.01. Bar: means within 0.2 points. Seconds.

Result (experiments/results/scores_val.json, 16 sets, 2,373 objects): every mean within 0.004 points of the official
one, of sets with ten objects or more within 0.0013; one object differs by 0.13, all others by 0.04 or less.
"""

from pathlib import Path

import suite
from records import load, read, share, write
from weaknesses import SHOWN, objects_of

NAMES = {"point": ("point_confident", "iou_point_confident"), "point_oracle": ("point_oracle", "iou_point_oracle"),
         "box": ("box", "iou_box")}  # ours -> the official names of the mean and of an object's
BAR = 0.2
OFF = 0.1  # points: an object that differs by more is counted


def main() -> int:
    parser = suite.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("official", type=Path)
    parser.add_argument("--record", type=Path, default=suite.RESULTS / "weaknesses.json")
    parser.add_argument("--out", type=Path, default=suite.RESULTS / "scores_val.json")
    args = parser.parse_args()
    from samjax.errors import InputError

    official, record = read(args.official), load(args.record)
    if not all(isinstance(one, dict) and {"objects", "columns", "rows"} <= one.keys() for one in official.values()):
        raise InputError(f"{args.official} is not as the official scores are: each set needs objects, columns and rows")
    found = compared(record, official)
    write(args.out, found)
    print(report(found))
    return int(found["worst"]["mean"] > BAR)


def compared(record: dict, official: dict) -> dict:
    """All sets that both have whole. Raises InputError where there are none, or their objects are others."""
    from samjax.errors import InputError

    objects, sets, left_out = objects_of(record), {}, []
    for name in sorted(official, key=lambda name: official[name]["objects"]):
        own = [each for each in objects if each["set"] == name]
        part = share(record["sets"].get(name, {"pictures": {}}))
        if own and part["pictures"] == part["of"]:
            sets[name] = part | compare(name, own, official[name])
        else:
            left_out.append(name)
    if not sets:
        raise InputError("the record has no set whole that the official scores have: give another --record")
    return {"bar": BAR, "model": record["model"], "split": record["settings"]["split"], "made": record["made"],
            "worst": {"mean": max(one["worst_mean"] for one in sets.values()),
                      "object": max(one["worst_object"]["difference"] for one in sets.values())},
            "left_out": left_out, "sets": sets}


def compare(name: str, own: list[dict], official: dict) -> dict:
    """A set's means, ours and theirs, and the largest differences, all in points of 100."""
    rows = paired(name, own, official)
    ours = {key: 100 * suite.mean(each[key] for each, _ in rows) for key in SHOWN}
    theirs = {key: 100 * official[mean] for key, (mean, _) in NAMES.items()}
    gaps = [max(100 * abs(each[key] - other[column]) for key, (_, column) in NAMES.items()) for each, other in rows]
    worst = gaps.index(max(gaps))
    place = {key: rows[worst][0][key] for key in ("picture", "object")}
    return {
        "objects": len(rows),
        "ours": {key: round(value, 3) for key, value in ours.items()},
        "official": {key: round(value, 3) for key, value in theirs.items()},
        "by_size": by_size(own),
        "worst_mean": round(max(abs(ours[key] - theirs[key]) for key in NAMES), 4),
        "worst_object": {**place, "difference": round(gaps[worst], 4)},
        "objects_off_by_0.1": sum(gap > OFF for gap in gaps),
    }


def paired(name: str, own: list[dict], official: dict) -> list[tuple[dict, dict]]:
    """Our objects with the official ones, which are in the order of their files. Raises InputError."""
    from samjax.errors import InputError

    place = lambda each: (each["picture"], each["area"], each["click_x"], each["click_y"])
    ours = {}
    for each in own:
        ours.setdefault(place(each), []).append(each)
    rows = []
    for values in official["rows"]:
        theirs = dict(zip(official["columns"], values))
        same = ours.get(tuple(theirs[key] for key in ("image", "area", "x", "y")))
        if not same:
            raise InputError(f"{name}: the record lacks the official object {values}")
        rows.append((same.pop(0), theirs))
    if len(rows) != len(own):
        raise InputError(f"{name}: {len(own)} objects, but {len(rows)} official ones")
    return rows


def by_size(objects: list[dict]) -> dict:
    """Means of small, medium and large objects as COCO has them; sizes that there are."""
    from samjax.evaluate.boxes import SIZES, size_of

    found = {size: [each for each in objects if size_of(each["area"]) == size] for size in SIZES}
    return {size: {"objects": len(own), **{key: suite.number(suite.mean(each[key] for each in own)) for key in SHOWN}}
            for size, own in found.items() if own}


def report(found: dict) -> str:
    return suite.table([[name, suite.part_of(one), one["objects"], *(f"{one[who][key]:.2f}" for key in SHOWN
                                                                     for who in ("ours", "official")),
                         f"{one['worst_mean']:.3f}", f"{one['worst_object']['difference']:.3f}"]
                        for name, one in found["sets"].items()],
                       ["set", "pictures", "objects", *(f"{name}{who}" for name in SHOWN for who in ("", ", official")),
                        "means differ", "objects differ"])


if __name__ == "__main__":
    suite.run(main)
