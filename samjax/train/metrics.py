"""What a run says: a line of JSON for each step and each evaluation, TensorBoard's events, a progress line."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from samjax.errors import InputError
from samjax.train.events import Events


class Metrics:
    """out/metrics.jsonl and out/tensorboard; a context.

    A line is {"step": k, "loss": ..., ...} after step k, or {"step": k, "val": {...}} for the state after k steps. What
    a killed run wrote after its last checkpoint is cut off by `rewind`, so that there is one line for each step.
    """

    def __init__(self, out, main: bool = True):
        self.path, self.main = Path(out) / "metrics.jsonl", main
        self._file = self._events = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in (self._file, self._events):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def rewind(self, step: int, evaluated=()) -> None:
        """Keeps what belongs to the first `step` steps and to the evaluations after `evaluated`, and goes on there."""
        if not self.main:
            return
        lines = [] if step == 0 or not self.path.exists() else self.path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _belongs(line, step, evaluated)]
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            temporary.write_text("".join(kept))
            os.replace(temporary, self.path)
            self._file = open(self.path, "a")  # noqa: SIM115 (until the end)
            self._events = Events(self.path.parent / "tensorboard")

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._line({"step": step, **_plain(values)})
        self._scalars(step, {f"train/{name}": value for name, value in values.items()})

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        self._line({"step": step, "val": _plain(scores)})
        self._scalars(step, {f"val/{name}": value for name, value in scores.items()})

    def _line(self, values: dict) -> None:
        if self._file is not None:
            with self._writing():
                self._file.write(json.dumps(values) + "\n")
                self._file.flush()

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._events is not None:
            with self._writing():
                self._events.scalars(step, {name: float(value) for name, value in values.items()})

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {(error.strerror or str(error)).lower()}; make room, and the "
                             "same command goes on from the last checkpoint") from None


def read(path) -> tuple[list[dict], list[dict]]:
    """(steps, evaluations) of a metrics.jsonl; what was half written is passed over."""
    steps, evaluations = [], []
    with open(path) as file:
        for line in file:
            with contextlib.suppress(ValueError):
                values = json.loads(line)
                (evaluations if "val" in values else steps).append(values)
    return steps, evaluations


class Progress:
    """One line on a terminal: steps, loss, images/s, the time that is left. Elsewhere nothing. A context."""

    def __init__(self, done: int, total: int, shown: bool):
        self._bar = None
        if shown and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit="step", file=sys.stderr, dynamic_ncols=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def step(self, done: int, total: int, loss: float, rate: float) -> None:
        if self._bar is not None:
            self._bar.total = total
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.3g} images/s", refresh=False)
            self._bar.update(done - self._bar.n)

    def pause(self):
        """A context in which others may write to the terminal."""
        if self._bar is None:
            return contextlib.nullcontext()
        return self._bar.external_write_mode(file=sys.stdout)


def _belongs(line: str, step: int, evaluated) -> bool:
    try:
        values = json.loads(line)
        return values["step"] in evaluated if "val" in values else values["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def _plain(values: Mapping) -> dict:
    """JSON-able; numbers that JSON has not become null."""
    plain = {}
    for name, value in values.items():
        value = value.item() if hasattr(value, "item") else value
        plain[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return plain
