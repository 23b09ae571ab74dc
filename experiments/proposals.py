"""Object proposals: average recall of the first 10, 100 and 1000 automatic masks, by the objects' size.

    python experiments/proposals.py SET... [--presets quick] [--images 5] [--split val]

SET is a data set that `samjax.data.open_source` reads; with --images 0 all of its pictures are taken, else so many,
evenly spread. Presets: `paper` (Segment Anything, appendix D.3: 64 x 64 points, no filters, NMS 0.9), `quick` (the same
with 32 x 32), `default` (`Sam.everything` as it is). The record, experiments/results/proposals.json, grows with each
picture, and a stopped run goes on where it was.

The paper (LVIS, ViT-H): AR@1000 59.3; small 45.5, medium 81.6, large 86.9.

Result: `quick`, two pictures of each of 16 sets, 376 objects in all: AR@1000 of 0 (chase_db1, crackforest), 10
(kolektorsdd), 34 to 46 (busi, coco128seg, ct_organs, cwfid, isbi_em, kvasir_polyp, magnetic_tile, ortho_buildings), 68
to 81 (cleargrasp, camo_sample, dsb2018, nwpu_vhr10) and 100 (davis). Too few to compare sets; a picture takes 40 s of
two idle cores.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np
import suite
from records import Record, share


def main() -> int:
    parser = suite.common(suite.Parser(description=__doc__.splitlines()[0]), "proposals.json", images=5)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--presets", default="paper", help="with commas between them")
    parser.add_argument("--split", default="val")
    args = parser.parse_args()
    from samjax.data import open_source
    from samjax.errors import InputError
    from samjax.evaluate.proposals import PRESETS

    presets = args.presets.split(",")
    if unknown := set(presets) - set(PRESETS):
        raise InputError(f"no preset is called {min(unknown)}: there are {', '.join(PRESETS)}")
    folders = {folder.resolve().name: folder for folder in args.sets}
    if len(folders) < len(args.sets):
        raise InputError("two of the sets have the same name: give each an --out of its own")
    sources = {name: open_source(folder, args.split) for name, folder in folders.items()}
    record = Record.open(args.out, {"model": suite.model_of(args.model), "settings": {"split": args.split}}, summed_up,
                         redo=args.redo, upgrade=upgraded)
    sam, work = suite.loaded(args.model), [(name, preset) for name in sources for preset in presets]
    for name, preset in work:
        record.group(group_of(name, preset), {"set": name, "preset": preset, "settings": PRESETS[preset]},
                     of=len(sources[name]))
    for name, preset in work:
        places = suite.places_of(sources[name], args.images)
        suite.each_picture([(group_of(name, preset), sources[name], places)], record,
                           partial(measured, sam, PRESETS[preset]), folder=folders[name])
    record.write()
    print(report(record.found))
    return suite.ended(record)


def group_of(name: str, preset: str) -> str:
    """The record's entry of a set with a preset."""
    return f"{name}, {preset}"


def upgraded(found: dict) -> dict:
    """A record as it is written now: older ones were one list of pictures of all sets and presets."""
    if isinstance(found.get("pictures"), list) and "sha256" in found:
        sets = {}
        for row in found.pop("pictures"):
            name, preset, picture = (row.pop(key) for key in ("set", "preset", "picture"))
            one = sets.setdefault(group_of(name, preset), {"set": name, "preset": preset, "seconds": 0, "pictures": {}})
            one["seconds"] = round(one["seconds"] + row["seconds"], 2)
            one["pictures"][picture] = row
        found |= {"model": {"name": found["model"], "sha256": found.pop("sha256")}, "settings": {}, "sets": sets}
    return found


def measured(sam, settings: dict, name: str, source, place: int) -> dict:
    """What is found in one picture; nothing where it has no objects."""
    from samjax.evaluate.proposals import propose

    start = time.perf_counter()
    found = propose(sam(), source[place], settings)
    return {} if found is None else {"seconds": round(time.perf_counter() - start, 2), **to_json(found)}


def to_json(found) -> dict:
    """Each object's area and best IoU, and at each IoU threshold the rank of its proposal by size (-1: none), of which
    only the sizes that it has are written."""
    from samjax.evaluate.proposals import SIZES

    return {"proposals": found.proposals, "areas": found.areas.tolist(), "best": found.best.round(4).tolist(),
            "ranks": {size: {int(k): found.ranks[i, :, k].tolist() for k in np.flatnonzero(found.sizes[i])}
                      for i, size in enumerate(SIZES)}}


def from_json(row: dict):
    from samjax.evaluate.proposals import IOUS, SIZES, Found

    n = len(row["areas"])
    ranks, sizes = np.full((len(SIZES), len(IOUS), n), -1), np.zeros((len(SIZES), n), bool)
    for i, size in enumerate(SIZES):
        for k, values in row["ranks"][size].items():
            ranks[i, :, int(k)], sizes[i, int(k)] = values, True
    return Found(ranks, sizes, np.array(row["best"]), np.array(row["areas"]), row["proposals"])


def summed_up(found: dict) -> dict:
    """Average recall in percent for each set and preset, over all of its objects."""
    from samjax.evaluate.proposals import LIMITS, SIZES, average_recall

    lines = []
    for one in found["sets"].values():
        rows = [row for row in one["pictures"].values() if "areas" in row]
        if not rows:
            continue
        each = [from_json(row) for row in rows]
        recall = average_recall(each)
        in_percent = lambda value: suite.number(100 * value, 2)
        lines.append({"set": one["set"], "preset": one["preset"], **share(one),
                      "objects": sum(len(picture.areas) for picture in each),
                      "proposals": round(float(np.mean([picture.proposals for picture in each])), 1),
                      **{f"ar_{limit}": in_percent(recall["all"][i]) for i, limit in enumerate(LIMITS)},
                      **{f"ar_1000_{size}": in_percent(recall[size][-1]) for size in SIZES if size != "all"},
                      "median_seconds": float(np.median([row["seconds"] for row in rows]))})
    return {"summary": lines}


def report(found: dict) -> str:
    keys = [key for key in dict.fromkeys(key for row in found["summary"] for key in row)
            if key not in ("set", "preset", "pictures", "of")]
    return suite.table([[row["set"], row["preset"], suite.part_of(row), *(row[key] for key in keys)]
                        for row in found["summary"]],
                       ["set", "preset", "pictures", *(key.replace("ar_", "AR@").replace("_", " ") for key in keys)])


if __name__ == "__main__":
    suite.run(main)
