"""What noise, blur, JPEG, brightness and contrast take from a model's scores, at five strengths each.

    python experiments/robustness.py DATASETS [--sets ...] [--images 3] [--objects 10] [--model mobile_sam]

DATASETS holds a folder for each set, with a meta.json. Each picture is scored as it is and 25 times made worse
(`samjax.evaluate.corruptions`, seeded); of its objects at most --objects are asked for, evenly spread. Scores are IoU:
of the most confident mask after a click into the middle, and of the box's single mask.

The record, experiments/results/robustness.json, grows with each picture, and a stopped run goes on where it was. About
80 s a picture on two idle cores; 3 pictures of each of 16 sets: 60 minutes.

Result (MobileSAM, one picture and at most five objects of each of 16 sets, 50 objects): boxes 68.3 clean, at the fifth
strength 58.5 (JPEG), 59.7 (contrast), 59.9 (blur), 61.4 (noise), 66.3 (brightness); clicks 36.5 clean, 10.6 (noise),
11.7 (contrast), 21.9 (JPEG), 23.2 (blur), 33.0 (brightness).
"""

import suite
from records import count, share

PROMPTS = ("point", "box")
CLEAN = "clean"


def main() -> int:
    parser = suite.arguments(__doc__, "robustness.json", images=3)
    parser.add_argument("--objects", type=suite.whole, default=10, help="of a picture; 0: all")
    parser.add_argument("--kinds", nargs="+", help="of corruption (default: all five)")
    parser.add_argument("--seed", type=suite.whole, default=0)
    args = parser.parse_args()
    from samjax.errors import InputError
    from samjax.evaluate.corruptions import STRENGTHS

    kinds = args.kinds or list(STRENGTHS)
    if unknown := set(kinds) - set(STRENGTHS):
        raise InputError(f"no corruption is called {min(unknown)}: there are {', '.join(STRENGTHS)}")
    sets = suite.sets_of(args)
    record = suite.record_of(args, sets, means, objects=args.objects, kinds=kinds, seed=args.seed,
                             strengths={kind: STRENGTHS[kind] for kind in kinds})
    sam = suite.loaded(args.model)
    suite.each_picture(sets, record, lambda name, source, place: scores_of(
        sam(), suite.some(source[place], args.objects), kinds, args.seed), folder=args.datasets)
    record.write()
    print(report(record.found))
    return suite.ended(record)


def scores_of(sam, record, kinds: list[str], seed: int) -> dict:
    """By condition ("clean", "noise 1", ...) and prompt the IoU of each object."""
    from samjax.evaluate import score
    from samjax.evaluate.corruptions import corrupt

    if not record.objects:
        return {}
    image, found = record.image, {}
    for kind, strength in [(CLEAN, 0), *((kind, strength) for kind in kinds for strength in range(1, 6))]:
        worse = image if kind == CLEAN else corrupt(image, kind, strength, seed, record.name)
        rows = score(sam, [record], PROMPTS, {record.name: sam.encode(worse)}).rows
        found[kind if kind == CLEAN else f"{kind} {strength}"] = {
            prompt: [suite.number(row.scores[prompt]) for row in rows] for prompt in PROMPTS}
    return found


def means(record: dict) -> dict:
    """By prompt and condition the mean of the sets' means over objects."""
    found, kinds = {}, record["settings"]["kinds"]
    for prompt in PROMPTS:
        found[prompt] = {}
        for condition in [CLEAN, *(f"{kind} {strength}" for kind in kinds for strength in range(1, 6))]:
            sets = [suite.mean(value for each in one["pictures"].values() if condition in each
                               for value in each[condition][prompt]) for one in record["sets"].values()]
            found[prompt][condition] = suite.number(suite.mean(sets))
    return {"means": found, "shares": {name: share(one) for name, one in record["sets"].items() if count(one)}}


def report(found: dict) -> str:
    rows = []
    for prompt, values in found["means"].items():
        for kind in found["settings"]["strengths"]:
            rows.append([f"{prompt}, {kind}", suite.percent(values[CLEAN]),
                         *(suite.percent(values[f"{kind} {strength}"]) for strength in range(1, 6))])
    shares = [[name, suite.part_of(one)] for name, one in found["shares"].items()]
    return "\n\n".join([suite.table(shares, ["set", "pictures"]),
                        suite.table(rows, ["mean IoU of the sets", CLEAN, *"12345"])])


if __name__ == "__main__":
    suite.run(main)
