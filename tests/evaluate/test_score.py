"""`score` and `samjax evaluate`: against the predictor and plain NumPy, and against the official scores."""

import dataclasses
import json
import os

import numpy as np
import pytest
from conftest import SMALL_VIT, random_params
from PIL import Image

import convert
from convert.tensor import Tensor
from samjax.cli import main
from samjax.data import Part, Record, open_source
from samjax.errors import InputError
from samjax.evaluate import embed, score
from samjax.predict import Sam

PICTURES = {"a": (50, 70), "b": (64, 96), "c": (90, 40)}  # h, w


@pytest.fixture(scope="module")
def sam(small_vit):
    return Sam(*small_vit)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pictures; one mask each of ids, one object of which is too small."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for name, (h, w) in PICTURES.items():
        Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)).save(root / "images" / f"{name}.png")
        ids = np.zeros((h, w), np.uint16)
        ids[3:20, 5:30], ids[25:45, 8:36], ids[30:35, 14:20], ids[46:49, 0:10] = 1, 2, 3, 4
        Image.fromarray(ids).save(root / "masks" / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def source(folder):
    return open_source(folder)


def plain_iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def test_scores_are_those_of_whole_masks(sam, source):
    report = score(sam, source)
    assert report.names == ["point", "point_oracle", "box"] and report.pictures == 3 and not report.failures
    rows, expected = iter(report.rows), []
    for record in source:
        embedding = sam.encode(record.image)
        assert len(record.objects) == 2
        for number, mask in enumerate([found.mask() for found in record.objects]):
            row = next(rows)
            assert (row.image, row.object, row.area) == (record.name, number, mask.sum())
            (x, y, label), = row.clicks
            assert mask[y, x] and label == 1
            ys, xs = np.nonzero(mask)
            assert row.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            three = sam.segment(embedding, points=[[x, y]], labels=[1])
            single = sam.segment(embedding, boxes=row.box, multimask=False)
            ious = [plain_iou(found, mask) for found in three.masks[0]]
            expected.append((ious[three.best[0]], max(ious), plain_iou(single.masks[0, 0], mask)))
            assert tuple(row.scores[name] for name in report.names) == pytest.approx(expected[-1], abs=1e-12)
            assert row.scores["point_predicted"] == pytest.approx(three.iou.max(), abs=1e-5)
            assert row.scores["box_predicted"] == pytest.approx(single.iou[0, 0], abs=1e-5)
    assert next(rows, None) is None
    assert tuple(report.summary().values()) == pytest.approx(np.mean(expected, axis=0))
    assert report.by_size() == {"small": {"objects": 6, **report.summary()}}
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["columns"][5:8] == report.names and len(found["rows"]) == found["objects"] == 6


def test_further_points_are_fed_the_answer(sam, source):
    report = score(sam, source.select([0]), ("point",), points=(3, 1))
    assert report.names == ["point", "point_oracle", "point_3", "point_3_oracle"]
    record = source[0]
    embedding = sam.encode(record.image)
    for row, mask in zip(report.rows, record.objects):
        fed, three = None, True
        for count in (1, 2, 3):
            points, labels = [click[:2] for click in row.clicks[:count]], [click[2] for click in row.clicks[:count]]
            out = sam.segment(embedding, points=points, labels=labels, mask_logits=fed, multimask=three)
            fed, three = out.logits[0, out.best[0]], False
            answer = out.masks[0, out.best[0]]
            if count < 3:
                x, y, label = row.clicks[count]
                assert answer[y, x] != mask.mask()[y, x] == label
        assert row.scores["point_3"] == pytest.approx(plain_iou(answer, mask.mask()), abs=1e-12)
        assert row.scores["point_3_oracle"] >= row.scores["point_3"]


def test_embeddings_stand_in_for_pictures(sam, source):
    held, whole = embed(sam, source), score(sam, source)
    assert sorted(held) == sorted(source.names()) and isinstance(held[source.item_name(0)].features, np.ndarray)

    def closed():
        raise AssertionError("the picture was read")

    records = [dataclasses.replace(record, open=closed) for record in source]
    features = [dataclasses.replace(record, features=lambda held=held[record.name]: (held.features[0], (9, 9)))
                for record in records]
    for report in (score(sam, records, embeddings=held), score(sam, features)):
        assert report.summary() == pytest.approx(whole.summary(), abs=1e-6)
        assert [row.clicks for row in report.rows] == [row.clicks for row in whole.rows]
    other = {name: dataclasses.replace(each, features=each.features[..., :8]) for name, each in held.items()}
    with pytest.raises(InputError, match="another model"):
        score(sam, records, embeddings=other)


def test_a_limit_is_spread_over_the_source(sam, source):
    seen = []
    report = score(sam, source, ("box",), limit=2, progress=lambda done, total: seen.append((done, total)))
    assert [row.image for row in report.rows] == [source.item_name(0)] * 2 + [source.item_name(1)] * 2
    assert seen == [(1, 2), (2, 2)] and report.names == ["box"] and not report.rows[0].clicks
    assert score(sam, source, ("box",), limit=99).pictures == 3
    with pytest.raises(InputError, match="limit"):
        score(sam, source, limit=0)


def test_chance_depends_on_seed_and_object_alone(sam, source):
    found = [score(sam, source.select(places), prompts, first="random", box_noise=0.1, seed=seed)
             for places, prompts, seed in (([0, 1], ("point", "box"), 0), ([1], ("point",), 0), ([1], ("box",), 0),
                                           ([1], ("point", "box"), 1))]
    rows = [{(row.image, row.object): row for row in report.rows} for report in found]
    for key in rows[1]:
        assert rows[0][key].clicks == rows[1][key].clicks
        assert rows[0][key].scores["box"] == rows[2][key].scores["box"]
    assert any(rows[0][key].clicks != rows[3][key].clicks for key in rows[3])
    exact = score(sam, source.select([1]), ("box",))
    assert exact.rows[0].scores != rows[2][exact.rows[0].image, 0].scores


def test_more_objects_than_one_call_takes(sam):
    random = np.random.default_rng(1)
    objects = [Part((64, 96), np.ones((6, 6), bool), (int(x), int(y)))
               for x, y in zip(random.integers(0, 90, 70), random.integers(0, 58, 70))]
    picture = Image.fromarray(random.integers(0, 256, (64, 96, 3), np.uint8))
    report = score(sam, [Record("many", lambda: picture, objects)], ("box",))
    assert [row.object for row in report.rows] == list(range(70))
    alone = score(sam, [Record("one", lambda: picture, objects[69:])], ("box",))
    assert report.rows[69].scores == pytest.approx(alone.rows[0].scores, abs=1e-5)


def test_what_cannot_be_read_is_named(sam, source):
    def broken():
        raise InputError("x.png is no picture")

    short = [Part((9, 9), np.ones((9, 9), bool))]
    empty = Record("empty", broken, [])  # is not even read
    records = [source[0], dataclasses.replace(source[1], open=broken), dataclasses.replace(source[2], objects=short),
               empty]
    report = score(sam, records, ("box",))
    assert report.pictures == 2 and len(report.rows) == 2
    assert [name for name, _ in report.failures] == [source.item_name(1), source.item_name(2)]
    assert "no picture" in report.failures[0][1] and "9 x 9" in report.failures[1][1]
    with pytest.raises(InputError, match="no objects.*x.png"):
        score(sam, records[1:])


# -- the command line -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    params = random_params(SMALL_VIT)
    tensors = {name: Tensor.of(np.asarray(array)) for name, array in convert.flatten(params).items()}
    convert.write(path, convert.Model(SMALL_VIT, tensors))
    return os.fspath(path)


def evaluate(folder, model, *args):
    return main(["evaluate", os.fspath(folder), "--model", model, *args])


def test_a_table_and_a_file(sam, source, folder, model, tmp_path, capsys):
    assert evaluate(folder, model, "--points", "2,1", "--out", str(tmp_path / "scores.json")) == 0
    out, err = capsys.readouterr()
    header, row = (line.split("  ") for line in out.splitlines())
    words = [word.strip() for word in header if word.strip()]
    assert not err and words == ["set", "pictures", "objects", "1 point", "1 oracle", "2 points", "2 oracle", "box",
                                 "box small", "box medium", "box large"]
    report = score(sam, source, points=(1, 2))
    numbers = [f"{100 * mean:.1f}" for mean in report.summary().values()]
    assert [word.strip() for word in row if word.strip()] == [folder.name, "3", "6", *numbers, numbers[-1], "-", "-"]
    found = json.loads((tmp_path / "scores.json").read_text())
    assert os.listdir(tmp_path) == ["scores.json"]
    assert len(found["model"]["sha256"]) == 64 and found["versions"]["samjax"] and "commit" in found
    assert found["sets"][0]["summary"] == {name: round(mean, 6) for name, mean in report.summary().items()}
    assert found["settings"]["points"] == [1, 2] and len(found["sets"][0]["rows"]) == 6


def test_json_is_all_that_is_printed(folder, model, capsys):
    assert evaluate(folder, model, "--prompt", "box", "--limit", "1", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert not err and found["settings"]["prompts"] == ["box"] and found["sets"][0]["pictures"] == 1
    assert "point" not in found["sets"][0]["summary"]


def test_everything_beside_boxes(folder, model, capsys):
    assert evaluate(folder, model, "--prompt", "box", "--prompt", "everything", "--limit", "1", "--preset", "fast",
                    "--json") == 0
    found = json.loads(capsys.readouterr()[0])
    assert found["settings"]["prompts"] == ["box", "everything"] and found["settings"]["preset"] == "fast"
    assert set(found["sets"][0]["summary"]) == {"box", "everything"} and len(found["sets"][0]["rows"]) == 2


def test_a_broken_picture_is_named_and_the_rest_is_scored(folder, model, tmp_path, capsys):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for name in PICTURES:
            data = (folder / part / f"{name}.png").read_bytes()
            (tmp_path / part / f"{name}.png").write_bytes(data[:60] if (part, name) == ("images", "b") else data)
    assert evaluate(tmp_path, model, "--prompt", "box") == 1
    out, err = capsys.readouterr()
    assert "images/b.png" in err and len(err.splitlines()) == 1 and out.splitlines()[1].split()[1:3] == ["2", "4"]


def test_what_was_scored_outlives_what_cannot_be(folder, model, tmp_path, capsys):
    (tmp_path / "empty" / "images").mkdir(parents=True)
    (tmp_path / "empty" / "masks").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "empty" / "images" / "a.png")
    Image.new("L", (9, 9)).save(tmp_path / "empty" / "masks" / "a.png")
    empty, out = str(tmp_path / "empty"), tmp_path / "scores.json"
    assert main(["evaluate", str(folder), empty, "--model", model, "--prompt", "box", "--out", str(out)]) == 1
    printed, err = capsys.readouterr()
    assert "empty" in err and "no objects" in err and len(err.splitlines()) == 1
    assert len(printed.splitlines()) == 2
    found = json.loads(out.read_text())
    assert [one["objects"] for one in found["sets"]] == [6] and len(found["refused"]) == 1
    assert main(["evaluate", empty, "--model", model, "--prompt", "box"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("args, word", [
    (["--prompt", "text"], "none of point, box"),
    (["--prompt", "everything", "--preset", "slow"], "preset"), (["--preset", "fast"], "--prompt everything"),
    (["--prompt", "point", "--refine"], "--prompt box"), (["--prompt", "box", "--points", "1,2"], "--prompt point"),
    (["--points", "0"], "1,2,3,5,9"), (["--points", "one"], "1,2,3,5,9"), (["--limit", "0"], "limit"),
    (["--box-noise", "3"], "share"), (["--seed", "-1"], "seed"), (["--split", "test"], "split"),
    (["--out", "."], "directory"), (["--out", "/dev/null/x/y.json"], "write"), (["--model", "nothing"], "nothing")])
def test_mistakes_are_one_line(folder, model, args, word, capsys):
    assert evaluate(folder, model, *args) == 2
    out, err = capsys.readouterr()
    assert not out and word in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("data", ["missing", "model"])
def test_data_that_are_none(data, model, tmp_path, capsys):
    assert evaluate(tmp_path / "missing" if data == "missing" else model, model) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# -- the real thing -------------------------------------------------------------------------------------------


@pytest.mark.weights
@pytest.mark.parametrize("name", ["busi", "camo_sample"])
def test_scores_equal_the_official_ones(mobile_sam, reference, name):
    data = reference / "datasets" / name
    if not data.is_dir():
        pytest.skip("SAMJAX_REFERENCE has no datasets/")
    golden = json.loads((reference / "golden" / "scores_val.json").read_text())[name]
    source = open_source(data, "val")
    report = score(mobile_sam, source, embeddings={record.name: mobile_sam.encode(record.image) for record in source})
    names = {"point": "iou_point_confident", "point_oracle": "iou_point_oracle", "box": "iou_box"}
    for row, values in zip(report.rows, golden["rows"], strict=True):
        official = dict(zip(golden["columns"], values))
        assert (row.image, row.area) == (official["image"], official["area"])
        assert row.clicks == [(official["x"], official["y"], 1)]
        for ours, theirs in names.items():
            assert row.scores[ours] == pytest.approx(official[theirs], abs=1e-3)
    for ours, theirs in {"point": "point_confident", "point_oracle": "point_oracle", "box": "box"}.items():
        assert report.summary()[ours] == pytest.approx(golden[theirs], abs=2e-4)
