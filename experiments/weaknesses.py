"""Where a model is weak: scores by objects' size, contrast, solidity and thinness; calibration; the worst objects.

    python experiments/weaknesses.py DATASETS [--sets busi davis ...] [--split val] [--images 0] [--model mobile_sam]

DATASETS holds a folder for each set, with a meta.json. Each object is scored from one click into its middle (the most
confident of three masks, and the best) and from its box; its properties are those of `samjax.evaluate.properties`. The
record, experiments/results/weaknesses.json, has a row for each object, the tables of `samjax.evaluate.strata` over all
objects with the calibration error in each bin, reliability for each prompt, over all and by set, and the worst objects
by the box's score: it leaves nothing to guess. Of these at most three are of a set and one of a picture. Their
pictures, with truth and answer, go to out/worst (not a part of the project: the data are others').

    python experiments/weaknesses.py DATASETS --split train --worst 0 --out experiments/results/weaknesses_train.json

scores the train splits, 664 pictures with 7,207 objects of 13 sets (--sets names them), as data that the model has not
seen either.

A stopped run goes on where it was; what is there is only summed up again. Of the 16 sets' validation parts, 309
pictures with 2,400 objects, 13 minutes on two cores.

Result (MobileSAM): one click 53 and a box 77 of 100 on average over the objects; small (below 0.03 % of the picture) 6
and 47, thin (area over twenty times the squared width) 3 and 21, ragged (solidity below 0.5) 23 and 39. It says of a
click's mask 43 points too much, of a box's 13. The train splits give the same picture: compact 78 and 88, thin 6 and
17, ragged 26 and 43.
"""

import shutil
import statistics
from functools import partial
from pathlib import Path

import suite
from records import share, write
from report_plots import between

SCORES = ("point", "point_oracle", "box", "point_predicted", "box_predicted")
SHOWN = ("point", "point_oracle", "box")
PROPERTIES = ("relative_area", "contrast", "solidity", "thinness")
ESTIMATES = {"point": "point_predicted", "box": "box_predicted"}
COLUMNS = ("object", "area", "x0", "y0", "x1", "y1", "click_x", "click_y", *PROPERTIES, *SCORES)


def main() -> int:
    parser = suite.arguments(__doc__, "weaknesses.json")
    parser.add_argument("--worst", type=suite.whole, default=20, help="objects on the sheet; 0: none")
    parser.add_argument("--of-a-set", type=suite.whole, default=3, help="at most so many of them")
    parser.add_argument("--sheet", type=Path, default=suite.ROOT / "out" / "worst")
    args = parser.parse_args()
    if args.worst:
        refuse(args.sheet)
    sets = suite.sets_of(args)
    record = suite.record_of(args, sets, partial(summed_up, number=args.worst, of_a_set=args.of_a_set), columns=COLUMNS)
    sam = suite.loaded(args.model)
    suite.each_picture(sets, record, lambda name, source, place: rows_of(sam(), source[place]), folder=args.datasets)
    record.write()
    print(report(record.found))
    if args.worst:
        draw(args, sam(), record.found["worst"])
    return suite.ended(record)


def refuse(folder: Path) -> None:
    """Raises InputError where the sheet would replace files that are not of an earlier one."""
    from samjax.errors import InputError

    if folder.exists() and not (folder.is_dir() and ((folder / "worst.json").is_file() or not any(folder.iterdir()))):
        raise InputError(f"{folder} holds other files than a sheet of worst objects: give another --sheet")


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


def objects_of(found: dict) -> list[dict]:
    """Everything in a record as dicts, with set and picture."""
    return [{"set": name, "picture": picture, **dict(zip(found["settings"].get("columns", COLUMNS), row))}
            for name, one in found["sets"].items() for picture, rows in one["pictures"].items()
            if isinstance(rows, list) for row in rows]


def summed_up(found: dict, number: int, of_a_set: int) -> dict:
    """Tables over all objects, the means of each set, and the worst objects."""
    from samjax.evaluate import reliability, stratify

    def calibration(chosen):
        return {name: rounded(reliability([each[said] for each in chosen], [each[name] for each in chosen]))
                for name, said in ESTIMATES.items()}

    objects, by_set = objects_of(found), {}
    for each in objects:
        by_set.setdefault(each["set"], []).append(each)
    means = {name: {"domain": suite.domain_of(name), **share(found["sets"][name]), "objects": len(own), **{
        score: suite.number(statistics.fmean(each[score] for each in own)) for score in SHOWN},
        "ece": {prompt: one["ece"] for prompt, one in calibration(own).items()}} for name, own in by_set.items()}
    return {"objects": len(objects), "strata": rounded(stratify(objects, objects, SCORES, estimates=ESTIMATES)),
            "reliability": calibration(objects), "means": means, "worst": worst(objects, number, of_a_set)}


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


def worst(objects: list[dict], number: int, of_a_set: int) -> list[dict]:
    """Those with the lowest IoU from their box: one of a picture, and not more than so many of a set."""
    chosen, pictures, sets = [], set(), {}
    for each in sorted(objects, key=lambda each: (each["box"], -each["area"])):
        picture = each["set"], each["picture"]
        if len(chosen) < number and picture not in pictures and sets.get(each["set"], 0) < of_a_set:
            chosen.append(each)
            pictures.add(picture)
            sets[each["set"]] = sets.get(each["set"], 0) + 1
    return chosen


def report(found: dict) -> str:
    heading = ["objects", "1 point", "oracle", "box", "ECE point", "ECE box"]
    scores = lambda one: [suite.percent(one[name]) for name in SHOWN]
    parts = [suite.table([[name, suite.part_of(one), one["objects"], *scores(one),
                           *map(suite.percent, one["ece"].values())]
                          for name, one in sorted(found["means"].items(), key=lambda item: item[1]["box"])],
                         ["set", "pictures", *heading])]
    for name, bins in found["strata"].items():
        rows = [[between(one), one["objects"], *scores(one), *(suite.percent(one[f"ece_{prompt}"]) for prompt in
                                                              ESTIMATES)] for one in bins]
        parts.append(suite.table(rows, [name, *heading]))
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
    write(temporary / "worst.json", listed)
    worst_sheet.sheet([(temporary / each["file"], worst_sheet.caption(each)) for each in listed]).save(
        temporary / "sheet.png")
    shutil.rmtree(args.sheet, ignore_errors=True)
    temporary.rename(args.sheet)
    print(f"the worst {len(listed)} objects: {args.sheet / 'sheet.png'}")


if __name__ == "__main__":
    suite.run(main)
