"""Edges, proposals, and what is made of records: comparisons and the report, on toy records."""

import json
import re

import edges
import numpy as np
import proposals
import pytest
import report
import report_sections
import scores_val
import suite
import tuned
import weaknesses
from PIL import Image

from samjax.errors import InputError
from samjax.evaluate import edge_maps
from samjax.evaluate.proposals import PRESETS

MODEL = {"name": "toy", "architecture": "toy", "sha256": "0" * 64}


def run(monkeypatch, main, *words) -> int:
    monkeypatch.setattr("sys.argv", ["x", *map(str, words)])
    return main()


@pytest.fixture
def segmented(tmp_path):
    """A folder of four pictures in two halves, with two annotators each."""
    folder = tmp_path / "halves"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    items = []
    for i in range(4):
        ids = np.ones((30, 40), np.uint16)
        ids[:, 15 + i :] = 2
        Image.fromarray((ids * 60).astype(np.uint8)).convert("RGB").save(folder / "images" / f"{i}.png")
        for k in range(2):
            Image.fromarray(ids).save(folder / "masks" / f"{i}_{k}.png")
        items.append({"image": f"images/{i}.png", "mask": [f"masks/{i}_{k}.png" for k in range(2)],
                      "split": "train" if i == 3 else "val"})
    (folder / "meta.json").write_text(json.dumps({"items": items}))
    return folder


def older_edges(found: dict) -> dict:
    """As edges.json was written at first."""
    methods = {name: {key: value for key, value in one.items() if key not in ("of", "seconds")} | {
        "summary": {"pictures": len(one["pictures"])}} for name, one in found["methods"].items()}
    settings, stamp = found["settings"], found["made"][0]
    return {"methods": methods, "paper": found["paper"], "thresholds": settings["thresholds"],
            "tolerance": settings["tolerance"], "versions": stamp["versions"], "commit": stamp["commit"]}


def test_edges_go_on_and_refuse(segmented, tmp_path, monkeypatch, capsys):
    out = tmp_path / "edges.json"
    words = segmented, "--out", out, "--split", "val", "--methods"
    assert run(monkeypatch, edges.main, *words, "sobel") == 0
    assert run(monkeypatch, edges.main, *words, "canny", "--images", 2) == 0
    found = json.loads(out.read_text())
    assert [(one["pictures"], one["of"]) for one in found["summary"].values()] == [(3, 3), (2, 3)]
    assert found["common"]["pictures"] == 2 and found["summary"]["sobel"]["ods"] > 0.9
    assert [each["pictures"] for each in found["made"]] == [5]
    assert "the pictures that all have" in capsys.readouterr().out
    both = [edges.counts_of(found["methods"]["sobel"], found["methods"]["canny"]["pictures"])]
    assert len(both[0]) == 2 and found["common"]["methods"]["sobel"] == edges.scores(both[0])

    out.write_text(json.dumps(older_edges(found)))
    with monkeypatch.context() as patch:
        patch.setattr(edge_maps, "sobel", None)  # is not called: all of its pictures are there
        assert run(patch, edges.main, *words, "sobel") == 0
    assert [each["pictures"] for each in json.loads(out.read_text())["made"]] == [5]
    assert run(monkeypatch, edges.main, *words, "canny") == 0
    again = json.loads(out.read_text())
    assert again["settings"] == found["settings"] and "common" in again
    assert [each["pictures"] for each in again["made"]] == [5, 1] and again["made"][0]["note"]
    assert again["methods"]["sobel"]["pictures"] == found["methods"]["sobel"]["pictures"]
    assert not edges.differ(again) and "seconds" not in again["methods"]["sobel"]

    with pytest.raises(InputError, match="made with split val and not None"):
        run(monkeypatch, edges.main, segmented, "--out", out)
    older = older_edges(again)  # does not say of which split it is
    out.write_text(json.dumps(older))
    with pytest.raises(InputError, match="not among those given"):
        run(monkeypatch, edges.main, segmented, "--out", out, "--split", "train", "--methods", "canny")
    for name, value in (("SOBEL_SIGMA", 3.0), ("CANNY_LOW", 0.5)):
        with pytest.raises(InputError, match="sobel, sigma 2.0 and not 3.0|canny, low 0.4 and not 0.5"), \
                monkeypatch.context() as patch:
            patch.setattr(edge_maps, name, value)
            run(monkeypatch, edges.main, *words, "sobel", "canny")


