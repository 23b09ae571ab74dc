"""A light encoder distilled from MobileSAM's on any pictures, without masks (see samjax/train/distill.py).

    python experiments/distill.py OUT PICTURES... [--held-out PICTURES...] [--masks 1] [--steps 4000] [--size 512]

PICTURES are folders, files or patterns; where nothing is held out, a fifth of them is, by a hash of their names. The
teacher's embeddings are made once, in OUT/embeddings. The student is a TinyViT with a quarter of the parameters that
MobileSAM's encoder has, from random weights; prompt encoder and decoder are the teacher's. Both see pictures of --size
pixels: 512 keeps the run short. With --masks the loss looks through the frozen decoder too, at random points.

On the pictures held out: mean squared error and cosine to the teacher's features; the error's share of their variance
(1: no better than a constant); and with random points the IoU of the student's most confident mask with the teacher's,
and of the best of its three, means over all points. Killed at any moment, the same command goes on. The best student
is in OUT/model: `samjax segment --model OUT`. `samjax convert OUT/model student.pth` works too, but a .pth of a TinyViT
does not tell the size: load it with image_size=512.

Hardware: 2 CPU cores. No result is recorded yet.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import ImageOps

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import samjax  # noqa: E402
from samjax import checkpoint  # noqa: E402
from samjax.config import SamConfig, TinyViT, to_dict  # noqa: E402
from samjax.data import Pictures, Source, make_pipeline, with_features  # noqa: E402
from samjax.data.sources import halves  # noqa: E402
from samjax.evaluate.made import commit, versions  # noqa: E402
from samjax.geometry import scale_points  # noqa: E402
from samjax.job import fingerprint  # noqa: E402
from samjax.model.fold import fold_batch_norm  # noqa: E402
from samjax.model.sam import Prompts, decode_masks  # noqa: E402
from samjax.predict import Sam  # noqa: E402
from samjax.train import recipe as recipes  # noqa: E402
from samjax.train.distill import DISTILL, Losses, begin, distilled_config, make_distill_step  # noqa: E402
from samjax.train.loop import Plan, train  # noqa: E402
from samjax.train.material import embed, spread, write_json  # noqa: E402
from samjax.weights import resolve  # noqa: E402

STUDENT = TinyViT((32, 64, 96, 128), (1, 1, 4, 1), (2, 2, 3, 4), (7, 8, 16, 8), fold_batch_norm=False)
FEATURES = 100.0  # weight of the features' error: their variance is near 0.01, the masks' losses are near 1
SAVE, POINTS, FOREGROUND, NOT_A_POINT = 100, 8, 1, -1


class Mirrored(Source):
    """The same pictures, left for right."""

    def __init__(self, source: Source):
        self.source, self.name = source, f"{source.name}, mirrored"

    def __len__(self) -> int:
        return len(self.source)

    def item_name(self, index: int) -> str:
        return f"mirrored/{self.source.item_name(index)}"

    def record(self, index: int):
        record = self.source.record(index)
        return replace(record, name=self.item_name(index), open=partial(_mirror, record.open))


def _mirror(open_, longest=None):
    return ImageOps.mirror(open_(longest))


class HeldOut:
    """What the teacher makes of pictures that no student is trained on."""

    def __init__(self, teacher: Sam, source: Source):
        self.config, self.params, self.source = teacher.config, teacher.params, source
        self.answer = jax.jit(partial(_answer, teacher.config))
        random = np.random.default_rng(0)
        self.features, self.points, self.inside, self.masks = [], [], [], []
        for record in source:
            features, (h, w) = record.features()
            hw = record.image.shape[:2]
            points = scale_points(random.integers(0, hw[::-1], (POINTS, 2)), hw, self.config)
            masks, iou = self.ask(features, points, (h, w))
            self.features.append(features)
            self.points.append(points)
            self.inside.append((h, w))
            self.masks.append(masks[np.arange(POINTS), iou.argmax(1)])
        self.variance = np.mean([np.var(x, axis=(0, 1)) for x in self.features]) + np.var(
            [x.mean((0, 1)) for x in self.features], axis=0).mean()

    def ask(self, features, points, size) -> tuple[np.ndarray, np.ndarray]:
        """Three masks (points, 3, h, w) of the picture at low resolution, and their predicted IoU."""
        masks, iou = jax.device_get(self.answer(self.params, features, points.astype(np.float32)))
        cell = self.config.image_size[0] // self.config.mask_size[0]
        return masks[:, :, : -(-size[0] // cell), : -(-size[1] // cell)], iou

    def scores(self, student: Sam) -> dict[str, float]:
        errors, cosines, chosen, best = [], [], [], []
        for i, record in enumerate(self.source):
            found, wanted = np.asarray(student.encode(record.image).features[0]), self.features[i]
            errors.append(np.square(found - wanted).mean())
            norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(wanted, axis=-1)
            cosines.append(((found * wanted).sum(-1) / norms).mean())
            masks, iou = self.ask(found, self.points[i], self.inside[i])
            truth = self.masks[i][:, None]
            shared = (masks & truth).sum((2, 3)) / np.maximum((masks | truth).sum((2, 3)), 1)
            shared = shared[truth.any((1, 2, 3))]
            iou = iou[truth.any((1, 2, 3))]
            chosen += list(shared[np.arange(len(shared)), iou.argmax(1)])
            best += list(shared.max(1))
        mse = np.mean(errors)
        scores = {"score": np.mean(chosen), "miou": np.mean(chosen), "miou_best_of_three": np.mean(best), "mse": mse,
                  "cosine": np.mean(cosines), "unexplained": mse / self.variance}
        return {name: round(float(value), 5) for name, value in scores.items()}


def _answer(config, params, features, points):
    slots = jnp.stack([points, jnp.zeros_like(points)], 1)
    labels = jnp.broadcast_to(jnp.array([FOREGROUND, NOT_A_POINT]), (POINTS, 2))
    masks = decode_masks(config, params, features[None], Prompts(slots[None], labels[None]), multimask=True)
    return masks.logits[0] > 0, masks.iou[0]


def as_used(config: SamConfig, params: dict) -> Sam:
    config, params = fold_batch_norm(config, params)
    return Sam(config, jax.device_put(params))


def size_of(params: dict) -> int:
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))


def speed(teacher: Sam, student: Sam, image, repeats: int = 7) -> dict:
    """Milliseconds of the encoder for one picture, the fastest of a few, taken in turn."""
    best = {}
    for _ in range(repeats):
        for name, sam in (("teacher", teacher), ("student", student)):
            begun = time.perf_counter()
            jax.block_until_ready(sam.encode(image).features)
            best[name] = min(best.get(name, np.inf), 1000 * (time.perf_counter() - begun))
    return {"teacher_ms": round(best["teacher"], 1), "student_ms": round(best["student"], 1),
            "ratio": round(best["teacher"] / best["student"], 2)}


def embedded(sam: Sam, source: Source, out: Path, mark: str) -> Source:
    """The source with the teacher's embeddings, those that are missing made."""
    begun = time.perf_counter()

    def said(done, count):
        if done % 50 == 0 or done == count:
            print(f"embeddings of {source.name}: {done} of {count}, {time.perf_counter() - begun:.0f} s", flush=True)

    return with_features(source, embed(sam, source, out / "embeddings", mark, said))


