"""Fine-tuning from a folder to a model: on generated pictures, with a model of random numbers."""

import json
import os
import signal
import threading

import numpy as np
import pytest
import shapes

import convert
from samjax.cli import main
from samjax.data import open_source
from samjax.errors import InputError
from samjax.train import finetune
from samjax.train.material import Features, Listening, Thinned
from samjax.train.metrics import read
from samjax.train.options import Options, make_recipe
from samjax.weights import resolve

SETTINGS = ["--lr", "0.005", "--batch", "4", "--objects", "3", "--rounds", "1", "--average", "0.9", "--patience", "0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data/, init/ and tuned/, the result of 360 steps."""
    place = tmp_path_factory.mktemp("place")
    shapes.write_folder(place / "data", pictures=40)
    shapes.write_model(place / "init")
    assert main(words(place, "tuned")) == 0
    return place


def words(place, out, *more, steps=360):
    return ["finetune", str(place / "data"), "--init", str(place / "init"), "--out", str(place / out), *SETTINGS,
            "--steps", str(steps), "--evaluate-every", "120", *more]


def test_the_score_rises(place):
    report = json.loads((place / "tuned" / "report.json").read_text())
    (before,), (after,) = report["untuned"].values(), report["tuned"].values()
    assert after["point"] > before["point"] + 5 and after["box"] > before["box"] + 5
    assert report["ended_by"] == "done" and report["steps"] == 360
    assert (place / "tuned" / "curves.png").exists() or not _has_matplotlib()


def _has_matplotlib():
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None


def test_the_result_is_a_model(place):
    """Of the folder's name; its encoder is untouched; it converts."""
    assert resolve(str(place / "tuned")) == place / "tuned" / "model"
    before, after = convert.read(place / "init"), convert.read(resolve(place / "tuned"))
    assert before.config == after.config
    changed = {path.split("/")[0] for path in before.tensors
               if not np.array_equal(before.tensors[path].load(), after.tensors[path].load())}
    assert changed == {"prompt_encoder", "mask_decoder"}
    gaussian = "prompt_encoder/gaussian"
    np.testing.assert_array_equal(before.tensors[gaussian].load(), after.tensors[gaussian].load())


def test_done_is_done(place, capsys):
    """The table once more, without training."""
    written = (place / "tuned" / "metrics.jsonl").stat().st_mtime_ns
    assert main(words(place, "tuned")) == 0
    out = capsys.readouterr().out
    assert "is done already" in out and "untuned" in out and "best of three" in out
    assert (place / "tuned" / "metrics.jsonl").stat().st_mtime_ns == written
    assert main(words(place, "tuned", steps=361)) == 2


def test_stopped_and_taken_up(place, capsys):
    """SIGTERM ends it with status 0; the same command goes on to the very same model."""
    def stop():
        path = place / "broken" / "metrics.jsonl"
        while not (path.exists() and path.read_text().count("\n") > 20):
            if done.wait(0.01):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    short = ["--evaluate-every", "50"]
    assert main(words(place, "whole", *short, steps=100)) == 0
    done = threading.Event()
    thread = threading.Thread(target=stop)
    thread.start()
    try:
        assert main(words(place, "broken", *short, steps=100)) == 0
    finally:
        done.set()
        thread.join()
    assert "stopped by SIGTERM after step" in capsys.readouterr().err
    assert not (place / "broken" / "report.json").exists()
    assert main(words(place, "broken", *short, steps=100)) == 0
    losses = [[line["loss"] for line in read(place / name / "metrics.jsonl")[0]] for name in ("whole", "broken")]
    assert losses[0] == losses[1] and len(losses[0]) == 100
    whole, broken = (convert.read(place / name / "model").params() for name in ("whole", "broken"))
    for path, value in convert.flatten(whole).items():
        np.testing.assert_array_equal(value, convert.flatten(broken)[path])


@pytest.mark.slow
@pytest.mark.parametrize("part", ["lora", "all"])
def test_the_encoder_too(place, part):
    """Factors are merged: what comes out is a plain model."""
    assert main(words(place, part, "--train", part, "--mix", str(place / "data"), "--augment", "flip", steps=3)) == 0
    before, after = convert.read(place / "init"), convert.read(place / part / "model")
    assert sorted(before.tensors) == sorted(after.tensors)
    assert not (place / part / "embeddings").exists()


def test_thinned(tmp_path):
    source = open_source(shapes.write_folder(tmp_path / "data", pictures=16))
    thin = Thinned(source, objects=8)
    assert len(thin) == 8 and all(len(record.objects) == 1 for record in thin)
    assert thin.names() == [source.item_name(2 * i) for i in range(8)]
    everything = Thinned(source, objects=1000)
    assert [len(record.objects) for record in everything] == [len(record.objects) for record in source]
    assert len(Thinned(source, objects=1000, pictures=5)) == 5


def test_listening(tmp_path):
    heard = []
    source = Listening(open_source(shapes.write_folder(tmp_path / "data", pictures=4)), heard)
    source[3], source[1]
    assert heard == [source.item_name(3), source.item_name(1)]


def test_features(tmp_path):
    features = Features(tmp_path, "mark")
    value = np.random.default_rng(0).standard_normal((4, 4, 8)).astype(np.float32)
    features.write("a.png", value, (30, 64))
    found, size = features["a.png"]
    np.testing.assert_allclose(found, value, rtol=1e-3)
    assert size == (30, 64) and found.dtype == np.float32
    with pytest.raises(KeyError):
        features["b.png"]
    with pytest.raises(KeyError):
        Features(tmp_path, "another")["a.png"]
    path = tmp_path / os.path.basename(features.path("a.png"))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="is damaged"):
        features["a.png"]


def test_recipes():
    options = Options(["data"], "mobile_sam", "out")
    assert make_recipe(options, 10).steps == 200
    assert make_recipe(options, 100).steps == 30 * 25
    assert make_recipe(options, 10_000).steps == 2000
    assert make_recipe(Options(["d"], "m", "o", epochs=2, batch=8), 100).steps == 25
    recipe = make_recipe(Options(["d"], "m", "o", train="lora", prompts="box", steps=10, rounds=1), 100)
    assert (recipe.train, recipe.boxes, recipe.rounds, recipe.steps, recipe.warmup) == ("lora+decoder", 1.0, 1, 10, 2)


def test_table():
    score = {"score": 20.0, "point": 10.0, "point_oracle": 20.04, "box": 30.0, "pictures": 3, "objects": 7}
    text = finetune.table({"untuned": {"a": score}, "tuned": {"a": score | {"point": 22.5}}})
    assert text.splitlines()[2].split() == ["one", "point", "10.0", "22.5", "+12.5"]
