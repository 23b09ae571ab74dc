"""Before and after fine-tuning, object by object: what improves, what is lost elsewhere, and for which objects.

    python experiments/tuned.py NAME=FILE.json ... [--before experiments/results/weaknesses.json]

Each FILE is what `experiments/weaknesses.py DATASETS --model TUNED --sets SET coco128seg --out FILE.json --worst 0`
wrote of a tuned model; only objects that both records have are compared, and beside their number is written how many
the record of before has. experiments/results/tuned.json gets, for each NAME, the scores of each set and of all objects
before and after (means of IoU: one point, best of its three masks, box), calibration, and the tables of
`samjax.evaluate.strata` over the set tuned on (over all sets where the record has several). Seconds; the records take
two minutes each, that of all sets 13.
"""

from collections import Counter
from pathlib import Path

import suite
from records import load, read, write
from report_plots import between
from weaknesses import ESTIMATES, PROPERTIES, SCORES, SHOWN, objects_of, rounded

NATURAL = "coco128seg"
PAIRED = (*SHOWN, *(f"ece_{prompt}" for prompt in ESTIMATES))


def main() -> None:
    parser = suite.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("after", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--before", type=Path, default=suite.RESULTS / "weaknesses.json")
    parser.add_argument("--out", type=Path, default=suite.RESULTS / "tuned.json")
    args = parser.parse_args()
    before = load(args.before)
    found = {"models": {}} | (read(args.out) if args.out.exists() else {})
    for text in args.after:
        name, _, path = text.partition("=")
        if not path:
            parser.error(f"{text}: give NAME=FILE")
        after = load(Path(path))
        same_split(args.before, before, path, after)
        found["models"][name] = {"model": after["model"], "made": after["made"],
                                 **compared(objects_of(before), objects_of(after))}
    write(args.out, found)
    for text in args.after:
        name = text.partition("=")[0]
        print(f"\n{name}\n{shown(found['models'][name])}")


def same_split(one: Path, before: dict, other: Path, after: dict) -> None:
    """Raises InputError where the records are of other parts of the sets."""
    from samjax.errors import InputError

    splits = before["settings"].get("split"), after["settings"].get("split")
    if splits[0] != splits[1]:
        raise InputError(f"{one} is of the split {splits[0]}, but {other} of {splits[1]}")


def key(each: dict) -> tuple:
    return each["set"], each["picture"], each["object"]


def compared(before: list[dict], after: list[dict]) -> dict:
    """Tables of the objects that both have. Raises InputError where there are none."""
    from samjax.errors import InputError
    from samjax.evaluate import stratify

    rows, there = {key(each): each for each in before}, Counter(each["set"] for each in before)
    pairs = [(rows[key(each)], each) for each in after if key(each) in rows]
    if not pairs:
        raise InputError("the records of before and after have no object in common")
    names = list(dict.fromkeys(one["set"] for one, _ in pairs))
    sets = {name: both([pair for pair in pairs if pair[0]["set"] == name], there[name]) for name in names}
    several = len(set(names) - {NATURAL}) != 1
    own = [pair for pair in pairs if several or pair[0]["set"] != NATURAL]
    strata = {}
    for when, chosen in zip(("before", "after"), zip(*own)):
        strata[when] = rounded(stratify(list(zip(*own))[0], chosen, SCORES, estimates=ESTIMATES))
    return {"all": both(pairs, sum(there[name] for name in names)), "sets": sets, "strata": strata}


def both(pairs: list[tuple[dict, dict]], of: int) -> dict:
    """{"objects", "of", "before": means of the scores over objects and the calibration error of each prompt, "after"}.
    of: how many objects there are before."""
    from samjax.evaluate import reliability

    found = {"objects": len(pairs), "of": of}
    for when, rows in zip(("before", "after"), zip(*pairs)):
        scores = {name: suite.number(suite.mean(each[name] for each in rows)) for name in SHOWN}
        errors = {prompt: reliability([each[said] for each in rows], [each[prompt] for each in rows])
                  for prompt, said in ESTIMATES.items()}
        found[when] = scores | {f"ece_{prompt}": suite.number(one["ece"]) for prompt, one in errors.items()}
    return found


def side_by_side(before: dict, after: dict, names=PAIRED) -> list[float | None]:
    """In percent: of each score before and after."""
    return [suite.percent(one.get(name)) for name in names for one in (before, after)]


def shown(model: dict) -> str:
    heading = [name + when for name in ("1 point", "oracle", "box", "ECE 1", "ECE box") for when in ("", " now")]
    parts = [suite.table([[name, suite.part_of(one, "objects"), *side_by_side(one["before"], one["after"])]
                          for name, one in model["sets"].items()], ["set", "objects", *heading])]
    for name in PROPERTIES:
        rows = [[between(a), a["objects"], *side_by_side(a, b)]
                for a, b in zip(model["strata"]["before"][name], model["strata"]["after"][name])]
        parts.append(suite.table(rows, [name, "objects", *heading]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    suite.run(main)