def open_all(args) -> tuple[list[Source], Source]:
    whole = Pictures(args.pictures)
    train, held = (whole, Pictures(args.held_out, "held out")) if args.held_out else halves(whole)
    train, held = spread(train, args.most), spread(held, args.held_most)
    return [train, Mirrored(train)] if args.mirror else [train], held


def claim(out: Path, settings: dict) -> None:
    """Makes the folder this run's, or stops."""
    path = out / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        sys.exit(f"{out} holds another distillation (see its settings.json): choose another folder")
    write_json(path, settings)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("out", type=Path)
    add("pictures", nargs="+")
    add("--held-out", nargs="+", help="pictures to score on (default: a fifth of the others, by a hash of their names)")
    add("--most", type=int, default=600, help="pictures to train on, at most (default: %(default)s)")
    add("--held-most", type=int, default=40, help="and to score on (default: %(default)s)")
    add("--mirror", action="store_true", help="embed and train on the mirrored pictures too")
    add("--teacher", default="mobile_sam")
    add("--size", type=int, default=512, help="of the pictures as both models see them (default: %(default)s)")
    add("--masks", type=float, default=0.0, help="weight of the masks' loss (default: %(default)s)")
    add("--objects", type=int, default=2, help="points in a picture for it (default: %(default)s)")
    add("--steps", type=int, default=1200)
    add("--batch", type=int, default=4)
    add("--lr", type=float, default=DISTILL.lr)
    add("--every", type=int, default=200, help="steps between scores (default: %(default)s)")
    add("--sharding", default="one", choices=("one", "pmap", "data", "fsdp"))
    add("--name", help="of the run in the result (default: features, or features and masks)")
    add("--result", type=Path, default=ROOT / "experiments" / "results" / "distill.json")
    return parser.parse_args()


