"""A training by a recipe as a job in a folder, by one process or by many together.

    out/job.json      what this run is; another one is refused
    out/checkpoints/, metrics.jsonl, tensorboard/, curves.png
    out/model         the best model so far on the data to validate on; where there are none, the last one
    out/report.json   how it ended

A run that ended in any way goes on when it is started again.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import jax
import numpy as np

from convert.model import nest
from samjax import checkpoint
from samjax.config import SamConfig
from samjax.data import make_pipeline
from samjax.data.sources import Source
from samjax.errors import InputError
from samjax.model.fold import fold_batch_norm
from samjax.predict import Sam
from samjax.train import lora, start
from samjax.train.folder import claim
from samjax.train.loop import Plan, train
from samjax.train.material import Listening, Thinned, names_hash, names_of, write_json
from samjax.train.recipe import Recipe, to_dict
from samjax.train.scores import NAMES
from samjax.train.step import training_config
from samjax.train.together import dealt, gathered
from samjax.train.training_options import TrainingOptions

OWN = ("job.json", "report.json", "metrics.jsonl", "curves.png", "checkpoints", "tensorboard", "model")
USUAL = {field.name: field.default for field in fields(TrainingOptions)}
FRESH, DONE, REFUSED = 0, 1, 2


def run(options: TrainingOptions, recipe: Recipe, sources: dict[str, list[Source]], *, restart: bool = False,
        say: Callable[[str], None] = print, shown: bool = False) -> dict:
    """Does what is left of the job in options.out; returns what report.json then holds.

    Args:
        recipe: of `training_options.recipe_of`. sources: of `material.open_for_training`. restart: replaces another
            run's files.
        say: gets lines for people, of the first process. shown: a progress line on a terminal.

    The result has "stopped", the name of a signal, if that ended it; there is no report.json then; and "again" if all
    had been done before. Raises InputError and `loop.Diverged`.
    """
    say = say if leads() else _silent
    if (report := _claim(options, sources, restart)) is not None:
        return report | {"again": True}
    return _Training(options, recipe, sources, say, shown).run()


def leads() -> bool:
    """Whether this process speaks and writes for all."""
    return jax.process_index() == 0


def _claim(options: TrainingOptions, sources: dict[str, list[Source]], restart: bool) -> dict | None:
    """Makes options.out this run's; its report if it is done already. The first process does it for all."""
    error, answer, found = None, FRESH, None
    if leads():
        try:
            found = claim(Path(options.out), _job(options, sources), USUAL, OWN, restart, "training")
            answer = FRESH if found is None else DONE
        except InputError as problem:
            error, answer = problem, REFUSED
    answer = int(gathered(answer)[0])
    if answer == REFUSED:
        raise error or InputError(f"{options.out}: refused by process 0, which says why")
    return found or ({} if answer == DONE else None)


def _job(options: TrainingOptions, sources: dict[str, list[Source]]) -> dict:
    from samjax.job import fingerprint

    path = start.path_of(options)
    return {"samjax": 1, "options": options.identity(), "init": fingerprint(path) if path else None,
            "pictures": names_hash(names_of(sources["train"]))}


class _Training:
    def __init__(self, options: TrainingOptions, recipe: Recipe, sources, say, shown: bool):
        self.options, self.recipe, self.sources, self.say, self.shown = options, recipe, sources, say, shown
        self.out = Path(options.out)
        self.val = [Thinned(source, options.val_objects) for source in sources["val"] if len(source)]
        self.sharding = options.sharding or ("one" if jax.device_count() == 1 else "data")
        if self.sharding != "one" and recipe.batch % jax.device_count():
            raise InputError(f"a batch of {recipe.batch} cannot be shared by {jax.device_count()} devices: give a "
                             "multiple of them as --batch, or --sharding one")

    def run(self) -> dict:
        begun = start.begin(self.options, self.recipe)
        self.config, self.extras = begun.config, begun.extras
        config = start.trained_config(self.options, self.config)
        plan = Plan(save_every=self.options.save_every, evaluate_every=self.options.evaluate_every,
                    keep=self.options.keep, sharding=self.sharding, fsdp=self.options.fsdp)
        judged = {"evaluate": self._evaluate, "improved": self._keep} if self.val else {}
        self.say(self._summary(config))
        batches = self._pipeline(config, self.sources["train"])
        outcome = train(config, self.recipe, begun.params, batches, self.out, plan, seed=self.options.seed,
                        names=lambda k: self._names(k, config), report=self.say, shown=self.shown, **judged)
        if leads():
            with contextlib.suppress(OSError):
                from samjax.train.curves import draw

                draw(self.out)
        if outcome.reason.startswith("SIG"):
            return {"stopped": outcome.reason, "step": outcome.step}
        if not self.val:
            self._keep(outcome.params, outcome.step, {})
        report = {"options": self.options.identity(), "recipe": to_dict(self.recipe), "steps": outcome.step,
                  "seconds": round(outcome.seconds, 1), "devices": jax.device_count(),
                  "best_step": outcome.best_step, "scores": outcome.scores}
        if leads():
            write_json(self.out / "report.json", report)
        return report

    def _summary(self, config: SamConfig) -> str:
        """What will be done, in a line."""
        devices, recipe = jax.device_count(), self.recipe
        pictures = sum(map(len, self.sources["train"]))
        several = "" if devices == 1 else f" over {devices} devices ({self.sharding})"
        return (f"{config.name}, {config.dtype}: {recipe.steps:,} steps of {recipe.batch} of {pictures:,} pictures"
                f"{several}, {recipe.rounds} rounds of at most {recipe.objects} masks each")

    def _pipeline(self, config: SamConfig, sources: Sequence[Source]):
        options, processes = self.options, jax.process_count()
        weights = None if options.balance == 1 else [len(source) ** options.balance for source in sources]
        asked = self.recipe.pipeline()
        return make_pipeline(sources, training_config(config, self.recipe), seed=options.seed, weights=weights,
                             workers=options.workers, report=self.say, process_index=jax.process_index(),
                             process_count=processes, **asked | {"batch": asked["batch"] // processes})

    def _names(self, k: int, config: SamConfig) -> list[str]:
        """The pictures of batch k, of this process: it is made once more, and what is read is listened to."""
        heard: list[str] = []
        self._pipeline(config, [Listening(source, heard) for source in self.sources["train"]]).batches[k]
        return heard

    def _evaluate(self, params: dict, step: int) -> dict:
        """Mean IoU in percent over the objects of all that is validated on, of which each process looks at its
        share."""
        from samjax.evaluate import score

        sam, sums = self._model(params), np.zeros(len(NAMES) + 1)
        for source in self.val:
            mine = source.select(dealt(len(source)))
            rows = score(sam, mine).rows if any(mine.record(i).objects for i in range(len(mine))) else []
            sums += [*(sum(row.scores[name] for row in rows) for name in NAMES), len(rows)]
        *sums, count = gathered(sums).sum(0).tolist()
        found = {name: 100.0 * total / max(count, 1) for name, total in zip(NAMES, sums)}
        return {"score": (found["point"] + found["box"]) / 2} | found

    def _model(self, params: dict) -> Sam:
        """For inference, on this process's devices."""
        config, params = fold_batch_norm(start.scanned(self.config), lora.merge(params))
        return Sam(replace(config, dtype=self.options.dtype), jax.device_put(params))

    def _keep(self, params: dict, step: int, scores: dict) -> None:
        if leads():
            checkpoint.save_model(self.out / "model", self.config, nest(start.stored(self.config, params)), self.extras)


def _silent(text: str) -> None:
    pass
