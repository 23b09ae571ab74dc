"""Masks from a detector's boxes: against pycocotools, and against `Sam.segment` box by box."""

import contextlib
import hashlib
import io
import json
import os

import numpy as np
import pytest
from conftest import SMALL_VIT, random_params
from PIL import Image
from plain import masks_of_boxes
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import convert
from convert.tensor import Tensor
from samjax import rle
from samjax.cli import main
from samjax.data import Instances, Part, Results, open_source
from samjax.errors import InputError
from samjax.evaluate import detections, precision, score_detections
from samjax.evaluate.proposals import overlaps
from samjax.geometry import mask_to_logits, masks_to_image, target_size
from samjax.predict import Sam

NAMES = ("ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large")


def encoded(mask):
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def by_coco(content, found):
    """The official numbers: AP by threshold and size and AR, by our names. found: results with segmentations, and
    without boxes, whose areas would count in place of the masks'."""
    truth = COCO()
    truth.dataset = json.loads(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(json.loads(json.dumps(found))), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    stats = np.where(judge.stats < 0, np.nan, judge.stats)
    return dict(zip(NAMES, stats)) | dict(zip(("ar", "ar_small", "ar_medium", "ar_large"), stats[8:]))


# -- the measure ----------------------------------------------------------------------------------------------


def shapes(random, n, side):
    """Of all sizes."""
    return masks_of_boxes(random, n, side, (1, side))


def a_set(random, pictures, objects, found, side):
    """A random set and results with masks: equal scores, crowds, areas that are not the pixels', empty pictures."""
    content = {"images": [{"id": 9 - i, "height": side, "width": side} for i in range(pictures)], "annotations": [],
               "categories": [{"id": 1}, {"id": 5}, {"id": 7}]}
    results = []
    for i in range(pictures):
        truths = shapes(random, random.integers(0, objects + 1), side)
        for mask in truths:
            content["annotations"].append({
                "id": len(content["annotations"]) + 1, "image_id": 9 - i, "category_id": int(random.choice([1, 5])),
                "segmentation": encoded(mask), "area": float(mask.sum() * random.choice([1, 1.2])),
                "iscrowd": int(random.random() < 0.25), "bbox": [0, 0, 1, 1]})
        moved = [np.roll(truths[random.integers(len(truths))], random.integers(-3, 4, 2), axis=(0, 1))
                 for _ in range(random.integers(0, found)) if len(truths)]
        for mask in [*moved, *shapes(random, 3, side)]:
            results.append({"image_id": 9 - i, "category_id": int(random.choice([1, 5, 7])),
                            "segmentation": encoded(mask), "score": float(random.integers(0, 9) / 8)})
    return content, results


def ours(content, results, most=100):
    """The same by `precision`, in the plainest way."""
    curves = []
    for category in content["categories"]:
        matches = []
        for image in sorted(image["id"] for image in content["images"]):
            here = lambda each: (each["image_id"], each["category_id"]) == (image, category["id"])  # noqa: B023
            truths = [each for each in content["annotations"] if here(each)]
            found = sorted(filter(here, results), key=lambda each: -each["score"])[:most]
            counts = [rle.to_counts(each["segmentation"])[0] for each in found]
            masks = [rle.to_mask(each["segmentation"]) for each in truths]
            crowds = np.array([each["iscrowd"] for each in truths], bool)
            ious = overlaps(counts, [Part(mask.shape, mask) for mask in masks], crowds)
            if found or truths:
                matches.append(precision.match(
                    ious, np.array([each["score"] for each in found]), np.array([rle.area(each) for each in counts]),
                    np.array([each["area"] for each in truths]), crowds))
        if matches:
            curves.append(precision.curve(matches))
    return precision.summary(curves)


@pytest.mark.parametrize("seed", range(8))
def test_precision_is_coco_s(seed):
    random = np.random.default_rng(seed)
    case = a_set(random, 6, 6, 40, 120) if seed < 4 else a_set(random, 7, 4, 12, 4)  # few pixels: ties
    expected, found = by_coco(*case), ours(*case)
    assert expected["ap_50"] > 0 or seed == 4
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_of_a_category_a_hundred_count():
    random = np.random.default_rng(3)
    content, results = a_set(random, 2, 8, 500, 40)
    assert len(results) > 500
    assert ours(content, results) == pytest.approx(by_coco(content, results), abs=1e-12, nan_ok=True)


def test_a_crowd_is_neither_right_nor_wrong():
    square, half = np.zeros((2, 40, 40), bool)
    square[:20, :20] = half[:10, :20] = True
    ious = overlaps([rle.encode(half), rle.encode(half)], [Part(square.shape, square)] * 2, [True, False])
    assert ious.tolist() == [[1, 0.5], [1, 0.5]]
    scores, areas = np.array([0.9, 0.8]), np.array([200, 200])
    matches = precision.match(ious, scores, areas, np.array([400.0, 400.0]), np.array([True, False]))
    assert matches.objects.tolist() == [1, 1, 0, 0]
    assert matches.right[0, 0].tolist() == [True, False] and not matches.right[0, 1].any()
    assert matches.ignored[0, 0].tolist() == [False, True] and matches.ignored[0, 1].all()  # the crowd takes both


def test_what_may_not_be_annotated_is_not_wrong():
    args = np.array([[0.1]]), np.array([0.9]), np.array([400]), np.array([400.0]), np.array([False])
    assert not precision.match(*args).ignored[0].any() and precision.match(*args, True).ignored.all()
    taken = precision.match(np.array([[0.99]]), *args[1:], True)
    assert taken.right[0].all() and not taken.ignored[0].any()


def test_boxes_overlap_as_boxes_do():
    a, b = np.array([[0.0, 0, 4, 2], [9, 9, 10, 10]]), np.array([[2.0, 0, 4, 4], [5, 5, 5, 5]])
    found = detections.box_overlaps(a, b)
    assert found.tolist() == [[4 / 12, 0], [0, 0]]


# -- the protocol ---------------------------------------------------------------------------------------------

SIZE = (110, 140)  # h, w
OBJECTS = {3: [(1, 5, 5, 40, 30), (1, 50, 10, 60, 70), (2, 8, 60, 20, 20)], 2: [], 7: [(1, 20, 20, 50, 50)],
           1: [(2, 2, 2, 136, 100), (1, 4, 50, 36, 40)]}  # by picture: category, x, y, width, height


def polygon(x, y, w, h):
    """A box without one corner."""
    return [[x, y, x + w, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of four pictures, one without objects and one without detections, with a crowd; and a detector's boxes."""
    root, random = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    (root / "images").mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "spoon"}]}
    results = []
    for image, objects in OBJECTS.items():
        Image.fromarray(random.integers(0, 256, (*SIZE, 3), np.uint8)).save(root / "images" / f"{image}.png")
        content["images"].append({"id": image, "file_name": f"{image}.png", "height": SIZE[0], "width": SIZE[1]})
        for category, *box in objects:
            content["annotations"].append({
                "id": len(content["annotations"]) + 1, "image_id": image, "category_id": category, "iscrowd": 0,
                "segmentation": polygon(*box), "area": box[2] * box[3] * 0.75, "bbox": list(box)})
            if image != 7:
                for score in (0.9, 0.6):
                    moved = np.array(box) + random.integers(-3, 4, 4) * (score < 0.9)
                    results.append({"image_id": image, "category_id": category, "bbox": moved.tolist(),
                                    "score": score - len(results) / 1000})
    crowd = np.zeros(SIZE, bool)
    crowd[60:95, 30:60] = True
    content["annotations"].append({"id": 99, "image_id": 3, "category_id": 2, "iscrowd": 1, "area": int(crowd.sum()),
                                   "segmentation": {"size": list(SIZE), "counts": rle.encode(crowd).tolist()},
                                   "bbox": [30, 60, 30, 35]})
    results += [{"image_id": 3, "category_id": 2, "bbox": [31, 61, 20, 20], "score": 0.95},  # in the crowd
                {"image_id": 2, "category_id": 1, "bbox": [10, 10, 50, 50], "score": 0.65},  # there is nothing
                {"image_id": 1, "category_id": 1, "bbox": [-5, 40, 50.5, 70], "score": 0.2}]  # leaves the picture
    (root / "truth.json").write_text(json.dumps(content))
    (root / "found.json").write_text(json.dumps(results))
    return root


