"""The loop: broken off in every way, it ends where an unbroken run ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy_loop
from toy_loop import Numbers, run

from samjax.errors import InputError
from samjax.train import loop
from samjax.train.anneal import Anneal
from samjax.train.loop import Diverged, Plan
from samjax.train.metrics import read

HERE = Path(__file__).parent


def kernel(outcome):
    return outcome.params["mask_decoder"]["kernel"]


def losses(out):
    return [(line["step"], line["loss"]) for line in read(out / "metrics.jsonl")[0]]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """(outcome, losses) of a run that nothing happens to."""
    out = tmp_path_factory.mktemp("unbroken")
    outcome = run(out, steps=40)
    assert outcome.reason == "done" and outcome.step == 40 and outcome.resumed is None
    return outcome, losses(out)


def same(outcome, out, unbroken):
    np.testing.assert_array_equal(kernel(outcome), kernel(unbroken[0]))
    assert losses(out) == unbroken[1]


def test_metrics(unbroken):
    outcome, lines = unbroken
    assert [step for step, _ in lines] == list(range(1, 41))
    assert lines[-1][1] != lines[0][1] and np.isfinite([loss for _, loss in lines]).all()


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, unbroken):
    """kill -9, some of them while a checkpoint is written: the rest is bitwise the same."""
    random = np.random.default_rng(int(time.time()))
    command = [sys.executable, str(HERE / "toy_loop.py"), str(tmp_path), "40", "0.03"]
    environment = os.environ | {"PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE.parent}"}
    kills = 0
    for _ in range(2):
        job = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        begun = lines_of(tmp_path)
        while job.poll() is None and lines_of(tmp_path) < begun + 4 and lines_of(tmp_path) < 30:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        job.kill()
        kills += job.wait() == -signal.SIGKILL
    assert kills
    same(run(tmp_path, steps=40), tmp_path, unbroken)


def lines_of(out):
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_save_and_end(tmp_path, unbroken, name):
    send = lambda: os.kill(os.getpid(), getattr(signal, name))
    before = signal.getsignal(getattr(signal, name))
    outcome = run(tmp_path, Numbers({12: send}), steps=40)
    assert outcome.reason == name and 12 <= outcome.step <= 13
    assert signal.getsignal(getattr(signal, name)) is before
    outcome = run(tmp_path, steps=40)
    assert outcome.resumed in (12, 13)
    same(outcome, tmp_path, unbroken)


def test_signal_breaks_off_an_evaluation(tmp_path):
    """And the evaluation is made when the run is taken up again."""
    def evaluate(params, step, stop=True):
        if step == 10 and stop:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
            pytest.fail("the evaluation went on")
        return {"score": step}

    plan = Plan(save_every=100, evaluate_every=10)
    outcome = run(tmp_path, steps=20, plan=plan, evaluate=evaluate)
    assert (outcome.reason, outcome.step, sorted(outcome.scores)) == ("SIGTERM", 10, [0])
    outcome = run(tmp_path, steps=20, plan=plan, evaluate=lambda *args: evaluate(*args, stop=False))
    assert sorted(outcome.scores) == [0, 10, 20] and outcome.best_step == 20
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")[1]] == [0, 10, 20]


def test_iterator_without_a_position(tmp_path, unbroken):
    """What a plain generator gave before is passed over."""
    generator = lambda: (batch for batch in Numbers())
    run(tmp_path, generator(), steps=20)
    outcome = run(tmp_path, generator(), steps=40)
    assert outcome.resumed == 20
    same(outcome, tmp_path, unbroken)


def test_truncated_checkpoint(tmp_path, unbroken):
    """The one before is taken, and it is said."""
    run(tmp_path, steps=20)
    newest = tmp_path / "checkpoints" / "20" / "state"
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-30])
    said = []
    outcome = run(tmp_path, steps=40, report=said.append)
    assert outcome.resumed == 15
    assert "step 20 is damaged" in said[0] and "going back to step 15" in said[0]
    same(outcome, tmp_path, unbroken)


def test_not_a_number(tmp_path):
    """Step and pictures are named, the state before is kept, and the run can go on after it."""
    with pytest.raises(Diverged, match=r"step 8 \(pictures: a7, b7\): the loss is nan"):
        run(tmp_path, Numbers(bad=[7]), steps=20, names=lambda k: [f"a{k}", f"b{k}"])
    outcome = run(tmp_path, steps=20)
    assert outcome.resumed in (8, 9) and np.isfinite(kernel(outcome)).all()
    assert [step for step, _ in losses(tmp_path)] == [*range(1, 8), *range(outcome.resumed + 1, 21)]


def test_best_is_kept_and_patience_ends(tmp_path):
    scores, improved = {0: 0.1, 5: 0.9, 10: 0.8, 15: 0.3, 20: 0.2, 25: 0.5}, []
    plan = Plan(save_every=5, evaluate_every=5, keep=2, patience=3)
    outcome = run(tmp_path, steps=100, plan=plan, evaluate=lambda params, step: {"score": scores[step]},
                  improved=lambda params, step, found: improved.append((step, found["score"])))
    assert (outcome.reason, outcome.step, outcome.best_step, outcome.best) == ("patience", 20, 5, 0.9)
    assert improved == [(0, 0.1), (5, 0.9)]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()} == {"5", "15", "20"}


def test_time_ends_it(tmp_path, monkeypatch):
    """The fall of the rate is as long as there is time, and the end is evaluated. By a clock of 0.1 s a step."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)

    class Slow(Numbers):
        def __next__(self):
            clock.now += 0.1
            return super().__next__()

    monkeypatch.setattr(loop, "time", clock)
    plan = Plan(save_every=1000, evaluate_every=10, minutes=8 / 60, anneal=Anneal(warmup=2))
    outcome = run(tmp_path, Slow(), steps=100_000, plan=plan, evaluate=lambda params, step: {"score": step})
    assert outcome.reason == "time" and 78 <= outcome.step <= 80 and outcome.step in outcome.scores
    rates = [line["learning_rate"] for line in read(tmp_path / "metrics.jsonl")[0]]
    assert rates[-1] < 0.01 * max(rates)


