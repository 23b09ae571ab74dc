"""Records of the experiments: how they go on, what they refuse, whose they say they are; bad input."""

import json

import numpy as np
import pytest
import records
import suite
from PIL import Image
from records import Record

from samjax.errors import InputError

MODEL = {"name": "toy", "architecture": "toy", "sha256": "0" * 64}
OLD = {"model": MODEL, "settings": {"split": "val"}, "versions": {"jax": "1"}, "commit": "old", "columns": ["a"],
       "sets": {"one": {"domain": "other", "seconds": 1, "pictures": {"p0": {"a": 1}, "p2": {"failed": "why"}}}}}


class Source:
    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number

    def item_name(self, place):
        return f"p{place}"

    def names(self):
        return [self.item_name(place) for place in range(self.number)]


@pytest.fixture
def now(monkeypatch):
    """What this run is made with."""
    stamp = {"commit": "new", "versions": {"jax": "2"}, "machine": {}}
    monkeypatch.setattr(Record, "now", stamp)
    return stamp


def opened(path, number=4, **settings):
    stamp = {"model": MODEL, "settings": {"split": "val", "columns": ["a"], **settings}}
    record = Record.open(path, stamp, lambda found: {"total": sum(map(records.count, found["sets"].values()))})
    record.group("one", domain="other", of=number)
    return record


def made(record):
    return [(each["commit"], each["pictures"]) for each in record.found["made"]]


def fill(record, number=4, work=lambda name, source, place: {"a": place}, images=0):
    source = Source(number)
    suite.each_picture([("one", source, suite.places_of(source, images))], record, work)
    return record


def test_an_older_record_goes_on(tmp_path, now):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(OLD))
    record = opened(path)
    assert made(record) == [("old", 1)] and record.found["made"][0]["note"] and "commit" not in record.found
    record.write()  # summed up again: nothing is stamped
    assert made(opened(path)) == [("old", 1)]
    record = fill(opened(path))
    assert made(record) == [("old", 1), ("new", 3)] and record.found["total"] == 4
    assert json.loads(path.read_text()) == record.found and list(record.found)[-1] == "sets"
    assert record.found["settings"] == {"split": "val", "columns": ["a"]} and record.found["sets"]["one"]["of"] == 4
    now["commit"] = "newer"
    assert made(fill(opened(path))) == [("old", 1), ("new", 3)]
    assert made(fill(opened(path, 6), 6)) == [("old", 1), ("new", 3), ("newer", 2)]


def test_failures_are_tried_again(tmp_path, now, capsys):
    calls = []

    def work(name, source, place):
        calls.append(place)
        if place == 2:
            raise InputError(f"{tmp_path}/x is broken")
        if place == 3:
            raise FileNotFoundError(2, "No such file", "x")
        return {"a": place}

    source, path = Source(4), tmp_path / "record.json"
    record = opened(path)
    suite.each_picture([("one", source, suite.places_of(source, 0))], record, work, folder=tmp_path)
    assert suite.ended(record) == 1 and made(record) == [("new", 2)] and record.found["total"] == 2
    said = capsys.readouterr().err
    assert said.startswith("2 pictures") and "one: p2: x is broken" in said and "one: p3: No such file" in said
    calls.clear()
    assert suite.ended(fill(opened(path), work=work)) == 1 and sorted(calls) == [2, 3]
    record = fill(opened(path))
    capsys.readouterr()
    assert suite.ended(record) == 0 and made(record) == [("new", 4)] and not capsys.readouterr().err


