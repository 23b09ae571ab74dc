"""Scores by domain and prompt: one click, a box, or the best of the masks of everything.

    python experiments/domains.py DATASETS [--sets ...] [--images 10] [--preset fast|paper|dense] [--model mobile_sam]

As in the study "Segment Anything Is Not Always Perfect" (Ji et al., 2023): natural pictures, agriculture,
manufacturing, remote sensing and healthcare, of which each set is one (`suite.DOMAINS`). DATASETS holds a folder for
each set, with a meta.json. Scores are IoU by the object: of the most confident of three masks after a click into the
middle and of the best, of the box's single mask, and of that automatic mask that fits best. A domain's score is the
mean of its sets'. Of sets of concealed objects also MAE, S-, E- and weighted F-measure of each picture: the union of
the masks of its objects against that of the truths; the masks are binary, so that E is that of the mask itself.

The record, experiments/results/domains.json, grows with each picture, and a stopped run goes on where it was. About
45 s a picture on two idle cores, nearly all of it for everything (32 x 32 points; --preset fast: a quarter); 10
pictures of each of 16 sets: 90 minutes, or 30 with --preset fast.

Result (MobileSAM, --preset fast --images 5, 71 pictures), one click / box / everything: natural 70 / 87 / 70,
remote sensing 61 / 80 / 54, agriculture 43 / 73 / 23, healthcare 24 / 65 / 23, manufacturing
19 / 43 / 22.
"""

import time

import numpy as np
import suite
from records import failed, share

PROMPTS = ("point", "point_oracle", "box", "everything")
CONCEALED = ("camo_sample", "cleargrasp", "kvasir_polyp", "busi", "kolektorsdd", "magnetic_tile")
MEASURES = ("mae", "s", "e", "wf")


def main() -> int:
    parser = suite.arguments(__doc__, "domains.json", images=10)
    parser.add_argument("--preset", choices=("fast", "paper", "dense"), help="of everything")
    parser.add_argument("--concealed", nargs="*", default=CONCEALED, help="sets that get the measures of such objects")
    args = parser.parse_args()
    sets = suite.sets_of(args)
    record = suite.record_of(args, sets, summed_up, preset=args.preset, concealed=sorted(args.concealed),
                             columns=PROMPTS)
    sam = suite.loaded(args.model)
    suite.each_picture(sets, record, lambda name, source, place: scores_of(
        sam(), source[place], args.preset, name in args.concealed), folder=args.datasets)
    record.write()
    print(report(record.found))
    return suite.ended(record)


def scores_of(sam, record, preset: str | None, concealed: bool) -> dict:
    """A picture's scores: a list of PROMPTS for each object, seconds, and measures by prompt."""
    from samjax.evaluate import Crop, score
    from samjax.evaluate.everything import rows

    if not record.objects:
        return {"objects": []}
    image, masks = record.image, [mask.mask() for mask in record.objects]
    embedding = sam.encode(image)
    asked = score(sam, [record], embeddings={record.name: embedding}).rows
    start = time.perf_counter()
    found = sam.everything(image, preset, output_mode="uncompressed_rle")
    seconds = time.perf_counter() - start
    best = rows(record.name, [Crop(mask) for mask in masks], found)
    scores = [one.scores | other.scores for one, other in zip(asked, best, strict=True)]
    made = {"objects": [[suite.number(each[name]) for name in PROMPTS] for each in scores], "masks": len(found),
            "seconds_everything": round(seconds, 2)}
    if concealed:
        made["measures"] = measures_of(sam, embedding, masks, [row.clicks[0][:2] for row in asked], found)
    return made


def measures_of(sam, embedding, truths: list[np.ndarray], clicks, everything: list[dict]) -> dict:
    """Measures by prompt of all objects together."""
    from samjax import rle
    from samjax.evaluate import Crop, match, measures

    truth = np.any(truths, axis=0)
    crops = [Crop(mask) for mask in truths]
    three = sam.segment(embedding, points=[[click] for click in clicks], labels=[[1]] * len(clicks))
    single = sam.segment(embedding, boxes=[crop.box for crop in crops], multimask=False)
    chosen = {place for _, place in match(crops, everything) if place >= 0}
    answers = {"point": three.masks[np.arange(len(clicks)), three.best].any(axis=0),
               "box": single.masks[:, 0].any(axis=0),
               "everything": np.any([np.zeros_like(truth), *(rle.to_mask(everything[place]["segmentation"])
                                                             for place in chosen)], axis=0)}
    return {name: {key: suite.number(value, 5) for key, value in measures(answer, truth).items()}
            for name, answer in answers.items()}


def summed_up(found: dict) -> dict:
    """Means of each set and domain."""
    by_set, by_domain = {}, {}
    for name, one in found["sets"].items():
        pictures = [each for each in one["pictures"].values() if not failed(each)]
        scores = [scores for each in pictures for scores in each["objects"]]
        if not scores:
            continue
        means = {prompt: suite.number(suite.mean(column)) for prompt, column in zip(PROMPTS, zip(*scores))}
        by_set[name] = {"domain": one["domain"], **share(one), "objects": len(scores), **means}
        with_measures = [each["measures"] for each in pictures if "measures" in each]
        if with_measures:
            by_set[name]["measures"] = {prompt: {key: suite.number(suite.mean(each[prompt][key] for each in
                                                                              with_measures), 5)
                                                 for key in with_measures[0][prompt]} for prompt in with_measures[0]}
    for one in by_set.values():
        by_domain.setdefault(one["domain"], []).append(one)
    return {"means": by_set, "domains": {name: {
        "sets": len(own), "objects": sum(one["objects"] for one in own),
        **{prompt: suite.number(suite.mean(one[prompt] for one in own)) for prompt in PROMPTS}}
        for name, own in by_domain.items()}}


def report(found: dict) -> str:
    columns = lambda one: [suite.percent(one[prompt]) for prompt in PROMPTS]
    parts = [suite.table([[name, one["sets"], one["objects"], *columns(one)] for name, one in found["domains"].items()],
                         ["domain", "sets", "objects", "1 point", "oracle", "box", "everything"]),
             suite.table([[name, suite.part_of(one), one["objects"], *columns(one)]
                          for name, one in found["means"].items()],
                         ["set", "pictures", "objects", "1 point", "oracle", "box", "everything"])]
    concealed = [[f"{name}, {prompt}", *(suite.percent(one["measures"][prompt][key]) for key in MEASURES)]
                 for name, one in found["means"].items() for prompt in one.get("measures", {})]
    return "\n\n".join(parts + ([suite.table(concealed, ["concealed, in %", "MAE", "S", "E", "wF"])]
                                if concealed else []))


if __name__ == "__main__":
    suite.run(main)