@pytest.mark.parametrize("sharding", ["pmap", "data", "fsdp"])
def test_many_devices(tmp_path, unbroken, sharding):
    """The same as on one, also where they go on with what one device began."""
    run(tmp_path, steps=20)
    outcome = run(tmp_path, steps=40, plan=Plan(save_every=10, sharding=sharding))
    assert outcome.resumed == 20
    np.testing.assert_allclose(kernel(outcome), kernel(unbroken[0]), rtol=1e-4, atol=1e-6)
    assert run(tmp_path, steps=40, plan=Plan(sharding=sharding)).resumed == 40


def test_moving_average_and_pull(tmp_path):
    """Against the formulas, from the parameters that each step would leave."""
    plan = Plan(save_every=100, anneal=Anneal(warmup=0, average=0.5, pull=2.0))
    outcome = run(tmp_path, steps=3, plan=plan)
    rate = toy_loop.RECIPE.lr
    state = toy_loop.init_state(None, None, toy_loop.PARAMS, jax.random.key(0))
    step, batches = jax.jit(toy_loop.make_step(None, None)), Numbers()
    origin = x = average = toy_loop.PARAMS["mask_decoder"]["kernel"]
    for k in range(3):
        state, _ = step(state, next(batches))
        factor = 0.5 * (1 + np.cos(np.pi * k / 3))
        schedule = rate * min((k + 1) / toy_loop.RECIPE.warmup, 1) * factor
        x = x + factor * (np.asarray(state.params["mask_decoder"]["kernel"]) - x)
        x = x - schedule * 2.0 * (x - origin)
        decay = min(0.5, (2 + k) / (11 + k))
        average = decay * average + (1 - decay) * x
        state = toy_loop.TrainState(state.step, {"mask_decoder": {"kernel": np.float32(x)}}, state.opt_state, state.key)
    np.testing.assert_allclose(kernel(outcome), average, rtol=1e-5)


def test_another_run_is_refused(tmp_path, monkeypatch):
    run(tmp_path, steps=5)
    monkeypatch.setattr(toy_loop, "PARAMS", {"mask_decoder": {"kernel": np.zeros(9, np.float32)}})
    with pytest.raises(InputError, match="belongs to another run"):
        run(tmp_path, steps=10)


def test_batches_that_end(tmp_path):
    with pytest.raises(InputError, match="the batches ended after step 3 of 40"):
        run(tmp_path, (batch for batch, _ in zip(Numbers(), range(3))), steps=40)


def test_lines_are_json(unbroken, tmp_path):
    run(tmp_path, steps=3)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert {"step", "loss", "seconds", "images_per_second"} <= set(json.loads(line))
