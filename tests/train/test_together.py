"""Several processes train as one: they end together, whichever one is told to, and go on as if nothing had been."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import toy_loop
import training_runs

import convert
from samjax.cli import main
from samjax.errors import InputError
from samjax.train.loop import Plan
from samjax.train.metrics import read
from samjax.train.together import Alarm, dealt, gathered
from samjax.weights import resolve

HERE = Path(__file__).parent
STEPS = 40


def two(script, words, *, told=None) -> list[tuple[int, str, str]]:
    """(status, stdout, stderr) of two processes of two devices; told(processes) is called while they run."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE, HERE.parent))),
                                "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    with contextlib.ExitStack() as stack:
        files = [[stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)] for _ in range(2)]
        both = [subprocess.Popen([sys.executable, HERE / script, *words(i)], env=environment, stdout=out, stderr=err)
                for i, (out, err) in enumerate(files)]
        try:
            if told:
                told(both)
            statuses = [process.wait(timeout=300) for process in both]
        finally:
            for process in both:
                process.kill()
        return [(status, *map(_text, pair)) for status, pair in zip(statuses, files)]


def _text(file) -> str:
    file.seek(0)
    return file.read()


def address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def toys(out, *more, wait: float = 0.0, told=None) -> list[tuple[int, str, str]]:
    where = address()
    return two("toy_loop.py", lambda i: [str(out), str(STEPS), str(wait), where, str(i), *more], told=told)


def outcomes(ended) -> list[dict]:
    assert [status for status, _, _ in ended] == [0, 0], ended
    return [json.loads(out.splitlines()[-1]) for _, out, _ in ended]


def kernel_and_losses(out):
    """Of one process that nothing happens to."""
    alone = toy_loop.run(out, steps=STEPS)
    return alone.params["mask_decoder"]["kernel"], [line["loss"] for line in read(out / "metrics.jsonl")[0]]


def test_a_signal_to_one_ends_both_and_they_go_on(tmp_path):
    """To the numbers of one process that nothing happens to, from each evaluation with what both contribute."""
    def tell(both):
        until = time.monotonic() + 120
        while not (tmp_path / "metrics.jsonl").exists() or len(read(tmp_path / "metrics.jsonl")[0]) < 5:
            assert time.monotonic() < until and both[0].poll() is None
            time.sleep(0.05)
        both[1].send_signal(signal.SIGTERM)

    first = outcomes(toys(tmp_path, wait=0.1, told=tell))
    assert first[0] == first[1] and first[0]["reason"] == "SIGTERM" and 5 <= first[0]["step"] < STEPS
    last = outcomes(toys(tmp_path))
    assert last[0] == last[1] and last[0]["reason"] == "done" and last[0]["resumed"] == first[0]["step"]
    assert last[0]["scores"] == {str(step): {"score": 1.0} for step in (0, 20, 40)}
    kernel, losses = kernel_and_losses(tmp_path / "alone")
    np.testing.assert_allclose(last[0]["kernel"], kernel, atol=1e-6)
    steps = read(tmp_path / "metrics.jsonl")[0]
    assert [line["step"] for line in steps] == [*range(1, STEPS + 1)]
    np.testing.assert_allclose([line["loss"] for line in steps], losses, rtol=1e-5)


def test_an_error_in_one_ends_both_and_one_process_goes_on(tmp_path):
    """Both say so at once, and the steps in which one had nothing to give are not saved. What two processes saved one
    takes up, and two what one saved."""
    toy_loop.run(tmp_path, steps=STEPS, plan=Plan(save_every=3), batches=toy_loop.Numbers({7: _interrupt}))
    begun = time.monotonic()
    ended = toys(tmp_path, "20", wait=0.05)
    assert [status for status, _, _ in ended] == [1, 1] and time.monotonic() - begun < 100
    assert "error: a picture is broken" in ended[1][2] and "error: process 1 failed, and says why" in ended[0][2]
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith("damaged")]
    steps = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert 7 < steps <= 20
    outcome = toy_loop.run(tmp_path, steps=STEPS, plan=Plan(save_every=3))
    assert outcome.resumed == steps and outcome.reason == "done"
    kernel, losses = kernel_and_losses(tmp_path / "alone")
    np.testing.assert_allclose(outcome.params["mask_decoder"]["kernel"], kernel, atol=1e-6)
    np.testing.assert_allclose([line["loss"] for line in read(tmp_path / "metrics.jsonl")[0]], losses, rtol=1e-5)


@pytest.mark.skipif(not os.environ.get("SAMJAX_THOROUGH"), reason="SAMJAX_THOROUGH=1 asks for it")
def test_an_error_at_the_first_batch(tmp_path):
    ended = toys(tmp_path, "0")
    assert [status for status, _, _ in ended] == [1, 1]
    assert "error: a picture is broken" in ended[1][2] and "error: process 1 failed, and says why" in ended[0][2]


def _interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(not os.environ.get("SAMJAX_THOROUGH"), reason="SAMJAX_THOROUGH=1 asks for it")
@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["pmap", "data", "fsdp"])
def test_the_command_by_two_processes(tmp_path, sharding):
    """Four devices in two processes, and one device: the same model, but for rounding."""
    place = training_runs.prepare(tmp_path)
    where = address()
    together = ["--sharding", sharding, "--coordinator", where, "--processes", "2"]
    ended = two("training_runs.py", lambda i: training_runs.words(place, "two", *together, "--process", str(i)))
    assert [status for status, _, _ in ended] == [0, 0], ended
    said = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for _, out, _ in ended]
    assert f"over 4 devices ({sharding})" in said[0][0] and not said[1]
    assert main(training_runs.words(place, "one")) == 0
    reports = [json.loads((place / out / "report.json").read_text()) for out in ("one", "two")]
    for step, scores in reports[0]["scores"].items():
        assert scores == pytest.approx(reports[1]["scores"][step], abs=0.5)
    losses = [[line["loss"] for line in read(place / out / "metrics.jsonl")[0]] for out in ("one", "two")]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    one, two_ = (convert.read(resolve(str(place / out))).tensors for out in ("one", "two"))
    assert reports[0]["best_step"] == reports[1]["best_step"]
    for name in one:
        np.testing.assert_allclose(one[name].load(), two_[name].load(), atol=1e-4)


def test_one_process_has_nobody_to_ask():
    assert gathered([1, 2]).tolist() == [[1, 2]] and list(dealt(3)) == [0, 1, 2]
    alarm = Alarm()
    assert [alarm(step, number, None) for step, number in ((0, 0), (1, 15), (2, 0))] == [0, 15, 0]


def test_clocks_bound_no_run_of_several(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda *_: 2)
    for plan in (Plan(minutes=1.0, sharding="data"), Plan(rarely=2.0, sharding="data"), Plan()):
        with pytest.raises(InputError, match="several processes train by pmap, data or fsdp"):
            toy_loop.run(tmp_path, plan=plan)