def test_edges_of_a_broken_picture_and_a_poor_method(segmented, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "edges.json"
    (segmented / "images" / "1.png").write_bytes(b"no picture")
    monkeypatch.setattr(edge_maps, "sobel", lambda pixels: np.ones(pixels.shape[:2], np.float32) * (
        np.arange(pixels.shape[1]) < 5))  # nothing of it is right: R50 is no number
    assert run(monkeypatch, edges.main, segmented, "--out", out, "--methods", "sobel") == 1
    found = json.loads(out.read_text())
    assert found["summary"]["sobel"]["pictures"] == 3 and found["summary"]["sobel"]["r50"] is None
    assert "1 pictures could not be scored" in capsys.readouterr().err
    assert "3 of 4" in "".join(report_sections.edges(found))


def fake_propose(sam, record, settings):
    from samjax.evaluate.proposals import Found

    ranks = np.zeros((4, 10, 1), int)
    return Found(ranks, np.array([[True], [True], [False], [False]]), np.array([0.7]), np.array([100]), 5)


def older_proposals(found: dict) -> dict:
    """As proposals.json was written at first."""
    return {"model": found["model"]["name"], "sha256": found["model"]["sha256"], "pictures": [
        {"set": one["set"], "preset": one["preset"], "picture": picture, **row} for one in found["sets"].values()
        for picture, row in one["pictures"].items()], "summary": [], "versions": {}, "commit": "old"}


def test_proposals_go_on_and_refuse(segmented, tmp_path, monkeypatch):
    out = tmp_path / "proposals.json"
    monkeypatch.setattr(suite, "model_of", lambda name: MODEL)
    monkeypatch.setattr(suite, "loaded", lambda name: lambda: "model")
    monkeypatch.setattr("samjax.evaluate.proposals.propose", fake_propose)
    words = segmented, "--out", out, "--presets", "quick,default", "--images"
    assert run(monkeypatch, proposals.main, *words, 2) == 0
    found = json.loads(out.read_text())
    row, = [row for row in found["summary"] if row["preset"] == "quick"]
    assert (row["pictures"], row["of"], row["ar_10"], row["ar_1000_large"]) == (2, 3, 100.0, None)
    assert found["sets"]["halves, quick"]["settings"] == PRESETS["quick"]

    out.write_text(json.dumps(older_proposals(found)))
    assert run(monkeypatch, proposals.main, *words, 3) == 0
    again = json.loads(out.read_text())
    assert [each["pictures"] for each in again["made"]] == [4, 2] and again["summary"][0]["pictures"] == 3
    assert found["sets"]["halves, quick"]["pictures"].items() <= again["sets"]["halves, quick"]["pictures"].items()
    assert "3 of 3" in "".join(report_sections.proposals(again))
    assert "2 of ?" in "".join(report_sections.proposals(older_proposals(found)))

    with pytest.raises(InputError, match="split val and not train"):
        run(monkeypatch, proposals.main, *words, 3, "--split", "train")
    with monkeypatch.context() as patch, pytest.raises(InputError, match="halves, quick, settings"):
        patch.setitem(PRESETS, "quick", {"points_per_side": 8})
        run(monkeypatch, proposals.main, *words, 3)
    monkeypatch.setattr(suite, "model_of", lambda name: MODEL | {"sha256": "1" * 64})
    with pytest.raises(InputError, match="model sha256"):
        run(monkeypatch, proposals.main, *words, 3)
    out.write_text('{"a": 1}')
    with pytest.raises(InputError, match="no record"):
        run(monkeypatch, proposals.main, *words, 3)


def objects(box: float, number: int = 3) -> dict:
    """A record of weaknesses.py: two sets, of each so many pictures with two objects."""
    row = lambda i, score: [i, 1500 * (i + 1), 0, 0, 30, 50, 10 + i, 20, 0.01, 12.0, 0.9, 1.2 if i else 30.0,
                            score, score, score, 0.9, 0.8]
    sets = {name: {"domain": "other", "of": 3, "seconds": 1, "pictures": {
        f"{k}.png": [row(i, min(1, box + 0.1 * i)) for i in range(2)] for k in range(number)}}
        for name in ("mine", "coco128seg")}
    settings = {"split": "val", "columns": list(weaknesses.COLUMNS)}
    found = {"model": MODEL, "settings": settings, "made": [], "sets": sets}
    return found | weaknesses.summed_up(found, 2, 3)


def test_weaknesses_are_summed_up():
    found = objects(0.5)
    json.dumps(found, allow_nan=False)
    thin, = [one for one in found["strata"]["thinness"] if one["low"] == 20]
    assert thin["objects"] == 6 and thin["ece_box"] == pytest.approx(0.3) and thin["ece_point"] == pytest.approx(0.4)
    assert found["means"]["mine"]["of"] == 3 and found["means"]["mine"]["ece"]["box"] == pytest.approx(0.25)
    assert [each["box"] for each in found["worst"]] == [0.5, 0.5]
    text = weaknesses.report(found)
    assert "3 of 3" in text and re.search(r"≥ 20 +6 .* 40\.0 +30\.0", text)


def test_a_sheet_replaces_only_a_sheet(tmp_path):
    for folder in ("new", "empty", "sheet"):
        (tmp_path / folder).mkdir() if folder != "new" else None
        (tmp_path / folder / "worst.json").touch() if folder == "sheet" else None
        weaknesses.refuse(tmp_path / folder)
    (tmp_path / "file").touch()
    for other in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="other files"):
            weaknesses.refuse(other)


