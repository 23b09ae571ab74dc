"""Before and after fine-tuning, object by object: what improves, what is lost elsewhere, and for which objects.

    python experiments/tuned.py NAME=FILE.json ... [--before experiments/results/weaknesses.json]

Each FILE is what `experiments/weaknesses.py DATASETS --model TUNED --sets SET coco128seg --out FILE.json --worst 0`
wrote of a tuned model; only objects that both records have are compared. experiments/results/tuned.json gets, for each
NAME, the scores of each set and of all objects before and after (means of IoU: one point, best of its three masks,
box), calibration, and the tables of `samjax.evaluate.strata` over the set tuned on (over all sets where the record has
several). Seconds; the records take two minutes each, that of all sets 13.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import suite
from weaknesses import PROPERTIES, SCORES, SHOWN, objects_of, rounded

NATURAL = "coco128seg"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("after", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--before", type=Path, default=suite.RESULTS / "weaknesses.json")
    parser.add_argument("--out", type=Path, default=suite.RESULTS / "tuned.json")
    args = parser.parse_args()
    before = {key(each): each for each in objects_of(read(args.before))}
    found = json.loads(args.out.read_text()) if args.out.exists() else {"models": {}}
    for text in args.after:
        name, _, path = text.partition("=")
        if not path:
            parser.error(f"{text}: give NAME=FILE")
        record = read(path)
        pairs = [(before[key(each)], each) for each in objects_of(record) if key(each) in before]
        if not pairs:
            sys.exit(f"{path} has no object in common with {args.before}")
        found["models"][name] = {"model": record.found["model"], "commit": record.found["commit"], **compared(pairs)}
    suite.write(args.out, found)
    for text in args.after:
        name = text.partition("=")[0]
        print(f"\n{name}\n{shown(found['models'][name])}")


def read(path) -> suite.Record:
    return suite.Record(Path(path), suite.load(Path(path)))


def key(each: dict) -> tuple:
    return each["set"], each["picture"], each["object"]


def compared(pairs: list[tuple[dict, dict]]) -> dict:
    """Tables of pairs of an object's row before and after."""
    from samjax.evaluate import reliability, stratify

    names = list(dict.fromkeys(one["set"] for one, _ in pairs))
    sets = {name: both([pair for pair in pairs if pair[0]["set"] == name], reliability) for name in names}
    several = len(set(names) - {NATURAL}) != 1
    own = [pair for pair in pairs if several or pair[0]["set"] != NATURAL]
    strata = {}
    for when, rows in zip(("before", "after"), zip(*own)):
        strata[when] = rounded(stratify(list(zip(*own))[0], rows, SCORES))
    return {"all": both(pairs, reliability), "sets": sets, "strata": strata}


def both(pairs: list[tuple[dict, dict]], reliability) -> dict:
    """{"objects", "before": means of the scores over objects and the calibration error of each prompt, "after"}."""
    found = {"objects": len(pairs)}
    for when, rows in zip(("before", "after"), zip(*pairs)):
        scores = {name: suite.number(statistics.fmean(each[name] for each in rows)) for name in SHOWN}
        errors = {prompt: reliability([each[f"{prompt}_predicted"] for each in rows], [each[prompt] for each in rows])
                  for prompt in ("point", "box")}
        found[when] = scores | {f"ece_{prompt}": suite.number(one["ece"]) for prompt, one in errors.items()}
    return found


def shown(model: dict) -> str:
    percent = lambda value: None if value is None else 100 * value
    pair = lambda before, after, name: (percent(before[name]), percent(after[name]))
    heading = lambda names: [name + when for name in names for when in ("", " now")]
    parts = [suite.table([[name, one["objects"], *(value for score in (*SHOWN, "ece_point", "ece_box")
                                                   for value in pair(one["before"], one["after"], score))]
                          for name, one in model["sets"].items()],
                         ["set", "objects", *heading(["1 point", "oracle", "box", "ECE 1", "ECE box"])])]
    for name in PROPERTIES:
        rows = [[f"{a['low']:g} to {'any' if a['high'] is None else format(a['high'], 'g')}", a["objects"],
                 *(value for score in SHOWN for value in pair(a, b, score))]
                for a, b in zip(model["strata"]["before"][name], model["strata"]["after"][name])]
        parts.append(suite.table(rows, [name, "objects", *heading(["1 point", "oracle", "box"])]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
