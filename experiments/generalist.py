"""One model for all: MobileSAM tuned once on the train splits of all data sets together, natural scenes mixed in.

    python experiments/generalist.py DATASETS OUT [--minutes 40] [--options "--lr 2e-4 --mix-share 0.3"]

DATASETS is a folder of data sets that `samjax finetune` reads. Sets with a train split are tuned on, the natural ones
(NATURAL) by way of --mix; sets that have a val split alone are not seen in training, and scored before and after as
well. Everything goes to experiments/results/generalist.json: each set's scores (mean IoU over at most 600 objects of
its val split: one point, the best of its three masks, box), the means over sets, and by how much the gap between the
most confident mask and the best of three has closed. Two cores of a CPU, minutes as given and ten more for scores. A
run that was stopped goes on.

What was trained elsewhere for minutes (generalist_train.py) is made a model, scored object by object, and recorded:

    python experiments/generalist.py DATASETS MODEL --tensors FOLDER
    python experiments/weaknesses.py DATASETS --model MODEL --out AFTER.json --worst 0
    python experiments/generalist.py DATASETS MODEL --tensors FOLDER --scored BEFORE.json AFTER.json

BEFORE.json is experiments/results/weaknesses.json.
"""

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path

import numpy as np
import peers
import records
from tuned import compared
from weaknesses import objects_of

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import convert  # noqa: E402
import samjax  # noqa: E402
from convert.model import nest  # noqa: E402
from samjax import checkpoint  # noqa: E402
from samjax.cli import main as samjax_main  # noqa: E402
from samjax.data import open_source  # noqa: E402
from samjax.data.sources import NoSplit  # noqa: E402
from samjax.evaluate import score  # noqa: E402
from samjax.evaluate.made import commit  # noqa: E402
from samjax.train.material import Thinned  # noqa: E402
from samjax.weights import resolve  # noqa: E402

NATURAL = ("coco128seg", "davis", "bsds500")
KEYS = ("point", "point_oracle", "box")
OBJECTS = 600
RESULTS = Path(__file__).parent / "results" / "generalist.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--options", default="--mix-share 0.3 --balance 0.5 --objects 4 --keep 3")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tensors", type=Path, help="what generalist_train.py wrote")
    parser.add_argument("--scored", type=Path, nargs=2, metavar=("BEFORE", "AFTER"), help="records of weaknesses.py")
    args = parser.parse_args()
    if args.tensors:
        return of_tensors(args)
    tuned_on, natural, unseen = kinds(args.datasets)
    words = ["finetune", *map(str, tuned_on), *(f"--mix={path}" for path in natural), "--out", str(args.out),
             "--score-objects", str(OBJECTS), "--patience", "0", "--minutes", str(args.minutes),
             *shlex.split(args.options)]
    status = samjax_main(words)
    if status or not (args.out / "report.json").exists():
        sys.exit(f"samjax finetune ended with status {status}")
    report = json.loads((args.out / "report.json").read_text())
    sets = {Path(name).name: row(name, report["untuned"][name], report["tuned"][name], natural, "seen")
            for name in report["untuned"]}
    models = {"untuned": samjax.load(), "tuned": samjax.load(str(args.out))}
    for path in unseen:
        found = {name: scores(sam, path) for name, sam in models.items()}
        sets[path.name] = row(str(path), found["untuned"], found["tuned"], natural, "not seen")
    write(args, sets, {"steps": report["steps"], "best_step": report["best_step"], "pictures": report["pictures"],
                       "seconds": report["seconds"], "minutes": args.minutes, "options": args.options})


def write(args, sets: dict, more: dict) -> None:
    record = {"sets": sets, "means": means(sets), **more, "versions": peers.versions(), "commit": commit()}
    records.write(args.results, record)
    print(json.dumps(record["means"], indent=1))


def of_tensors(args) -> None:
    """Writes the model; or, once it is scored, the record."""
    if not args.scored:
        stored = convert.read(resolve("mobile_sam"))
        tensors = {name: tensor.load() for name, tensor in stored.tensors.items()}
        for path in sorted(args.tensors.glob("tensors_*.npz")):
            with np.load(path) as found:
                tensors |= {name: found[name] for name in found}
        checkpoint.save_model(args.out, stored.config, nest(tensors), stored.extras)
        return
    tuned_on, natural, _ = kinds(args.datasets)
    seen = {path.name for path in tuned_on}
    found = compared(*(objects_of(records.load(path)) for path in args.scored))["sets"]
    percent = lambda one, when: {key: 100.0 * one[when][key] for key in KEYS} | {"objects": one["objects"]}
    sets = {name: row(name, percent(one, "before"), percent(one, "after"), natural,
                      "seen" if name in seen else "not seen") for name, one in found.items()}
    write(args, sets, {"training": json.loads((args.tensors / "training.json").read_text())})


def kinds(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Data sets to be tuned on, natural ones with a train split, and those without one."""
    tuned_on, natural, unseen = [], [], []
    for path in sorted(path for path in folder.iterdir() if (path / "images").is_dir()):
        try:
            open_source(path, "train")
            (natural if path.name in NATURAL else tuned_on).append(path)
        except NoSplit:
            unseen.append(path)
    return tuned_on, natural, unseen


def scores(sam, path: Path) -> dict:
    """As in the report of `samjax finetune`."""
    rows = score(sam, Thinned(open_source(path, "val"), OBJECTS)).rows
    return {key: 100.0 * statistics.mean(row.scores[key] for row in rows) for key in KEYS} | {"objects": len(rows)}


def row(path: str, untuned: dict, tuned: dict, natural: list[Path], seen: str) -> dict:
    kind = "natural" if Path(path).name in {path.name for path in natural} else seen
    pick = lambda found: {key: round(found[key], 2) for key in KEYS}
    return {"kind": kind, "objects": untuned["objects"], "untuned": pick(untuned), "tuned": pick(tuned)}


def means(sets: dict) -> dict:
    """Over the sets of each kind and over all: scores before and after, and what is left of the gap to the best of
    three."""
    found = {}
    for kind in ("seen", "natural", "not seen", "all"):
        part = [entry for entry in sets.values() if kind in ("all", entry["kind"])]
        if not part:
            continue
        mean = lambda when, key, part=part: round(statistics.mean(entry[when][key] for entry in part), 2)
        found[kind] = {when: {key: mean(when, key) for key in KEYS} for when in ("untuned", "tuned")}
        gaps = [found[kind][when]["point_oracle"] - found[kind][when]["point"] for when in ("untuned", "tuned")]
        found[kind] |= {"sets": len(part), "gap_left": round(gaps[1] / gaps[0], 3) if gaps[0] else None}
    return found


if __name__ == "__main__":
    main()
