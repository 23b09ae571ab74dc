"""Fine-tuning as a job in a folder: data checked, embeddings kept, the best model by its score on the val split.

    out/job.json        what this run is; another one is refused
    out/pictures.json   of how many pictures of each source embeddings were made
    out/embeddings/     of all pictures, where the encoder is frozen and nothing is augmented (or options.embeddings)
    out/checkpoints/, metrics.jsonl, tensorboard/, curves.png
    out/start.json      scores before the first step, on the objects that evaluations look at
    out/model           the best model so far: `samjax segment --model out`; at the end brought nearer to the start
    out/blend.json      how far
    out/report.json     untuned and tuned scores

Whatever is there is not made again, so a run that ended in any way goes on when it is started again.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

import convert
from convert.model import nest
from samjax import checkpoint
from samjax.config import TinyViT
from samjax.data import Augment, make_pipeline, with_features
from samjax.data.sources import Source
from samjax.predict import Sam, load
from samjax.train import lora
from samjax.train.anneal import Anneal
from samjax.train.blend import SHARES, blend, choose
from samjax.train.folder import claim as claim_folder
from samjax.train.loop import Outcome, Plan, train
from samjax.train.material import Features, Listening, Thinned, embed, names_hash, names_of, spread, write_json
from samjax.train.options import Options, make_recipe
from samjax.train.recipe import Recipe
from samjax.train.scores import KINDS, mean_scores, table, weighed
from samjax.train.start import read_trainable
from samjax.train.step import training_config

FINER = 2  # than the logits is the grid of the losses: on theirs, masks lose what is thin
OWN = ("job.json", "pictures.json", "report.json", "baseline.json", "start.json", "blend.json", "metrics.jsonl",
       "curves.png", "embeddings", "checkpoints", "tensorboard", "model")
USUAL = {field.name: field.default for field in dataclasses.fields(Options)}
DECODER = ("prompt_encoder", "mask_decoder")
FEWEST = 16  # pictures of a source that embeddings are made of, however short the time
STRETCH = 6.0  # a run bounded by minutes trains at least so many times as long as it evaluates
AUGMENT = {"flip": Augment(flip=0.5), "jitter": Augment(flip=0.5, scale=(0.5, 2.0)),
           "strong": Augment(flip=0.5, scale=(0.5, 2.0), upside=0.5, light=0.3)}


def finetune(options: Options, path: Path, sources: dict[str, list[Source]], say: Callable[[str], None] = print,
             shown: bool = False, progress: Callable | None = None, begun: float | None = None) -> dict:
    """Does what is left of the job in options.out; returns what report.json then holds.

    Args:
        path: of the model to start from. sources: of `material.open_all`, without what cannot be used.
        say: gets lines for people. shown: a progress line on a terminal. progress(what): a context whose value is
            called with (done, all), for what takes long beside training. begun: when time began to count, by
            `time.perf_counter` (now).

    The result has "stopped", the name of a signal, if that ended it; there is no report.json then. Raises InputError
    and `loop.Diverged`.
    """
    begun = time.perf_counter() if begun is None else begun
    return _Job(options, path, sources, say, shown, progress or _quietly, begun).run()


def claim(options: Options, path: Path, names: Sequence[str], restart: bool) -> dict | None:
    """Makes options.out this job's; returns its report if it is done already.

    Raises InputError if another job's files are there, unless `restart`, which removes them (embeddings are kept), and
    if the model to start from cannot be trained.
    """
    read_trainable(path)
    job = {"samjax": 1, "options": options.identity(), "init": _fingerprint(path), "pictures": names_hash(names)}
    return claim_folder(Path(options.out), job, USUAL, OWN, restart, "fine-tuning", kept=("embeddings",))


class _Job:
    def __init__(self, options: Options, path: Path, sources, say, shown: bool, progress, begun: float):
        self.options, self.out, self.path, self.say = options, Path(options.out), path, say
        self.shown, self.progress, self.sources, self.begun = shown, progress, sources, begun

    def run(self) -> dict:
        devices = 1 if self.options.sharding == "one" else jax.device_count()
        recipe = make_recipe(self.options, sum(map(len, self.sources["train"])), devices)
        self.stored = read_trainable(self.path)
        self.untuned = load(self.path)
        self._leave_out(recipe)
        if self.options.frozen_encoder:
            self._make_embeddings(("val", "kept"), 0.3)
        if self.options.cached:
            self._make_embeddings(("train", "mix"), 0.6)
        baseline = self._baseline()
        plan = self._plan(recipe, baseline)
        config, params = self._start(recipe)
        outcome = train(config, recipe, params, self._pipeline(recipe, config, self.sources), self.out, plan,
                        seed=self.options.seed, evaluate=self._evaluate, improved=self._keep,
                        names=lambda k: self._names(k, recipe, config), report=self.say, shown=self.shown)
        with contextlib.suppress(OSError):
            from samjax.train.curves import draw

            draw(self.out)
        if outcome.reason.startswith("SIG"):
            return {"stopped": outcome.reason, "step": outcome.step}
        return self._report(outcome, baseline, recipe)

    def _leave_out(self, recipe: Recipe) -> None:
        """Pictures that the run would not come to, so that no embeddings are made in vain."""
        scored = max(self.options.val_objects, self.options.score_objects)
        for part in ("val", "kept"):
            self.sources[part] = [spread(source, scored) for source in self.sources[part]]
        if not self.options.cached or self.options.minutes:
            return
        visits, pictures = recipe.steps * recipe.batch, sum(map(len, self.sources["train"]))
        if visits < pictures:
            self.say(f"{visits} steps' worth of the {pictures} pictures are used, each once (--steps, --epochs)")
            self.sources["train"] = [spread(source, max(visits * len(source) // pictures, 1))
                                     for source in self.sources["train"]]
        share = self.options.mix_share * visits
        self.sources["mix"] = [spread(source, max(round(share / len(self.sources["mix"])), 1))
                               for source in self.sources["mix"]]

    def _make_embeddings(self, parts: Sequence[str], share: float) -> None:
        """Puts cached embeddings into the sources. Of a run bounded by minutes so much of its time may pass; pictures
        that have no embedding by then are left out, now and when the run is taken up again."""
        jobs = [(part, i) for part in parts for i in range(len(self.sources[part]))]
        start = time.perf_counter()
        for done, (part, i) in enumerate(jobs, 1):
            until = math.inf
            if self.options.minutes:
                left = max(60 * share * self.options.minutes - (start - self.begun), 0.0)
                until = start + left * done / len(jobs)
            self.sources[part][i] = self._with_features(self.sources[part][i], part, until)

    def _with_features(self, source: Source, part: str, until: float) -> Source:
        order = np.random.default_rng(self.options.seed).permutation(len(source)).tolist()
        note, path = f"{part}: {source.name}", self.out / "pictures.json"
        counts = json.loads(path.read_text()) if path.exists() else {}
        taken = []

        def places():
            for index in order[:counts.get(note, len(order))]:
                if note not in counts and len(taken) >= FEWEST and time.perf_counter() > until:
                    self.say(f"{source.name}: embeddings of {len(taken)} of {len(order)} pictures of {part} could be "
                             "made in the time; the others are left out (--minutes)")
                    return
                taken.append(index)
                yield index

        with self.progress(f"embeddings of {source.name}") as progress:
            folder = self.options.embeddings or self.out / "embeddings"
            features = embed(self.untuned, source, folder, _fingerprint(self.path), progress, places())
        write_json(path, counts | {note: len(taken)})
        return with_features(source.select(sorted(taken), source.name), features)

    def _start(self, recipe: Recipe):
        """(config, params) to train: of the decoder alone where embeddings are cached, folded where the encoder is
        frozen, else as files hold them."""
        if self.options.cached:
            return self.untuned.config, {name: self.untuned.params[name] for name in DECODER}
        if self.options.frozen_encoder:
            return self.untuned.config, dict(self.untuned.params)
        return self.stored.config, self.stored.params()

    def _pipeline(self, recipe: Recipe, config, sources):
        options = self.options
        groups = [*sources["train"], *sources["mix"]]
        weights = [len(source) ** options.balance for source in sources["train"]]
        if sources["mix"]:
            weights = [(1 - options.mix_share) * weight / sum(weights) for weight in weights]
            weights += [options.mix_share / len(sources["mix"])] * len(sources["mix"])
        elif options.balance == 1:
            weights = None  # the same, in order: each picture once before any comes again
        side = options.mask_size or FINER * config.mask_size[0]
        return make_pipeline(groups, training_config(config, recipe), batch=recipe.batch, objects=recipe.objects,
                             mask_size=side, seed=options.seed, weights=weights,
                             augment=AUGMENT.get(options.augment), workers=options.workers, report=self.say)

    def _names(self, k: int, recipe: Recipe, config) -> list[str]:
        """The pictures of batch k: the batch is made once more, and what is read is listened to."""
        heard: list[str] = []
        sources = {part: [Listening(source, heard) for source in found] for part, found in self.sources.items()}
        if self.options.cached:
            sources = {part: [with_features(listening, source.reader) for listening, source in zip(
                found, self.sources[part])] for part, found in sources.items()}
        self._pipeline(recipe, config, sources).batches[k]
        return heard

    def _plan(self, recipe: Recipe, baseline: dict) -> Plan:
        options = self.options
        every = options.evaluate_every or max(recipe.steps // 12, 10)
        minutes = 0.0
        if options.minutes:  # the tuned model is scored as long as the untuned one was
            every = options.evaluate_every or 10
            tried = 0 if options.blend else len(SHARES)
            scored = {name: scores["objects"] for name, scores in baseline["scores"].items()}
            looked_at = sum(min(scored[source.name], options.val_objects) for source in self.sources["val"])
            looks = 2 + tried * looked_at / max(sum(scored.values()), 1)
            minutes = max(options.minutes - (baseline["prepared"] + looks * baseline["took"]) / 60,
                          0.3 * options.minutes)
        return Plan(save_every=every, evaluate_every=every, keep=2, patience=options.patience, minutes=minutes,
                    sharding=options.sharding, rarely=STRETCH if options.minutes else 0.0,
                    anneal=Anneal(recipe.warmup, options.average, options.keep))

    def _tuned(self, params: dict) -> Sam:
        """The model that results, ready for inference."""
        if self.options.frozen_encoder:
            return replace(self.untuned, params=self.untuned.params | {name: params[name] for name in DECODER})
        config, params = self.stored.config, lora.merge(params)
        if isinstance(config.encoder, TinyViT):
            from samjax.model.fold import fold_batch_norm

            config, params = fold_batch_norm(config, params)
        return Sam(config, jax.device_put(params))

    def _evaluate(self, params: dict, step: int) -> dict:
        pictures = None if self.options.frozen_encoder else 24
        sources = [Thinned(source, self.options.val_objects, pictures) for source in self.sources["val"]]
        scores, path = mean_scores(self._tuned(params), sources), self.out / "start.json"
        try:
            start = scores if step == 0 else json.loads(path.read_text())
        except (OSError, ValueError):
            start = mean_scores(self.untuned, sources)
        write_json(path, start)
        return weighed(scores, start, KINDS[self.options.prompts])

    def _keep(self, params: dict, step: int, scores: dict) -> None:
        """Writes the best model so far, in the form that files have."""
        if self.options.frozen_encoder:
            tuned = convert.flatten({name: params[name] for name in DECODER})
        else:
            tuned = convert.flatten(lora.merge(params))
        checkpoint.save_model(self.out / "model", self.stored.config, nest({**self.stored.tensors, **tuned}),
                              self.stored.extras)

    def _baseline(self) -> dict:
        """The untuned scores; made once."""
        path = self.out / "baseline.json"
        with contextlib.suppress(OSError, ValueError):
            return json.loads(path.read_text())
        prepared = time.perf_counter()
        scores = self._all_scores(self.untuned, "untuned scores")
        now = time.perf_counter()
        found = {"scores": scores, "prepared": prepared - self.begun, "took": now - prepared}
        write_json(path, found)
        return found

    def _all_scores(self, sam: Sam, what: str) -> dict[str, dict]:
        """Scores by data set: of the val splits, and of those of what is mixed in."""
        found = {}
        for source in [*self.sources["val"], *self.sources["kept"]]:
            with self.progress(f"{what}, {source.name}") as progress:
                thin = Thinned(source, self.options.score_objects)
                found[source.name] = mean_scores(sam, [thin], progress) | {"pictures": len(thin)}
        return found

    def _blend(self, outcome: Outcome) -> float:
        """Mixes the best model with the one to start from; returns its share. Once, whenever the run was killed."""
        path, folder, step = self.out / "blend.json", self.out / "model", outcome.best_step
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(path.read_text())
            if found["step"] == step and found["of"] != _fingerprint(folder):
                return found["share"]  # the model has been replaced by its mixture already
        before = {name: tensor.load() for name, tensor in self.stored.tensors.items()}
        after = {name: tensor.load() for name, tensor in convert.read(folder).tensors.items()}
        mixed = lambda share: nest(blend(before, after, share))
        share = self.options.blend or choose(outcome.scores[step]["score"],
                                             lambda share: self._evaluate(mixed(share), step)["score"])
        write_json(path, {"step": step, "of": _fingerprint(folder), "share": share})
        if share < 1:
            checkpoint.save_model(folder, self.stored.config, mixed(share), self.stored.extras)
            self.say(f"{share:g} of the way from the model to start from to that of step {step} is kept (--blend)")
        return share

    def _report(self, outcome: Outcome, baseline: dict, recipe: Recipe) -> dict:
        begun, tuned, best, share = time.perf_counter(), baseline["scores"], outcome.best_step, 1.0
        if best:
            share = self._blend(outcome)
            tuned = self._all_scores(load(self.out / "model"), "tuned scores")
            kinds, names = KINDS[self.options.prompts], [source.name for source in self.sources["val"]]
            if sum(tuned[name][kind] - baseline["scores"][name][kind] for name in names for kind in kinds) <= 0:
                self.say(f"step {best} was best of the objects that evaluations look at (--val-objects), but is no "
                         "better than no training on more of them (--score-objects): the model to start from is kept")
                self._keep(self._start(recipe)[1], 0, {})
                tuned, best, share = baseline["scores"], 0, 1.0
        report = {"options": self.options.identity(), "untuned": baseline["scores"], "tuned": tuned,
                  "steps": outcome.step, "ended_by": outcome.reason, "best_step": best,
                  "blend": share, "pictures": sum(map(len, self.sources["train"])), "recipe": recipe_dict(recipe),
                  "training_seconds": round(outcome.seconds, 1),
                  "seconds": round(outcome.seconds + baseline["prepared"] + baseline["took"]
                                   + time.perf_counter() - begun, 1)}
        write_json(self.out / "report.json", report)
        return report


def recipe_dict(recipe: Recipe) -> dict:
    from samjax.train.recipe import to_dict

    return to_dict(recipe)


def _fingerprint(path: Path) -> str:
    from samjax.job import fingerprint

    return fingerprint(path)


@contextlib.contextmanager
def _quietly(what: str):
    yield None


__all__ = ["Features", "claim", "finetune", "names_of", "table"]