@pytest.fixture
def data(folder):
    truths = Instances(folder / "truth.json")
    return truths, Results(folder / "found.json", truths)


@pytest.fixture(scope="module")
def sam(small_vit):
    return Sam(*small_vit)


def drawn(config, box):
    """Logits of a box without one corner: what the oracle answers."""
    x0, y0, x1, y1 = np.asarray(box).round().astype(int)
    mask = np.zeros(SIZE, bool)
    mask[max(y0, 0):y1, max(x0, 0):x1] = True
    mask[(y0 + y1) // 2:y1, (x0 + x1) // 2:x1] = False
    return mask_to_logits(mask, config)


def oracle(asked):
    """In place of the decoder: draws what the box holds; the first round's single mask is empty."""
    def ask(sam, embedding, image_hw, boxes, mask_logits=None):
        asked.append((len(boxes), mask_logits))
        masks = np.stack([np.stack([drawn(sam.config, box)] * 4) for box in boxes])
        if mask_logits is None:
            masks[:, [0, 1, 3]] = -1
        return masks, np.tile(np.float32([0.95, 0.5, 0.9, 0.2]), (len(boxes), 1))
    return ask


def whole(config, logits):
    return masks_to_image(logits[None, None], config, target_size(*SIZE, config.image_size), SIZE)[0, 0]


def test_an_oracle_s_masks_score_as_coco_scores_them(sam, data, folder, monkeypatch):
    asked, content = [], json.loads((folder / "truth.json").read_text())
    monkeypatch.setattr(detections, "_ask", oracle(asked))
    report = score_detections(sam, *data)
    masks = [whole(sam.config, drawn(sam.config, box)) for box in data[1].boxes]
    expected = by_coco(content, [{"image_id": image, "category_id": category, "score": score,
                                  "segmentation": encoded(mask)} for image, category, score, mask
                                 in zip(data[1].images, data[1].categories, data[1].scores, masks)])
    summary = report.summary()
    assert expected["ap_50"] > 0.5 and expected["ap_large"] > 0
    assert {name: summary[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert report.pictures == 4 and not report.failures and summary["found"] == 5 / 6
    assert [n for n, _ in asked] == [7, 7, 1, 1, 5, 5]  # none for the picture without detections
    assert all((fed is None) == (i % 2 == 0) for i, (_, fed) in enumerate(asked))
    first = data[1].of(data[0].scenes[0])[0]
    assert (asked[1][1][0] == drawn(sam.config, data[1].boxes[first])).all()  # the most confident of the three
    no_second = score_detections(sam, *data, refine=False)
    assert no_second.summary()["ap"] == 0 and no_second.settings["refine"] is False and len(asked) == 9


def test_objects_are_given_the_best_box(sam, data, monkeypatch):
    monkeypatch.setattr(detections, "_ask", oracle([]))
    report, results = score_detections(sam, *data), data[1]
    assert [target.id for target in report.targets] == [1, 2, 3, 4, 5, 6]  # not the crowd
    for target in [each for each in report.targets if each.id != 4]:
        category, x, y, w, h = OBJECTS[results.images[target.detection]][{5: 0, 6: 1}.get(target.id, target.id - 1)]
        assert results.categories[target.detection] == target.category == category and target.area == 0.75 * w * h
        assert results.boxes[target.detection].tolist() == [x, y, x + w, y + h] and target.box_iou == 1
        truth, answer = data[0].scenes, whole(sam.config, drawn(sam.config, (x, y, x + w, y + h)))
        mask, = (mask.mask() for scene in truth for mask, one in zip(scene.masks(), scene.instances)
                 if one.id == target.id)
        assert target.iou == pytest.approx((mask & answer).sum() / (mask | answer).sum(), abs=1e-12)
        assert target.iou > 0.7
    assert report.targets[3].detection is report.targets[3].iou is None
    ious = [target.iou for target in report.targets if target.id != 4]
    summary, written = report.summary(), json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert summary["iou"] == pytest.approx(np.mean(ious)) and summary["iou_small"] == pytest.approx(
        np.mean([ious[i] for i in (0, 2)]))
    assert written["by_size"]["medium"]["objects"] == 3 and written["by_size"]["medium"]["found"] == 0.666667
    assert written["by_category"][0] | {"ap": 0} == {"id": 1, "name": "cup", "objects": 4, "ap": 0}
    assert len(written["rows"]["objects"]) == 6 and written["rows"]["objects"][3] == [7, 4, 1, 1875, None, None, None]
    assert written["settings"]["sha256"] == results.sha256


def test_masks_are_those_of_segment(sam, data):
    """A random model: every detection's mask and estimate, asked for by itself in two rounds."""
    truths, results = data
    rows = {row[0]: row for one in score_detections(sam, truths, results).found for row in one.rows}
    assert sorted(rows) == list(range(len(results)))
    for place in (0, 7, 10, 11, 12):
        embedding = sam.encode(truths.open([scene.id for scene in truths.scenes].index(results.images[place])))
        first = sam.segment(embedding, boxes=results.boxes[place])
        out = sam.segment(embedding, boxes=results.boxes[place], mask_logits=first.logits[0, first.best[0]],
                          multimask=False)
        _, category, box, score, predicted, area = rows[place]
        assert area == out.masks.sum() and predicted == pytest.approx(out.iou[0, 0], abs=1e-5)
        assert (category, score) == (results.categories[place], pytest.approx(results.scores[place]))
        x0, y0, x1, y1 = results.boxes[place]
        assert box == [x0, y0, x1 - x0, y1 - y0]


def test_a_limit_takes_pictures_with_what_is_of_them(sam, data, monkeypatch):
    monkeypatch.setattr(detections, "_ask", oracle([]))
    seen = []
    report = score_detections(sam, *data, limit=2, progress=lambda *at: seen.append(at))
    assert [one.image for one in report.found] == [3, 7] and seen == [(1, 2), (2, 2)] and len(report.targets) == 4
    assert [len(one.rows) for one in report.found] == [7, 0]
    with pytest.raises(InputError, match="limit"):
        score_detections(sam, *data, limit=0)


def test_more_boxes_than_one_call_takes(sam, tmp_path, folder, monkeypatch):
    asked = []
    monkeypatch.setattr(detections, "_ask", oracle(asked))
    entry = {"image_id": 3, "category_id": 1, "bbox": [5, 5, 40, 30]}
    (tmp_path / "many.json").write_text(json.dumps([{**entry, "score": i / 200} for i in range(130)]))
    truths = Instances(folder / "truth.json")
    results = Results(tmp_path / "many.json", truths)
    report = score_detections(sam, truths, results, refine=False)
    assert [n for n, _ in asked] == [64, 36] and len(report.found[0].rows) == 100  # COCO's most, the best ones
    assert [row[0] for row in report.found[0].rows] == list(range(129, 29, -1))
    assert report.targets[0].detection == 129  # of equal boxes that of the highest score


def changed(folder, tmp_path, name, change):
    content = json.loads((folder / name).read_text())
    content = change(content) or content
    (tmp_path / name).write_text(json.dumps(content))
    return tmp_path / name


def test_lvis_judges_some_categories_in_some_pictures(folder, tmp_path, sam, monkeypatch):
    def federate(content):
        for image in content["images"]:
            image |= {"neg_category_ids": [], "not_exhaustive_category_ids": [2]}
        content["annotations"] = [each for each in content["annotations"] if not each["iscrowd"]]

    truths = Instances(changed(folder, tmp_path, "truth.json", federate), folder / "images")
    results = Results(folder / "found.json", truths)
    three, two, *_ = truths.scenes
    assert three.judged == {1, 2} and not two.judged and results.of(two) == []  # nobody looked for cups there
    monkeypatch.setattr(detections, "_ask", oracle([]))
    found, = (one for one in score_detections(sam, truths, results).found if one.image == 3)
    assert found.matches[2].ignored[0, 0].tolist() == [True, False, True]  # there may be more spoons
    assert not found.matches[1].ignored[0, 0].any()
    many = [{"image_id": 3, "category_id": 1 + i % 2, "bbox": [1, 1, 5, 5], "score": 0.5} for i in range(400)]
    (tmp_path / "many.json").write_text(json.dumps(many))
    assert len(Results(tmp_path / "many.json", truths).of(three)) == 300


# -- mistakes -------------------------------------------------------------------------------------------------

ENTRY = {"image_id": 3, "category_id": 1, "bbox": [5, 5, 40, 30], "score": 0.5}


@pytest.mark.parametrize("content, words", [
    ({"annotations": []}, "must be a list"), ([], "no detections"), ("{", "broken JSON"), ([3], "entry 0"),
    ([ENTRY, {"image_id": 3, "category_id": 1, "score": 1}], "entry 1 (from 0) has no 'bbox'"),
    ([ENTRY, ENTRY | {"image_id": 4}], "of 1 of its 2 detections the image_id"), ([ENTRY | {"image_id": "3"}], '"3"'),
    ([ENTRY | {"category_id": 9}], "the category_id"), ([ENTRY | {"category_id": None}], "neither"),
    ([ENTRY | {"bbox": [1, 2, 3]}], "entry 0 (from 0) has the bbox [1, 2, 3]"),
    ([ENTRY | {"bbox": [1, 2, 3, float("nan")]}], "finite"), ([ENTRY | {"bbox": ["a", 2, 3, 4]}], "finite"),
    ([ENTRY, ENTRY | {"bbox": [5, 5, 0, 9]}], "entry 1 (from 0) has the bbox [5, 5, 0, 9], which is empty"),
    ([ENTRY | {"bbox": [5, 5, 9, -1]}], "empty"), ([ENTRY | {"bbox": [500, 5, 9, 9]}], "outside"),
    ([ENTRY | {"score": 10**400}], "finite"), ([ENTRY | {"score": float("nan")}], "score NaN"),
    ([ENTRY | {"score": "high"}], "score \"high\"")])
def test_results_that_are_wrong(folder, tmp_path, content, words):
    path = tmp_path / "wrong.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as error:
        Results(path, Instances(folder / "truth.json"))
    assert words in str(error.value) and "wrong.json" in str(error.value) and "\n" not in str(error.value)


def drop(*keys):
    def change(content):
        *outer, last = keys
        for key in outer:
            content = content[key]
        del content[last]
    return change


def put(value, *keys):
    def change(content):
        *outer, last = keys
        for key in outer:
            content = content[key]
        content[last] = value
    return change


@pytest.mark.parametrize("change, words", [
    (drop("categories"), "'categories'"), (drop("annotations"), "'annotations'"), (drop("images", 0, "id"), "'id'"),
    (drop("annotations", 0, "category_id"), "'category_id'"), (put([], "images"), "no pictures"),
    (put(8, "annotations", 0, "category_id"), "category_id 8"), (put(3, "images", 1, "id"), "same id"),
    (put([], "images", 1, "id"), "wrong form"), (put("big", "annotations", 0, "area"), "wrong form"),
    (put(-5, "annotations", 0, "area"), "wrong form"), (put(float("nan"), "annotations", 0, "area"), "wrong form"),
    (put(float("inf"), "annotations", 0, "area"), "wrong form"), (put(0, "images", 0, "width"), "wrong form"),
    (lambda content: [content], "'images'")])
def test_annotations_that_are_wrong(folder, tmp_path, change, words):
    path = changed(folder, tmp_path, "truth.json", change)
    with pytest.raises(InputError) as error:
        Instances(path, folder / "images")
    assert words in str(error.value) and "truth.json" in str(error.value) and "\n" not in str(error.value)


def test_no_objects_are_nothing_to_score(folder, tmp_path, sam, monkeypatch):
    monkeypatch.setattr(detections, "_ask", oracle([]))
    truths = Instances(changed(folder, tmp_path, "truth.json", put([], "annotations")), folder / "images")
    with pytest.raises(InputError, match="no objects to score in 4 pictures"):
        score_detections(sam, truths, Results(folder / "found.json", truths))


def test_what_an_annotation_does_not_say(folder, tmp_path):
    """No area: its pixels; an object of an unknown picture is passed over, as by COCO."""
    def change(content):
        del content["annotations"][0]["area"], content["annotations"][0]["iscrowd"]
        content["annotations"][1]["image_id"] = 12345

    truths = Instances(changed(folder, tmp_path, "truth.json", change), folder / "images")
    assert truths.scenes[0].instances[0].area is None and not truths.scenes[0].instances[0].crowd
    assert [len(scene.instances) for scene in truths.scenes] == [3, 0, 1, 2]


# -- the command line -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    tensors = {name: Tensor.of(np.asarray(array)) for name, array in convert.flatten(random_params(SMALL_VIT)).items()}
    convert.write(path, convert.Model(SMALL_VIT, tensors))
    return os.fspath(path)


@pytest.fixture
def command(folder, model):
    return ["evaluate", os.fspath(folder / "truth.json"), "--model", model, "--prompt", "detections", "--detections",
            os.fspath(folder / "found.json")]


def test_a_table_and_a_file(command, sam, data, folder, tmp_path, capsys):
    assert main([*command, "--out", str(tmp_path / "scores.json")]) == 0
    out, err = capsys.readouterr()
    head, row = out.splitlines()
    assert not err and head.split()[:5] == ["set", "pictures", "AP", "AP50", "AP75"]
    assert row.split()[:2] == ["truth.json", "4"] and "83.3" in row.split()
    written = json.loads((tmp_path / "scores.json").read_text())
    found, = written["detections"]
    assert written["sets"] == [] and len(written["model"]["sha256"]) == 64
    assert found["settings"] == {"refine": True, "detections": os.fspath(folder / "found.json"), "limit": None,
                                 "sha256": hashlib.sha256((folder / "found.json").read_bytes()).hexdigest()}
    summary = score_detections(sam, *data).summary()
    assert found["summary"] == {name: None if np.isnan(value) else round(value, 6) for name, value in summary.items()}
    assert [len(found["rows"][kind]) for kind in ("detections", "objects")] == [13, 6]
    assert all(len(row) == len(names) for kind, names in found["columns"].items() for row in found["rows"][kind])


def test_beside_boxes_and_without_the_second_round(command, folder, model, capsys):
    assert main([*command, "--prompt", "box", "--no-refine", "--limit", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr()[0])
    assert found["sets"][0]["pictures"] == 2 and found["detections"][0]["settings"]["refine"] is False
    assert found["settings"]["prompts"] == ["detections", "box"]


def test_a_broken_picture_is_named_and_the_rest_is_scored(command, folder, tmp_path, capsys):
    for path in (folder / "images").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 60 if path.name == "1.png" else None])
    assert main([*command, "--images", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "1.png" in err and len(err.splitlines()) == 1 and out.splitlines()[1].split()[1] == "3"
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    assert main([*command, "--images", str(tmp_path)]) == 1
    assert "64 x 64" in capsys.readouterr()[1]


@pytest.mark.parametrize("edit, words", [
    (lambda words: words[:-2], "give --detections FILE"),
    (lambda words: [*words[:4], *words[6:]], "--prompt detections"),
    (lambda words: [*words[:-1], "nothing.json"], "nothing.json"),
    (lambda words: [*words, "--split", "val"], "--split"),
    (lambda words: [*words[:1], os.path.dirname(words[1]), *words[2:]], "is a folder"),
    (lambda words: [*words[:1], words[-1], *words[2:]], "'images'"),
    (lambda words: [*words[:2], words[1], *words[2:]], "one at a time"),
    (lambda words: [*words, "--images", os.path.dirname(words[3])], "give the folder")])
def test_mistakes_are_one_line(command, edit, words, capsys):
    assert main(edit(command)) == 2
    out, err = capsys.readouterr()
    assert not out and words in err and len(err.splitlines()) == 1


def test_training_data_of_the_same_file_have_no_crowds(folder):
    assert [len(record.objects) for record in open_source(folder / "truth.json")] == [3, 1, 2]
