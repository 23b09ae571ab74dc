"""Points and boxes on whole data sets by the paper's protocols: 1 to 9 points, first at the centre or at random; boxes.

    python experiments/protocols.py DATASETS [--sets busi davis ...] [--split val] [--images 0] [--model mobile_sam]

DATASETS holds a folder for each set, with a meta.json. Each object is asked for by a point at its centre and by further
ones in the middle of the largest error, up to nine (Segment Anything, appendix D.1); the same from a random first
point; by its box as it is, by a noised one as the training has it, and with a second round (appendix D.4). Scores are
IoU: of the most confident mask, and of the best of three ("oracle"). The record, experiments/results/protocols.json,
has each object's, grows with each picture, and a stopped run goes on where it was.

Result (MobileSAM, the whole val splits of 16 sets, 309 pictures, 2,373 objects): the sets' mean 40.8, 56.6, 62.5, 72.4
and 77.6 after 1, 2, 3, 5 and 9 points from the centre, 39.7, 53.2, 63.2, 71.9 and 77.8 from a random one; 68.5 from the
box, 66.5 from a noised one, 68.9 with a second round; boxes of small, medium and large objects 76, 78 and 82. About two
seconds an object on one busy core.
"""

from collections.abc import Sequence

import suite
from records import share

COUNTS = (1, 2, 3, 5, 9)
BOXES = ("box", "noised_box", "refined_box")
NOISE = 0.1  # of the box's side: the standard deviation of its corners


def main() -> int:
    parser = suite.arguments(__doc__, "protocols.json", images=0)
    parser.add_argument("--seed", type=suite.whole, default=0)
    args = parser.parse_args()
    sets = suite.sets_of(args)
    record = suite.record_of(args, sets, summed_up, points=COUNTS, box_noise=NOISE, seed=args.seed, columns=columns())
    sam = suite.loaded(args.model)
    suite.each_picture(sets, record, lambda name, source, place: scores_of(sam(), source[place], args.seed),
                       folder=args.datasets)
    record.write()
    print(report(record.found))
    return suite.ended(record)


def columns() -> list[str]:
    """What is kept of each picture: a value for each object."""
    from samjax.evaluate.points import score_name

    points = [f"{first}{score_name(count)}{which}" for first in ("", "random_") for count in COUNTS
              for which in ("", "_oracle")]
    return ["area", *points, *BOXES]


def scores_of(sam, record, seed: int) -> dict:
    """{score: IoU of each object}, none where a picture has no objects of 32 px."""
    from samjax.evaluate import embed, score

    if not record.objects:
        return {}
    held, found = embed(sam, [record]), {}
    ways = {"": (("point", "box"), {}), "random_": (("point",), {"first": "random"}),
            "noised_": (("box",), {"box_noise": NOISE}), "refined_": (("box",), {"refine": True})}
    for way, (prompts, settings) in ways.items():
        rows = score(sam, [record], prompts, held, points=COUNTS, seed=seed, **settings).rows
        found["area"] = [row.area for row in rows]
        found |= {way + name: [suite.number(row.scores[name]) for row in rows] for name in rows[0].scores
                  if not name.endswith("_predicted")}
    return {name: found[name] for name in columns()}


def summed_up(found: dict) -> dict:
    return {"means": means(found), "by_size": by_size(found)}


def means(found: dict) -> dict:
    """By set the mean over objects of each score, and their number; last the mean of the sets'."""
    own = {name: share(one) | mean_of(list(one["pictures"].values())) for name, one in found["sets"].items()}
    own = {name: one for name, one in own.items() if "objects" in one}
    total = {key: sum(one[key] for one in own.values()) for key in ("pictures", "objects")}
    if own and all(one["of"] is not None for one in own.values()):
        total["of"] = sum(one["of"] for one in own.values())
    total |= {key: suite.number(suite.mean(one[key] for one in own.values()))
              for key in scores_in(next(iter(own.values()), {})) if all(key in one for one in own.values())}
    return own | {"mean of the sets": total}


def scores_in(one: dict) -> list[str]:
    """The names of the scores that a set has."""
    return [key for key in one if key not in ("pictures", "of", "objects")]


def tables_of(names: Sequence[str]) -> list[list[str]]:
    """Scores that are shown together: points from the centre, from a random one, boxes."""
    return [[name for name in names if name.startswith("point")],
            [name for name in names if name.startswith("random")], [name for name in names if name in BOXES]]


def mean_of(pictures: list[dict]) -> dict:
    """Over the objects of some pictures; nothing if there are none."""
    pictures = [one for one in pictures if "point" in one]
    if not pictures:
        return {}
    keys = [key for key in pictures[0] if key != "area" and all(key in one for one in pictures)]
    values = {key: [x for one in pictures for x in one[key]] for key in keys}
    return {"objects": len(values["point"]), **{key: suite.number(suite.mean(each)) for key, each in values.items()}}


def by_size(found: dict) -> dict:
    """From boxes, the mean over all sets' objects that COCO calls small, medium and large."""
    from samjax.evaluate import size_of

    values = {size: {name: [] for name in BOXES} for size in ("small", "medium", "large")}
    for picture in (one for each in found["sets"].values() for one in each["pictures"].values()):
        for i, area in enumerate(picture.get("area", ())):
            for name in BOXES:
                values[size_of(area)][name].append(picture[name][i])
    return {size: {"objects": len(own["box"]), **{name: suite.number(suite.mean(each)) for name, each in own.items()}}
            for size, own in values.items()}


def report(found: dict) -> str:
    """A table for each way to begin, and one of boxes by size."""
    tables = [suite.table([[name, suite.part_of(one), one["objects"], *(suite.percent(one[key]) for key in part)]
                           for name, one in found["means"].items()], ["mean IoU", "pictures", "objects", *part])
              for part in tables_of(scores_in(found["means"]["mean of the sets"]))]
    sizes = [[size, one["objects"], *(suite.percent(one[name]) for name in BOXES)]
             for size, one in found["by_size"].items()]
    return "\n\n".join([*tables, suite.table(sizes, ["mean IoU", "objects", *BOXES])])


if __name__ == "__main__":
    suite.run(main)
