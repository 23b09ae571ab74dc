"""Points and boxes on whole data sets by the paper's protocols: 1 to 9 points, first at the centre or at random; boxes.

    python experiments/protocols.py DATASETS [--sets busi davis ...] [--split val] [--images 0] [--model mobile_sam]

DATASETS holds a folder for each set, with a meta.json. Each object is asked for by a point at its centre and by further
ones in the middle of the largest error, up to nine (Segment Anything, appendix D.1); by a random first point; by its
box as it is, and by a noised one as the training has it. Scores are IoU: of the most confident mask, and of the best of
three ("oracle"). The record, experiments/results/protocols.json, has each object's, grows with each picture, and a
stopped run goes on where it was.

Result (MobileSAM, 16 sets, 930 objects: whole val splits of crackforest, nwpu_vhr10 and seven small sets, three to
eight pictures of the others): the sets' mean 41.1, 57.2, 62.4, 72.5 and 77.6 after 1, 2, 3, 5 and 9 points, 68.1 from
the box, 66.2 from a noised one, 38.9 from a random point. Whole val splits: about 40 minutes on two idle cores.
"""

import suite

COUNTS = (1, 2, 3, 5, 9)
NOISE = 0.1  # of the box's side: the standard deviation of its corners
OTHERWISE = {"point": "random_point", "point_oracle": "random_point_oracle", "box": "noised_box"}  # how it is recorded


def main():
    parser = suite.arguments(__doc__, "protocols.json", images=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import samjax

    record = suite.Record.open(args, points=COUNTS, box_noise=NOISE, seed=args.seed)
    sam = samjax.load(args.model)
    suite.each_picture(args, record, lambda name, source, place: scores_of(sam, source[place], args.seed))
    record.write(means=means(record))
    print(report(record.found))


def scores_of(sam, record, seed: int) -> dict:
    """{score: IoU of each object}, none where a picture has no objects of 32 px."""
    from samjax.data.sources import LEAST
    from samjax.evaluate import embed, score

    if all(mask.area() < LEAST for mask in record.objects):
        return {}
    held, found = embed(sam, [record]), {}
    plain = score(sam, [record], ("point", "box"), held, points=COUNTS, seed=seed)
    noised = score(sam, [record], ("point", "box"), held, first="random", box_noise=NOISE, seed=seed)
    for one, names in ((plain, {name: name for name in plain.rows[0].scores}), (noised, OTHERWISE)):
        found |= {kept: [suite.number(row.scores[name]) for row in one.rows] for name, kept in names.items()
                  if not name.endswith("_predicted")}
    return found


def means(record: suite.Record) -> dict:
    """By set the mean over objects of each score, and their number; last the mean of the sets'."""
    found = {}
    for name, one in record.found["sets"].items():
        pictures = [each for each in one["pictures"].values() if "point" in each]
        if pictures:
            values = {key: [x for each in pictures for x in each[key]] for key in pictures[0]}
            found[name] = {"objects": len(values["point"]), **{key: suite.number(suite.mean(each))
                                                              for key, each in values.items()}}
    keys = list(next(iter(found.values()), {}))[1:]
    total = {key: suite.number(suite.mean(one[key] for one in found.values())) for key in keys}
    return found | {"mean of the sets": {"objects": sum(one["objects"] for one in found.values()), **total}}


def report(found: dict) -> str:
    names = list(found["means"]["mean of the sets"])[1:]
    rows = [[name, one["objects"], *(suite.percent(one[key]) for key in names)] for name, one in found["means"].items()]
    return suite.table(rows, ["mean IoU", "objects", *names])


if __name__ == "__main__":
    main()
