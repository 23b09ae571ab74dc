"""Where a model is weak: scores by objects' size, contrast, solidity and thinness; calibration; the worst objects.

    python experiments/weaknesses.py DATASETS [--sets busi davis ...] [--split val] [--images 0] [--model mobile_sam]

DATASETS holds a folder for each set, with a meta.json. Each object is scored from one click into its middle (the most
confident of three masks, and the best) and from its box; its properties are those of `samjax.evaluate.properties`. The
record, experiments/results/weaknesses.json, has a row for each object, the tables of `samjax.evaluate.strata` over all
objects, reliability for each prompt, over all and by set, and the worst objects by the box's score: it leaves nothing
to guess. Of these at most three are of a set and one of a picture. Their pictures, with truth and answer, go to
out/worst (not a part of the project: the data are others').

A stopped run goes on where it was; what is there is only summed up again. Of the 16 sets' validation parts, 309
pictures with 2,400 objects, 13 minutes on two cores.

Result (MobileSAM): one click 53 and a box 77 of 100 on average over the objects; small (below 0.03 % of the picture) 6
and 47, thin (area over twenty times the squared width) 3 and 21, ragged (solidity below 0.5) 23 and 39. It says of a
click's mask 43 points too much, of a box's 13.
"""

import json
import shutil
import statistics
from pathlib import Path

import suite

SCORES = ("point", "point_oracle", "box", "point_predicted", "box_predicted")
SHOWN = ("point", "point_oracle", "box")
PROPERTIES = ("relative_area", "contrast", "solidity", "thinness")
COLUMNS = ("object", "area", "x0", "y0", "x1", "y1", "click_x", "click_y", *PROPERTIES, *SCORES)


def main():
    parser = suite.arguments(__doc__, "weaknesses.json")
    parser.add_argument("--worst", type=int, default=20, help="objects on the sheet; 0: none")
    parser.add_argument("--of-a-set", type=int, default=3, help="at most so many of them")
    parser.add_argument("--sheet", type=Path, default=suite.ROOT / "out" / "worst")
    args = parser.parse_args()
    import samjax

    record = suite.Record.open(args)
    record.found["columns"] = list(COLUMNS)
    sam = samjax.load(args.model)
    suite.each_picture(args, record, lambda name, source, place: rows_of(sam, source[place]))
    objects = objects_of(record)
    if not objects:
        raise SystemExit("nothing is scored yet")
    record.write(**summed_up(objects), worst=worst(objects, args.worst, args.of_a_set))
    print(report(record.found))
    if args.worst:
        draw(args, sam, record.found["worst"])


def rows_of(sam, record) -> list[list]:
    """A picture's objects, a list of COLUMNS for each."""
    from samjax.evaluate import Crop, describe, score

    if not record.objects:
        return []
    found = score(sam, [record]).rows
    seen = describe(record.image, [Crop(mask.mask()) for mask in record.objects])
    digits = {"relative_area": 7}
    return [[row.object, row.area, *row.box, *row.clicks[0][:2],
             *(suite.number(one[name], digits.get(name, 4)) for name in PROPERTIES),
             *(suite.number(row.scores[name]) for name in SCORES)] for row, one in zip(found, seen, strict=True)]


def objects_of(record: suite.Record) -> list[dict]:
    """Everything in the record as dicts, with set and picture."""
    return [{"set": name, "picture": picture, **dict(zip(COLUMNS, row))}
            for name, one in record.found["sets"].items() for picture, rows in one["pictures"].items()
            if isinstance(rows, list) for row in rows]


def summed_up(objects: list[dict]) -> dict:
    """Tables over all objects, and the means of each set."""
    from samjax.evaluate import reliability, stratify

    def calibration(chosen):
        return {name: rounded(reliability([each[f"{name}_predicted"] for each in chosen],
                                          [each[name] for each in chosen])) for name in ("point", "box")}

    by_set = {}
    for each in objects:
        by_set.setdefault(each["set"], []).append(each)
    means = {name: {"domain": suite.domain_of(name), "objects": len(own), **{
        score: suite.number(statistics.fmean(each[score] for each in own)) for score in SHOWN},
        "ece": {prompt: one["ece"] for prompt, one in calibration(own).items()}} for name, own in by_set.items()}
    return {"objects": len(objects), "strata": rounded(stratify(objects, objects, SCORES)),
            "reliability": calibration(objects), "means": means}


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


def worst(objects: list[dict], count: int, of_a_set: int) -> list[dict]:
    """Those with the lowest IoU from their box: one of a picture, and not more than so many of a set."""
    chosen, pictures, sets = [], set(), {}
    for each in sorted(objects, key=lambda each: (each["box"], -each["area"])):
        picture = each["set"], each["picture"]
        if len(chosen) < count and picture not in pictures and sets.get(each["set"], 0) < of_a_set:
            chosen.append(each)
            pictures.add(picture)
            sets[each["set"]] = sets.get(each["set"], 0) + 1
    return chosen


def report(found: dict) -> str:
    percent = lambda one: [None if one[name] is None else 100 * one[name] for name in SHOWN]
    parts = [suite.table([[name, one["objects"], *percent(one), *(100 * (ece or 0) for ece in one["ece"].values())]
                          for name, one in sorted(found["means"].items(), key=lambda item: item[1]["box"])],
                         ["set", "objects", "1 point", "oracle", "box", "ECE point", "ECE box"])]
    for name, bins in found["strata"].items():
        rows = [[f"{one['low']:g} to {'any' if one['high'] is None else format(one['high'], 'g')}", one["objects"],
                 *percent(one)] for one in bins]
        parts.append(suite.table(rows, [name, "objects", "1 point", "oracle", "box"]))
    parts += [f"{name}: ECE {100 * one['ece']:.1f}, bias {100 * one['bias']:+.1f}" for name, one in
              found["reliability"].items() if one["ece"] is not None]
    return "\n\n".join(parts)


def draw(args, sam, chosen: list[dict]) -> None:
    """One picture for each object, and worst.json beside them; the folder is made anew."""
    import worst_sheet

    from samjax.data import open_source

    temporary = args.sheet.with_name(args.sheet.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    listed, sources = [], {}
    for rank, each in enumerate(chosen, 1):
        source = sources.setdefault(each["set"], open_source(args.datasets / each["set"], args.split))
        record = source[source.names().index(each["picture"])]
        file = f"{rank:02}_{each['set']}.jpg"
        worst_sheet.panel(sam, record, each).save(temporary / file, quality=88)
        listed.append({"file": file, **each})
    (temporary / "worst.json").write_text(json.dumps(listed, indent=1) + "\n")
    worst_sheet.sheet([(temporary / each["file"], worst_sheet.caption(each)) for each in listed]).save(
        temporary / "sheet.png")
    shutil.rmtree(args.sheet, ignore_errors=True)
    temporary.rename(args.sheet)
    print(f"the worst {len(listed)} objects: {args.sheet / 'sheet.png'}")


if __name__ == "__main__":
    main()
