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
from samjax.predict import Embedding
from samjax.train import finetune
from samjax.train.material import Features, Listening, Thinned, embed, open_all, spread
from samjax.train.metrics import read
from samjax.train.options import Options, make_recipe
from samjax.weights import resolve

SETTINGS = ["--lr", "0.005", "--batch", "4", "--objects", "3", "--rounds", "1", "--average", "0.9", "--patience", "0",
            "--mask-size", "16"]


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


def test_a_model_is_mixed_once(place):
    """Also where the run was killed between the mixing and its report."""
    out = place / "tuned"
    report, said = ((out / name).read_bytes() for name in ("report.json", "blend.json"))
    before = convert.flatten(convert.read(out / "model").params())
    (out / "report.json").unlink()
    assert main(words(place, "tuned")) == 0
    assert json.loads((out / "report.json").read_text())["tuned"] == json.loads(report)["tuned"]
    assert (out / "blend.json").read_bytes() == said
    after = convert.flatten(convert.read(out / "model").params())
    assert all(np.array_equal(before[path], after[path]) for path in after)
    assert json.loads(report)["blend"] in (0.25, 0.5, 0.75, 1)


def test_stopped_and_taken_up(place, capsys):
    """SIGTERM ends it with status 0; the same command goes on to the very same model."""
    def stop():
        path = place / "broken" / "metrics.jsonl"
        while not (path.exists() and path.read_text().count("\n") > 12):
            if done.wait(0.01):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    short = ["--evaluate-every", "30"]
    assert main(words(place, "whole", *short, steps=60)) == 0
    done = threading.Event()
    thread = threading.Thread(target=stop)
    thread.start()
    try:
        assert main(words(place, "broken", *short, steps=60)) == 0
    finally:
        done.set()
        thread.join()
    assert "stopped by SIGTERM after step" in capsys.readouterr().err
    assert not (place / "broken" / "report.json").exists()
    assert main(words(place, "broken", *short, steps=60)) == 0
    losses = [[line["loss"] for line in read(place / name / "metrics.jsonl")[0]] for name in ("whole", "broken")]
    assert losses[0] == losses[1] and len(losses[0]) == 60
    whole, broken = (convert.read(place / name / "model").params() for name in ("whole", "broken"))
    for path, value in convert.flatten(whole).items():
        np.testing.assert_array_equal(value, convert.flatten(broken)[path])


@pytest.mark.slow
@pytest.mark.parametrize("part", ["lora", *(["all"] if os.environ.get("SAMJAX_THOROUGH") else [])])
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
    assert features.made_of("a.png") == features.made_of("b.png") == ""
    features.write("a.png", value, (30, 64), "pixels")
    assert features.made_of("a.png") == "pixels"
    path = tmp_path / os.path.basename(features.path("a.png"))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="is damaged"):
        features["a.png"]
    assert features.made_of("a.png") == ""


class Encoder:
    """In the place of a model: notes what it is asked to encode."""

    config = shapes.CONFIG

    def __init__(self):
        self.seen = []

    def encode(self, image):
        self.seen.append(image)
        return Embedding(np.full((1, 4, 4, 8), image.mean(), np.float32), np.array([image.shape[:2]]))


def test_embeddings_of_pictures_that_changed(tmp_path):
    """Only those are made anew; of some pictures alone where those are asked for."""
    folder = shapes.write_folder(tmp_path / "data", pictures=4)
    source, sam = open_source(folder), Encoder()
    embed(sam, source, tmp_path / "cache", "mark", places=[2, 0])
    assert len(sam.seen) == 2
    embed(sam, source, tmp_path / "cache", "mark")
    assert len(sam.seen) == 4
    (folder / "images" / "01.png").write_bytes((folder / "images" / "02.png").read_bytes())
    features = embed(sam, source, tmp_path / "cache", "mark")
    assert len(sam.seen) == 5
    np.testing.assert_array_equal(features["images/01.png"][0], features["images/02.png"][0])


def test_spread(tmp_path):
    source = open_source(shapes.write_folder(tmp_path / "data", pictures=16))
    assert spread(source, 100).names() == source.names()
    eight = spread(source, 8)
    assert eight.names() == source.names()[::2] and eight.name == source.name
    assert spread(eight, 4).names() == spread(source, 4).names()