def main():
    args = arguments()
    path = resolve(args.teacher)
    teacher, sha256 = samjax.load(path, image_size=args.size), fingerprint(path)
    recipe = replace(DISTILL, steps=args.steps, batch=args.batch, lr=args.lr, warmup=min(100, args.steps // 10),
                     objects=args.objects)
    losses = Losses(FEATURES, args.masks, args.masks)
    config = distilled_config(replace(teacher.config, name="distilled", encoder=STUDENT), teacher.config)
    sources, held = open_all(args)
    settings = {"sha256": sha256, "student": to_dict(config), "losses": asdict(losses),
                "recipe": recipes.to_dict(recipe), "pictures": sum(map(len, sources)), "held_out": len(held)}
    claim(args.out, json.loads(json.dumps(settings)))
    sources = [embedded(teacher, source, args.out, f"{sha256} {args.size}") for source in sources]
    held = HeldOut(teacher, embedded(teacher, held, args.out, f"{sha256} {args.size}"))
    batches = make_pipeline(sources, config, batch=recipe.batch, objects=0, images=True)
    plan = Plan(save_every=SAVE, evaluate_every=args.every, keep=1, sharding=args.sharding)
    outcome = train(config, recipe, begin(config, teacher.config, teacher.params, jax.random.key(0)), batches,
                    args.out, plan, step=make_distill_step(config, teacher.config, recipe, losses), shown=True,
                    evaluate=lambda params, step: held.scores(as_used(config, params)),
                    improved=lambda params, step, scores: checkpoint.save_model(args.out / "model", config, params, {}),
                    report=lambda message: print(message, flush=True))
    if outcome.reason != "done":
        sys.exit(f"stopped after step {outcome.step} ({outcome.reason}): the same command goes on")
    named = lambda paths: ["/".join(Path(path).parts[-2:]) for path in paths or ()]
    record = {"teacher": args.teacher, **settings, "from": named(args.pictures), "held_out_from": named(args.held_out),
              **results(teacher, samjax.load(args.out), held, outcome), "versions": versions(), "commit": commit()}
    runs = json.loads(args.result.read_text())["runs"] if args.result.exists() else {}
    name = args.name or ("features and masks" if args.masks else "features")
    write_json(args.result, {"runs": runs | {name: record}})
    for what in ("untrained", "trained", "saved", "encoder_parameters", "parameters", "speed", "training_seconds"):
        print(what, json.dumps(record[what]))


def results(teacher: Sam, student: Sam, held: HeldOut, outcome) -> dict:
    """What came of it; `saved` are the scores of the model in the folder, the best by its scores on the way."""
    encoders, wholes = ({"teacher": size_of(of(teacher)), "student": size_of(of(student))}
                        for of in (lambda sam: sam.params["image_encoder"], lambda sam: sam.params))
    encoders["ratio"] = round(encoders["teacher"] / encoders["student"], 2)
    return {"untrained": outcome.scores[0], "trained": outcome.scores[outcome.step], "best_step": outcome.best_step,
            "saved": held.scores(student), "scores": {str(step): one for step, one in sorted(outcome.scores.items())},
            "encoder_parameters": encoders, "parameters": wholes, "training_seconds": round(outcome.seconds, 1),
            "speed": speed(teacher, student, held.source[0].image)}


if __name__ == "__main__":
    main()
