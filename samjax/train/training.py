"""A training by a recipe as a job in a folder, by one process or by many together.

    out/job.json      what this run is; another one is refused
    out/checkpoints/, metrics.jsonl, tensorboard/, curves.png
    out/model         the best model so far on the data to validate on; where there are none, the last one
    out/report.json   how it ended

A run that ended in any way goes on when it is started again.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from convert.model import nest
from samjax import checkpoint
from samjax.config import to_dict as config_dict
from samjax.data import make_pipeline
from samjax.data.sources import Source
from samjax.errors import InputError
from samjax.evaluate.pictures import NoObjects
from samjax.model.fold import fold_batch_norm
from samjax.predict import Sam
from samjax.train import start
from samjax.train.folder import claim
from samjax.train.loop import Outcome, Plan, train
from samjax.train.material import Listening, Thinned, names_hash, names_of, write_json
from samjax.train.recipe import to_dict
from samjax.train.scores import NAMES
from samjax.train.step import training_config
from samjax.train.together import attempted, dealt, gathered
from samjax.train.training_options import TrainingOptions, recipe_of

TO = {"train": "train on", "val": "validate on"}
OWN = ("job.json", "report.json", "metrics.jsonl", "curves.png", "checkpoints", "tensorboard", "model")


def run(options: TrainingOptions, sources: dict[str, list[Source]], *, restart: bool = False,
        say: Callable[[str], None] = print, shown: bool = False) -> dict:
    """Does what is left of the job in options.out; returns what report.json then holds.

    Args:
        sources: of `material.open_for_training`. restart: replaces another run's files.
        say: gets lines for people, of the first process. shown: a progress line on a terminal.

    The result has "stopped", the name of a signal, if that ended it; there is no report.json then; and "again" if all
    had been done before. Raises InputError, before anything is written or removed if the options are wrong, and
    `loop.Diverged`.
    """
    training = attempted(lambda: _Training(options, sources, say if leads() else _silent, shown))
    found = attempted(lambda: training.claim(restart) if leads() else None)
    if gathered(np.int32(found is not None))[0]:
        return (found or {}) | {"again": True}
    return training.run()


def leads() -> bool:
    """Whether this process speaks and writes for all."""
    return jax.process_index() == 0


class _Training:
    def __init__(self, options: TrainingOptions, sources, say, shown: bool):
        self.options, self.sources, self.say, self.shown = options, sources, say, shown
        self.out = Path(options.out)
        described = start.describe(options)
        self.recipe = recipe_of(options, described.config.name)
        self.begun = start.deepened(described, self.recipe)
        self.config, self.running = self.begun.config, start.trained_config(options, self.begun.config)
        scored = sources["val"] if options.evaluate_every else []
        self.val, self.named = [Thinned(source, options.val_objects) for source in scored if len(source)], set()
        self.sharding = options.sharding or ("one" if jax.device_count() == 1 else "data")
        self.devices = 1 if self.sharding == "one" else jax.device_count()
        self._check()

    def _check(self) -> None:
        """Raises InputError for what cannot be trained on these devices."""
        options, recipe, devices = self.options, self.recipe, self.devices
        for part, sources in self.sources.items():
            for source in sources:
                if not len(source):
                    raise InputError(f"{source.name}: no pictures with masks to {TO[part]}")
        if recipe.train.startswith("lora"):
            raise InputError("low-rank factors are for fine-tuning: samjax finetune --train lora")
        if self.sharding == "one" and jax.process_count() > 1:
            raise InputError("several processes need --sharding pmap, data or fsdp")
        if recipe.batch % devices:
            raise InputError(f"a batch of {recipe.batch} cannot be shared by {devices} devices: give a multiple of "
                             "them as --batch, or --sharding one")
        if recipe.batch // devices % recipe.accumulate:
            raise InputError(f"a device's share of a batch, {recipe.batch // devices}, cannot be taken in "
                             f"{recipe.accumulate} parts: give a divisor as --accumulate")
        if options.fsdp and devices % options.fsdp:
            raise InputError(f"--fsdp {options.fsdp}: {devices} devices cannot form groups of so many: give a divisor")
        for path in self.begun.sources:
            if path.resolve().is_relative_to(self.out.resolve()):
                raise InputError(f"{path} lies in --out {self.out}, which the run would write to: choose another --out")

    def claim(self, restart: bool) -> dict | None:
        """Makes options.out this run's; its report if it is done already. Raises InputError."""
        from samjax.job import fingerprint

        recipe = {name: value for name, value in to_dict(self.recipe).items() if name != "accumulate"}
        asked = self.options.identity() | recipe | _flat(config_dict(self.config))
        job = {"samjax": 1, "options": asked, "init": [fingerprint(path) for path in self.begun.sources],
               "pictures": names_hash(names_of([*self.sources["train"], *self.sources["val"]]))}
        return claim(self.out, job, {}, OWN, restart, "training")

    def run(self) -> dict:
        options = self.options
        plan = Plan(save_every=options.save_every, evaluate_every=options.evaluate_every, keep=options.keep,
                    sharding=self.sharding, fsdp=options.fsdp)
        judged = {"evaluate": self._evaluate, "improved": self._keep} if self.val else {}
        self.say(self._summary())
        params, batches = attempted(lambda: (start.begin(self.begun, options.seed),
                                             self._pipeline(self.sources["train"])))
        self.begun = self.begun._replace(given={})  # which would lie about for days
        outcome = train(self.running, self.recipe, params, batches, self.out, plan, seed=options.seed,
                        names=self._names, report=self.say, shown=self.shown, **judged)
        if outcome.reason.startswith("SIG"):
            return {"stopped": outcome.reason, "step": outcome.step}
        return attempted(lambda: self._report(outcome))

    def _report(self, outcome: Outcome) -> dict:
        """Written by the first process, for which the others wait."""
        report = {"options": self.options.identity(), "recipe": to_dict(self.recipe), "steps": outcome.step,
                  "seconds": round(outcome.seconds, 1), "devices": self.devices,
                  "best_step": outcome.best_step, "scores": {str(step): one for step, one in outcome.scores.items()}}
        if leads():
            if not self.val:
                self._keep(outcome.params, outcome.step, {})
            write_json(self.out / "report.json", report)
            with contextlib.suppress(Exception):  # the picture is not worth a failure
                from samjax.train.curves import draw

                draw(self.out)
        return report

    def _summary(self) -> str:
        """What will be done, in a line."""
        devices, recipe = self.devices, self.recipe
        pictures = sum(map(len, self.sources["train"]))
        several = "" if self.sharding == "one" else f" over {devices} devices ({self.sharding})"
        return (f"{self.config.name}, {self.running.dtype}: {recipe.steps:,} steps of {recipe.batch} of {pictures:,} "
                f"pictures{several}, {recipe.rounds} rounds of at most {recipe.objects} masks each")

    def _pipeline(self, sources: Sequence[Source]):
        options, processes = self.options, jax.process_count()
        weights = None if options.balance == 1 else [len(source) ** options.balance for source in sources]
        asked = self.recipe.pipeline()
        return make_pipeline(sources, training_config(self.running, self.recipe), seed=options.seed, weights=weights,
                             workers=options.workers, process_index=jax.process_index(), process_count=processes,
                             **asked | {"batch": asked["batch"] // processes})

    def _names(self, k: int) -> list[str]:
        """The pictures of batch k, of this process: it is made once more, and what is read is listened to."""
        heard: list[str] = []
        self._pipeline([Listening(source, heard) for source in self.sources["train"]]).batches[k]
        return heard

    def _evaluate(self, params: dict, step: int) -> dict:
        """Mean IoU in percent over the objects of all that is validated on, of which each process looks at its
        share."""
        *sums, count = gathered(attempted(lambda: self._sums(params))).sum(0).tolist()
        if not count:
            raise InputError("there is no object to validate on: give other data as --val, or --evaluate-every 0")
        found = {name: 100.0 * total / count for name, total in zip(NAMES, sums)}
        return {"score": (found["point"] + found["box"]) / 2} | found

    def _sums(self, params: dict) -> np.ndarray:
        """Of each score over this process's objects, and how many these are; bad pictures are named, once."""
        from samjax.evaluate import score

        sam, sums = self._model(params), np.zeros(len(NAMES) + 1)
        for source in self.val:
            mine = source.select(dealt(len(source)))
            try:
                report = score(sam, mine)
                rows, failures = report.rows, report.failures
            except NoObjects as error:
                rows, failures = [], error.failures
            self._name(source, failures)
            sums += [*(sum(row.scores[name] for row in rows) for name in NAMES), len(rows)]
        return sums

    def _name(self, source: Source, failures: Sequence[tuple[str, str]]) -> None:
        for name, reason in failures:
            if (source.name, name) not in self.named:
                self.named.add((source.name, name))
                print(f"samjax: {source.name}: {name}: {reason}; passed over", file=sys.stderr, flush=True)

    def _model(self, params: dict) -> Sam:
        """For inference, on this process's devices."""
        config, params = fold_batch_norm(start.scanned(self.config), params)
        return Sam(replace(config, dtype=self.options.dtype), jax.device_put(params))

    def _keep(self, params: dict, step: int, scores: dict) -> None:
        if leads():
            tensors = nest(start.stored(self.config, params))
            checkpoint.save_model(self.out / "model", self.config, tensors, self.begun.extras)


def _flat(config: dict) -> dict:
    """Its parts by name, so that a change can be named: "model encoder window"."""
    flat = {}
    for name, value in config.items():
        flat |= {f"model {name} {part}": one for part, one in value.items()} if isinstance(value, dict) else {
            f"model {name}": value}
    return flat


def _silent(text: str) -> None:
    pass
