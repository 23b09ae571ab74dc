"""The loop around a step: metrics, evaluation, checkpoints, an end that can be taken up again.

What a run is made of (its recipe, its data) is the caller's; what the loop changes is all in the checkpoint: the state,
the position of the data's iterator, the scores so far. So a run that was killed at any moment and started again does
the very steps that one without a break does; on one device bitwise.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from samjax.checkpoint import Checkpoints
from samjax.config import SamConfig
from samjax.errors import InputError
from samjax.train import anneal as annealing
from samjax.train.anneal import Anneal
from samjax.train.devices import spread
from samjax.train.metrics import Metrics, Progress
from samjax.train.optim import Rule, trained
from samjax.train.recipe import Recipe
from samjax.train.step import init_state, make_step
from samjax.train.together import FAILED, Alarm, attempted, elsewhere


@dataclass(frozen=True)
class Plan:
    """How a run is conducted. Steps are counted from 0; 0 for what is not wanted."""

    save_every: int = 500
    evaluate_every: int = 0  # also before the first step and after the last
    keep: int = 3  # checkpoints, besides the best
    patience: int = 0  # evaluations without a better score until it ends
    minutes: float = 0.0  # of wall time, all runs together; the length of the fall of the rate follows it
    rarely: float = 0.0  # evaluations that are due are passed over until training took so many times as long as one
    sharding: str = "one"  # or "pmap", "data", "fsdp": see `devices.spread`
    fsdp: int = 0  # devices that hold a state together; 0: all
    anneal: Anneal | None = None  # the recipe's schedule is then "constant"


@dataclass
class Outcome:
    """How a run ended. reason: "done", "patience", "time", or the name of the signal that stopped it.

    params: what is to be used, on the host. best: the best score, best_step where it was.
    """

    reason: str
    step: int
    params: dict
    best: float | None = None
    best_step: int | None = None
    scores: dict[int, dict] = field(default_factory=dict)
    seconds: float = 0.0
    resumed: int | None = None  # the step that it was taken up at


class Diverged(RuntimeError):
    """A loss or a gradient is not finite. The message names step and pictures."""


def train(config: SamConfig, recipe: Recipe, params: dict, batches: Iterable, out, plan: Plan = Plan(), *,
          seed: int = 0, trains: Rule | None = None, step: Callable | None = None,
          evaluate: Callable[[dict, int], dict] | None = None,
          improved: Callable[[dict, int, dict], None] | None = None, names: Callable[[int], list[str]] | None = None,
          report: Callable[[str], None] = lambda message: None, shown: bool = False) -> Outcome:
    """Trains for recipe.steps steps, from the newest checkpoint in `out` if there is one.

    Args:
        params: to start from. batches: an iterable of batches (see `step.make_step`). Where its iterator has
            get_state() -> JSON-able dict and set_state, a resumed run continues from there; else it passes over the
            batches that were used.
        out: a folder: checkpoints/, metrics.jsonl, tensorboard/.
        seed: of all that is random. trains: which parameters are trained, in place of recipe.train. step: in place of
            `step.make_step`'s, with the same states and metrics.
        evaluate(params, step) -> {"score": the higher the better, ...}; improved(params, step, scores) is called when
            it is the best so far. names(k) names the pictures of batch k, for messages.
        report: gets a line for each evaluation and for what is remarkable. shown: a progress line on a terminal.

    SIGTERM and SIGINT end it after the step at hand, saved; several processes end together, seconds later or after the
    evaluation at hand, whichever one it came to. What one of them fails at ends them all, from the last checkpoint on.
    Raises Diverged, with the last good state saved, and
    InputError: batches of a wrong form, a checkpoint of another run, a full disk.
    """
    run = _Run(config, recipe, plan, Path(out), trains or partial(trained, recipe), step)
    run.evaluate, run.improved, run.names, run.report = evaluate, improved, names, report
    first = jax.process_index() == 0
    with (_Signals() as signals, Checkpoints(run.out / "checkpoints", plan.keep, report) as saved,
          Metrics(run.out, first) as log, contextlib.ExitStack() as stack):
        iterator = iter(batches)
        if hasattr(iterator, "close"):
            stack.callback(iterator.close)
        run.open(params, seed, iterator, saved)
        attempted(lambda: log.rewind(run.k, run.scores))
        with Progress(run.k, run.total, shown and first) as progress:
            reason = _steps(run, iterator, signals, saved, log, progress)
        run.save(saved, iterator, wait=True)
        params = run.usable()
    return Outcome(reason, run.k, params, run.best, run.best_step, run.scores, run.seconds, run.resumed)


def _steps(run: "_Run", iterator, signals: "_Signals", saved: Checkpoints, log: Metrics, progress: Progress) -> str:
    """The loop itself; why it ended."""
    waiting, alarm, batch = None, Alarm(), None
    while True:
        ended = run.ended()
        judges = run.due() or (ended and run.evaluate and run.k not in run.scores)
        saves = run.k != run.saved_at and run.k % run.plan.save_every == 0
        number = FAILED + jax.process_index() if run.error else signals.number
        heard = alarm(run.k, number, run.pace, bool(judges or saves or ended))
        if heard >= FAILED:
            raise run.error or elsewhere(heard - FAILED)
        if judges:
            waiting = run.look_at(waiting, log, progress, iterator, saved)
            with progress.pause():
                if not run.judge(signals, log):
                    return signal.Signals(signals.number).name
            run.save(saved, iterator)
            ended = run.ended()
        elif saves:
            waiting = run.look_at(waiting, log, progress, iterator, saved)
            run.save(saved, iterator)
        stopped = heard if jax.process_count() > 1 else signals.number
        if stopped or ended:
            run.look_at(waiting, log, progress, iterator, saved)
            return signal.Signals(stopped).name if stopped else ended
        try:
            coming = partial(_next, run, iterator)
            batch = attempted(coming) if batch is None else coming()
        except Exception as problem:
            if signals.number and jax.process_count() == 1:  # it ended the data's workers too
                run.look_at(waiting, log, progress, iterator, saved)
                return signal.Signals(signals.number).name
            if jax.process_count() == 1 or batch is None:
                raise
            # The others are at this step already: this process takes part with nothing until it can tell them.
            run.error, batch = run.error or problem, batch | {"valid": np.zeros_like(batch["valid"])}
        metrics = run.step(batch)
        run.look_at(waiting, log, progress, iterator, saved)  # of the step before, while this one runs
        waiting = run.k, metrics, len(batch["valid"])


def _next(run: "_Run", iterator) -> dict:
    batch = next(iterator, None)
    if batch is None:
        raise InputError(f"the batches ended after step {run.k} of {run.total}: an iterator without end is needed")
    return batch


class _Run:
    """What changes while it runs."""

    def __init__(self, config: SamConfig, recipe: Recipe, plan: Plan, out: Path, trains: Rule, step: Callable | None):
        self.config, self.recipe, self.plan, self.out, self.trains = config, recipe, plan, out, trains
        step = step or make_step(config, recipe, trains)
        if plan.anneal is not None:
            if recipe.schedule != "constant":
                raise InputError("the rate can fall by the plan or by the recipe, whose schedule must be 'constant'")
            step = annealing.annealed(step, recipe, plan.anneal, trains)
        if jax.process_count() > 1 and (plan.minutes or plan.rarely or plan.sharding == "one"):
            raise InputError("several processes train by pmap, data or fsdp, and for a number of steps: their clocks "
                             "differ")
        self.wrapped = spread(step, plan.sharding, plan.fsdp)
        self.k, self.saved_at, self.resumed, self.total = 0, None, None, recipe.steps
        self.scores, self.best, self.best_step, self.since = {}, None, None, 0
        self.error = None  # of this process, until the others are told
        self.before, self.start, self.pace, self.last = 0.0, time.perf_counter(), None, None
        self.evaluated = self.start, 0.0  # the last time, and how long it took

    @property
    def seconds(self) -> float:
        """Of wall time, all runs together."""
        return self.before + time.perf_counter() - self.start

    def open(self, params: dict, seed: int, iterator, saved: Checkpoints) -> None:
        """From the start, or from the newest checkpoint."""
        state = init_state(self.config, self.recipe, params, jax.random.key(seed), self.trains)
        if self.plan.anneal is not None:
            state = annealing.begin(state, self.plan.anneal, self.trains, self.recipe.steps)
        if jax.process_count() == 1:
            found = saved.restore(jax.tree.map(np.asarray, state))
            self.state = self.wrapped.place(state if found is None else found[0])
        else:
            self.state = self.wrapped.place(state)
            found = saved.restore(self._storable())
            if found is not None:
                self.state = found[0] if self.plan.sharding in ("data", "fsdp") else self.wrapped.place(found[0])
        if found is not None:
            self._take_up(found[1], found[2], iterator)

    def _take_up(self, position: dict, meta: dict, iterator) -> None:
        self.k = self.resumed = self.saved_at = int(meta["step"])
        self.scores = {int(step): scores for step, scores in meta["scores"].items()}
        self.best, self.best_step, self.since = meta["best"], meta["best_step"], meta["since"]
        self.before, self.pace = meta["seconds"], meta["pace"]
        if self.plan.minutes:
            self.total = meta["total"]
        if hasattr(iterator, "set_state"):
            iterator.set_state(position["iterator"])
        else:
            for _ in range(self.k):
                next(iterator, None)

    def save(self, saved: Checkpoints, iterator, wait: bool = False) -> None:
        """A checkpoint of this moment, unless there is one."""
        if self.k != self.saved_at or wait:
            meta = {"step": self.k, "scores": {str(step): scores for step, scores in self.scores.items()},
                    "best": self.best, "best_step": self.best_step, "since": self.since, "seconds": self.seconds,
                    "total": self.total, "pace": self.pace}
            position = {"iterator": iterator.get_state()} if hasattr(iterator, "get_state") else {}
            if self.k != self.saved_at:
                saved.save(self.k, self._storable(), position, meta, self.scores.get(self.k, {}).get("score"))
            if wait:
                saved.wait()
            self.saved_at = self.k

    def _storable(self):
        if jax.process_count() > 1 and self.plan.sharding in ("data", "fsdp"):
            return self.state
        return self.wrapped.fetch(self.state)

    def usable(self) -> dict:
        """The parameters as they would be used, on the host."""
        return self.wrapped.fetch(annealing.result(self.state))

    def due(self) -> bool:
        every = self.plan.evaluate_every
        if not (self.evaluate and every and self.k % every == 0 and self.k not in self.scores):
            return False
        return time.perf_counter() - self.evaluated[0] >= self.plan.rarely * self.evaluated[1]

    def ended(self) -> str:
        """Why it is over, or nothing."""
        if self.k >= self.total:
            return "done" if self.total == self.recipe.steps else "time"
        if self.plan.patience and self.since >= self.plan.patience:
            return "patience"
        return "time" if self.plan.minutes and self.seconds >= 60.0 * self.plan.minutes else ""

    def step(self, batch: dict) -> dict:
        self.state, metrics = self.wrapped(self.state, self.wrapped.feed(batch))
        self.k += 1
        return metrics

    def look_at(self, waiting, log: Metrics, progress: Progress, iterator, saved: Checkpoints) -> None:
        """Writes down the metrics of an earlier step; Diverged if they are not finite."""
        if waiting is None:
            return
        step, metrics, images = waiting
        metrics = {name: float(value) for name, value in self.wrapped.fetch(metrics).items()}
        if not metrics.pop("finite", 1.0):
            self._diverged(step, metrics, iterator, saved)
        now, rate = time.perf_counter(), math.nan
        if self.last is not None:
            took = now - self.last
            self.pace = took if self.pace is None else 0.8 * self.pace + 0.2 * took
            rate = images * jax.process_count() / max(took, 1e-9)
        self.last = now
        self._guarded(log.step, step, metrics | {"seconds": round(self.seconds, 3), "images_per_second": rate})
        usual = images * jax.process_count() / self.pace if self.pace else math.nan
        progress.step(step, self.total, metrics["loss"], usual)

    def _guarded(self, work: Callable, *args) -> None:
        """work(*args), which one process does: what it fails at waits until the others can be told."""
        try:
            work(*args)
        except Exception as problem:
            if jax.process_count() == 1:
                raise
            self.error = self.error or problem

    def _diverged(self, step: int, metrics: dict, iterator, saved: Checkpoints) -> None:
        if self.error:
            raise self.error
        self.save(saved, iterator, wait=True)
        named = ""
        with contextlib.suppress(Exception):
            named = f" (pictures: {', '.join(self.names(step - 1))})" if self.names else ""
        raise Diverged(f"step {step}{named}: the loss is {metrics['loss']:.4g}, the gradient's norm "
                       f"{metrics['grad_norm']:.4g}; the parameters are as they were before it, and saved: the same "
                       "command goes on after it, but if it happens again use a smaller learning rate")

    def judge(self, signals: "_Signals", log: Metrics) -> bool:
        """An evaluation; False if a signal broke it off."""
        params = self.usable()
        begun = time.perf_counter()
        try:
            with signals.raising() if jax.process_count() == 1 else contextlib.nullcontext():
                scores = self.evaluate(params, self.k)  # by several processes: all raise, or none
        except _Stop:
            return False
        self.scores[self.k] = scores = {name: float(value) for name, value in scores.items()}
        better = self.best is None or scores["score"] > self.best
        self.since = 0 if better else self.since + 1
        if better:
            self.best, self.best_step = scores["score"], self.k
            if self.improved is not None:
                attempted(lambda: self.improved(params, self.k, scores))
        self._guarded(log.evaluation, self.k, scores)
        self.report(f"step {self.k}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
        now = time.perf_counter()
        self.last, self.evaluated = None, (now, now - begun)
        if self.plan.minutes and self.plan.anneal is not None:
            self._stretch()
        return True

    def _stretch(self) -> None:
        """Makes the run as long as the time that is left allows."""
        if self.pace is None:
            return
        took = self.evaluated[1]
        share = took / (took + max(self.plan.rarely * took, self.plan.evaluate_every * self.pace))
        left = 60.0 * self.plan.minutes - self.seconds - took  # that of the last one
        steps = int(max(left, 0.0) * (1 - share) / self.pace)
        self.total = max(min(self.k + steps, self.recipe.steps), self.k, 1)
        total = self.wrapped.place({"total": np.asarray(self.total, np.int32)})["total"]
        self.state = replace(self.state, total=total)


class _Stop(BaseException):
    """A signal came while nothing was under way that could be damaged."""


class _Signals:
    """SIGTERM and SIGINT are noted in `number`; a second one acts as it did before. A context."""

    def __init__(self):
        self.number, self._raise, self._before = 0, False, {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not the main thread
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        self.number = number
        signal.signal(number, self._before[number])
        if self._raise:
            raise _Stop

    @contextlib.contextmanager
    def raising(self):
        """Within it a signal raises at once."""
        self._raise = True
        try:
            if self.number:
                raise _Stop
            yield
        finally:
            self._raise = False