def names(sources):
    return [name for source in sources for name in source.names()]


def test_what_is_held_out(tmp_path):
    """No picture is trained on and validated on; none is used for neither."""
    plain = str(shapes.write_folder(tmp_path / "plain", pictures=10))
    other = str(shapes.write_folder(tmp_path / "other", pictures=3, seed=1))
    found = open_all(Options([plain], "m", "o"))
    assert sorted(names(found["train"]) + names(found["val"])) == open_source(plain).names()
    assert min(len(found["train"][0]), len(found["val"][0])) > 0
    found = open_all(Options([plain], "m", "o", val=[other]))
    assert len(found["train"][0]) == 10 and len(found["val"][0]) == 3
    with pytest.raises(InputError, match="leave --val out"):
        open_all(Options([plain], "m", "o", val=[plain]))
    for split, pictures in (("train", 6), ("val", 2)):
        shapes.write_folder(tmp_path / "declared" / "images" / split, pictures=pictures)
    declared = tmp_path / "declared"
    for split in ("train", "val"):  # images/train and images/val, masks/train and masks/val
        (declared / "masks").mkdir(exist_ok=True)
        (declared / "images" / split / "masks").rename(declared / "masks" / split)
        for picture in (declared / "images" / split / "images").iterdir():
            picture.rename(declared / "images" / split / picture.name)
    for val in ([], [str(declared)]):
        found = open_all(Options([str(declared)], "m", "o", val=val))
        assert (len(found["train"][0]), len(found["val"][0])) == (6, 2)
    (declared / "images" / "val").rename(declared / "images" / "test")
    (declared / "masks" / "val").rename(declared / "masks" / "test")
    found = open_all(Options([str(declared)], "m", "o"))
    assert len(found["train"][0]) + len(found["val"][0]) == 6 and not any("test" in name for name in names(
        found["val"]))
    assert len(open_all(Options([plain], "m", "o", val=[str(declared)]))["val"][0]) == 2


def test_recipes():
    options = Options(["data"], "mobile_sam", "out")
    assert make_recipe(options, 10).steps == 200
    assert make_recipe(options, 100).steps == 30 * 25
    assert make_recipe(options, 10_000).steps == 2000
    assert make_recipe(Options(["d"], "m", "o", epochs=2, batch=8), 100).steps == 25
    recipe = make_recipe(Options(["d"], "m", "o", train="lora", prompts="box", steps=10, rounds=1), 100)
    assert (recipe.train, recipe.boxes, recipe.rounds, recipe.steps, recipe.warmup) == ("lora+decoder", 1.0, 1, 10, 2)
    assert recipe.layer_decay == 1.0
    assert make_recipe(options, 100, devices=8).batch == 8 and make_recipe(options, 100, devices=2).batch == 4
    with pytest.raises(InputError, match="--batch 6 cannot be shared by 4 devices"):
        make_recipe(Options(["d"], "m", "o", batch=6), 100, devices=4)


@pytest.mark.parametrize("kinds, point, box, score", [
    (("point", "box"), 50.0, 75.0, 62.5),  # nothing is lost
    (("point", "box"), 50.0, 72.0, 61.0 - 2.0),  # two points of boxes: their mean falls by 1, and that thrice
    (("point",), 50.0, 60.0, 50.0), (("box",), 0.0, 73.0, 73.0 - 2.0)])
def test_what_is_lost_counts_three_times(kinds, point, box, score):
    start = {"point": 40.0, "point_oracle": 60.0, "box": 74.0}
    found = finetune.weighed({"point": point, "point_oracle": 65.0, "box": box, "objects": 9}, start, kinds)
    assert found == {"score": pytest.approx(score), "point": point, "point_oracle": 65.0, "box": box}


def test_table():
    score = {"point": 10.0, "point_oracle": 20.04, "box": 30.0, "pictures": 3, "objects": 7}
    text = finetune.table({"untuned": {"a": score}, "tuned": {"a": score | {"point": 22.5}}})
    assert text.splitlines()[2].split() == ["one", "point", "10.0", "22.5", "+12.5"]