def test_others_are_refused(tmp_path, now):
    path = tmp_path / "record.json"
    fill(opened(path))
    for change in ({"split": "train"}, {"columns": ["b"]}, {"seed": 1}):
        if change == {"seed": 1}:  # was not recorded: counts as what it is now, and is recorded from then on
            opened(path, **change).write()
            change = {"seed": 2}
        with pytest.raises(InputError, match=f"was made with {next(iter(change))} .* --redo"):
            opened(path, **change)
    with pytest.raises(InputError, match="model sha256"):
        Record.open(path, {"model": {**MODEL, "sha256": "1"}, "settings": {}}, dict)
    with pytest.raises(InputError, match="are not among those given, such as p3"):
        fill(opened(path, seed=1), 3)
    for text in ("{", "[]", "{}", '{"sets": {}}', '{"settings": {}, "sets": {"a": {"pictures": 3}}}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"record\.json"):
            opened(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        opened(path)


def test_a_part_of_the_pictures_is_spread():
    assert suite.places_of(Source(8), 0) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert sorted(suite.places_of(Source(160), 50)) == [i * 160 // 50 for i in range(50)]
    for number in (1, 2, 7, 100, 160):
        places = suite.places_of(Source(number), 0)
        assert sorted(places) == list(range(number))
        for first in range(1, number):  # the largest gap is less than four times the mean one
            assert max(np.diff([-1, *sorted(places[:first]), number])) < 4 * number / first + 2
    assert suite.places_of(Source(0), 0) == []


def test_bad_input_is_one_line(tmp_path, capsys):
    import detections
    import domains
    import edges
    import proposals
    import protocols
    import resolution
    import robustness
    import scores_val
    import tuned
    import weaknesses

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    nowhere, strange = str(tmp_path / "nowhere"), str(tmp_path / "strange.json")
    (tmp_path / "strange.json").write_text('{"a": 1}')
    for main, words, said in (
            (edges.main, [nowhere], "nowhere"), (proposals.main, [nowhere], "nowhere"),
            (proposals.main, [nowhere, "--presets", "x"], "no preset is called x"),
            (scores_val.main, [nowhere], "nowhere"), (scores_val.main, [strange], "not as the official scores"),
            (detections.main, [nowhere], "nowhere"), (detections.main, [nowhere, "--limit", "x"], "0 or more"),
            (tuned.main, ["x"], "NAME=FILE"),
            (tuned.main, ["a=b", "--before", nowhere], "nowhere"), (protocols.main, [nowhere], "no such folder"),
            (protocols.main, [str(tmp_path)], "no set"), (domains.main, [nowhere, "--images", "-1"], "0 or more"),
            (resolution.main, [nowhere, "--sizes", "512,500"], "multiples of 16"),
            (robustness.main, [nowhere, "--kinds", "fog"], "no corruption is called fog"),
            (weaknesses.main, [nowhere, "--sheet", str(tmp_path / "full")], "holds other files")):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr("sys.argv", ["x", *words])
            suite.run(main)
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and said in err and err.count("\n") == 1 and not out, (words, err)
    assert (tmp_path / "full" / "mine.txt").exists()


def one_set(root, name="one", number=3, split="val"):
    """A folder whose pictures each have a bright square."""
    random = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / name / part).mkdir(parents=True)
    items = []
    for i in range(number):
        pixels, mask = random.integers(0, 99, (32, 48, 3), np.uint8), np.zeros((32, 48), np.uint8)
        mask[4 + i : 20, 6:30] = 255
        pixels[mask > 0] += 120
        Image.fromarray(pixels).save(root / name / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / name / "masks" / f"{i}.png")
        items.append({"image": f"images/{i}.png", "mask": f"masks/{i}.png", "split": split})
    (root / name / "meta.json").write_text(json.dumps({"items": items, "kind": "binary"}))


def test_a_whole_run_and_its_second(tmp_path, monkeypatch, capsys):
    """protocols.py with a stand-in for the model's scores."""
    import protocols

    one_set(tmp_path)
    one_set(tmp_path, "other", split="train")  # has no val split
    monkeypatch.setattr(suite, "model_of", lambda name: MODEL)
    monkeypatch.setattr(suite, "loaded", lambda name: lambda: "model")
    asked = []
    monkeypatch.setattr(protocols, "scores_of", lambda sam, record, seed: asked.append(record.name) or {
        "area": [mask.area() for mask in record.objects],
        **{name: [0.5] * len(record.objects) for name in protocols.columns()[1:]}})
    out = tmp_path / "record.json"
    for images, new in ((2, 2), (2, 0), (0, 1)):
        asked.clear()
        monkeypatch.setattr("sys.argv", ["x", str(tmp_path), "--images", str(images), "--out", str(out)])
        assert protocols.main() == 0 and len(asked) == new
    found = json.loads(out.read_text())
    assert found["means"]["one"]["pictures"] == found["means"]["one"]["of"] == 3 and set(found["sets"]) == {"one"}
    said = capsys.readouterr().out
    assert found["by_size"]["small"] == {"objects": 3, **dict.fromkeys(protocols.BOXES, 0.5)}
    assert "other: passed over" in said and "2 of 3" in said and "3 of 3" in said
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path), "--out", str(out), "--seed", "1"])
    with pytest.raises(InputError, match="was made with seed 0 and not 1"):
        protocols.main()
    pytest.importorskip("matplotlib")
    import report_sections

    page = "".join(report_sections.protocols(found))
    assert page.count("<table>") == 4 and "3 of 3" in page and "refined box" in page
    for each in found["sets"]["one"]["pictures"].values():  # as older pictures are
        for key in ("refined_box", "area"):
            each.pop(key)
    assert "".join(report_sections.protocols(found)).count("<table>") == 3