def test_tuned_models_are_compared(tmp_path, monkeypatch, capsys):
    for name, found in (("before", objects(0.5)), ("after", objects(0.7, 2)), ("other", objects(0.7))):
        if name == "other":
            found["settings"]["split"] = "train"
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    words = "--before", tmp_path / "before.json", "--out", tmp_path / "tuned.json"
    assert not run(monkeypatch, tuned.main, f"mine={tmp_path / 'after.json'}", *words)
    model = json.loads((tmp_path / "tuned.json").read_text())["models"]["mine"]
    one = model["sets"]["mine"]
    assert (one["objects"], one["of"], model["all"]["objects"], model["all"]["of"]) == (4, 6, 8, 12)
    assert one["before"]["box"] == pytest.approx(0.55) and one["after"]["box"] == pytest.approx(0.75)
    assert one["after"]["ece_box"] == pytest.approx(0.05) and model["strata"]["after"]["thinness"][-1]["objects"] == 2
    assert "4 of 6" in capsys.readouterr().out
    with pytest.raises(InputError, match="split val, but .* of train"):
        run(monkeypatch, tuned.main, f"mine={tmp_path / 'other.json'}", *words)
    page = "".join(report_sections.tuned({"models": {"mine": model}}))
    assert page.count("<table>") == 1 + len(model["strata"]["before"]) and "coco128seg" in page and "4 of 6" in page
    with pytest.raises(InputError, match="no object in common"):
        tuned.compared([], weaknesses.objects_of(objects(0.5)))


def test_scores_beside_the_official_ones():
    found = objects(0.5)
    columns = ["image", "split", "area", "x", "y", "iou_point_confident", "iou_point_oracle", "iou_box"]
    rows = [[f"{k}.png", "val", 1500 * (i + 1), 10 + i, 20, *[0.5 + 0.1 * i] * 3] for k in (2, 0, 1) for i in (0, 1)]
    rows[3][-1] -= 0.003
    official = {"mine": {"objects": 6, "point_confident": 0.55, "point_oracle": 0.55, "box": 0.5495, "columns": columns,
                         "rows": rows}, "elsewhere": {"objects": 1}}
    made = scores_val.compared(found, official)
    one = made["sets"]["mine"]
    assert one["worst_mean"] == pytest.approx(0.05) and one["objects_off_by_0.1"] == 1
    assert one["worst_object"] == {"picture": "0.png", "object": 1, "difference": 0.3} and made["worst"]["mean"] == 0.05
    assert made["left_out"] == ["elsewhere"] and made["model"] == MODEL and one["by_size"]["medium"]["objects"] == 6
    assert "3 of 3" in scores_val.report(made) and "0.300" in scores_val.report(made)
    found["sets"]["mine"]["of"] = 4
    with pytest.raises(InputError, match="no set whole"):
        scores_val.compared(found, official)
    found["sets"]["mine"]["of"], official["mine"]["rows"] = 3, rows[1:]
    with pytest.raises(InputError, match="6 objects, but 5"):
        scores_val.compared(found, official)


def test_report_of_all_that_is_committed(tmp_path):
    """The first sections are of results that there are; a record says by what its parts were made."""
    assert {name for name in report.FIRST if (suite.RESULTS / f"{name}.json").exists()} == set(report.FIRST)
    pytest.importorskip("matplotlib")
    assert set(report.FIRST) <= set(report_sections.KNOWN)
    found = objects(0.5) | {"made": [{"commit": "a" * 40, "versions": {"jax": "1"}, "machine": {"cores": 2},
                                      "pictures": 5, "note": "older"}, {"commit": "b" * 40, "versions": {"jax": "2"},
                                                                        "machine": {}, "pictures": 1}]}
    page = report.section("weaknesses", found, tmp_path)
    assert "jax 1, commit aaaaaaaaa, 2 cores, 5 pictures (older) · jax 2, commit bbbbbbbbb, 1 pictures" in page
    assert "3 of 3" in page and "ECE, point" in page
