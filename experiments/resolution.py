"""Scores and time by the resolution that the encoder sees: 256, 512, 768, 1024 and 1536 px.

    python experiments/resolution.py DATASETS [--sizes 256,512,768,1024,1536] [--images 5] [--objects 20]

DATASETS holds a folder for each set, with a meta.json. The model is loaded for each size
(`samjax.load(model, image_size=size)`), pictures are brought to it, and their objects scored at their own resolution:
IoU of the most confident mask after a click into the middle, of the best of three, and of the box's single mask. Of a
picture at most --objects are asked for, evenly spread. Seconds are of the second encoding of a picture (the first may
compile), and of all prompts of a picture, without compiling.

The record, experiments/results/resolution.json, grows with each picture, and a stopped run goes on where it was. About
12 s a picture for all sizes on two idle cores, and half a minute to compile for each; 5 pictures of each of 16 sets: 20
minutes.

Result (MobileSAM, --images 3 --objects 10, 200 objects): boxes are best at 1024 px (69; 51, 63, 67 and 68 at 256, 512,
768 and 1536), one click at 768 (42; 21, 37, 41 and 40 at 256, 512, 1024 and 1536; a difference of 1.5 is within the
error); the time is 0.07, 0.19, 0.64, 1 and 2.4.
"""

import argparse
import statistics
import time

import suite

SCORES = ("point", "point_oracle", "box")


def main() -> int:
    parser = suite.arguments(__doc__, "resolution.json", images=5)
    parser.add_argument("--sizes", type=sizes, default="256,512,768,1024,1536", help="multiples of 16")
    parser.add_argument("--objects", type=suite.whole, default=20, help="of a picture; 0: all")
    args = parser.parse_args()
    sets = suite.sets_of(args)
    record = suite.record_of(args, sets, means, objects=args.objects, columns=SCORES)
    for size in args.sizes:
        sam, warm = suite.loaded(args.model, image_size=size), set()
        suite.each_picture(sets, record, lambda name, source, place, sam=sam, warm=warm: scores_of(
            sam(), suite.some(source[place], args.objects), warm), part_of(size), args.datasets)
    record.write()
    print(report(record.found))
    return suite.ended(record)


def sizes(text: str) -> list[int]:
    """For argparse."""
    found = [int(each) if each.isascii() and each.isdigit() else 0 for each in text.split(",")]
    if any(size <= 0 or size % 16 for size in found):
        raise argparse.ArgumentTypeError(f"{text}: give multiples of 16 with commas between them, such as 512,1024")
    return found


def part_of(size: int) -> str:
    """What the names of the pictures of a size begin with."""
    return f"{size} px, "


def scores_of(sam, record, warm: set) -> dict:
    """A list of SCORES for each object, seconds to encode, and seconds for the prompts of an object."""
    from samjax.evaluate import score

    if not record.objects:
        return {"objects": []}
    image = record.image
    if not warm:  # compiles
        score(sam, [record], embeddings={record.name: sam.encode(image)})
        warm.add(True)
    start = time.perf_counter()
    embedding = sam.encode(image)
    embedding.features.block_until_ready()
    encoded = time.perf_counter()
    rows = score(sam, [record], embeddings={record.name: embedding}).rows
    return {"objects": [[suite.number(row.scores[name]) for name in SCORES] for row in rows],
            "seconds_encode": round(encoded - start, 3),
            "seconds_object": round((time.perf_counter() - encoded) / len(rows), 4)}


def means(record: dict) -> dict:
    """By size the means of the sets' means over objects, medians of seconds, and the sets' own means."""
    found = {}
    for name, one in record["sets"].items():
        for picture, each in one["pictures"].items():
            if each.get("objects"):
                found.setdefault(int(picture.split(" px, ")[0]), {}).setdefault(name, []).append(each)
    table = {}
    for size, sets in sorted(found.items()):
        own = {name: {"pictures": len(pictures), "of": record["sets"][name].get("of"),
                      **{score: suite.number(suite.mean(values)) for score, values in
                         zip(SCORES, zip(*(row for each in pictures for row in each["objects"])))}}
               for name, pictures in sets.items()}
        everything = [each for pictures in sets.values() for each in pictures]
        table[str(size)] = {
            **{score: suite.number(suite.mean(one[score] for one in own.values())) for score in SCORES},
            "pictures": len(everything), "objects": sum(len(each["objects"]) for each in everything),
            **{key: round(statistics.median(each[key] for each in everything), 4)
               for key in ("seconds_encode", "seconds_object")}, "sets": own}
    return {"means": table}


def report(found: dict) -> str:
    return suite.table([[f"{size} px", one["pictures"], one["objects"], *(suite.percent(one[name]) for name in SCORES),
                         f"{one['seconds_encode']:.2f}", f"{one['seconds_object']:.3f}"]
                        for size, one in found["means"].items()],
                       ["input", "pictures", "objects", "1 point", "oracle", "box", "s to encode", "s an object"])


if __name__ == "__main__":
    suite.run(main)
