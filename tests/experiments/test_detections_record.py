"""experiments/detections.py: true boxes as a detector's, with a stand-in for the model."""

import json
import sys

import detections
import numpy as np
import pytest
import suite
from PIL import Image

from samjax.data import Instances
from samjax.errors import InputError


@pytest.fixture
def annotations(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "b.png")
    square = lambda x, y, side: [[x, y, x + side, y, x + side, y + side, x, y + side]]
    found = [{"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 100, "bbox": [5, 5, 10, 10],
              "segmentation": square(5, 5, 10)},
             {"id": 2, "image_id": 1, "category_id": 3, "iscrowd": 1, "area": 16, "bbox": [20, 5, 4, 4],
              "segmentation": square(20, 5, 4)}]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": [{"id": i, "file_name": f"{name}.png", "width": 40, "height": 30}
                                           for i, name in ((1, "a"), (2, "b"))],
                                "categories": [{"id": 3, "name": "c"}], "annotations": found}))
    return path


def test_boxes_are_the_objects_own_or_near_them(annotations):
    truths = Instances(annotations)
    exact, noised = (detections.boxes_of(truths, noise) for noise in (0.0, 0.1))
    assert exact == [{"image_id": 1, "category_id": 3, "score": 1.0, "bbox": [5, 5, 10, 10]}]
    assert len(noised) == 1 and 0 < np.abs(np.subtract(noised[0]["bbox"], [5, 5, 10, 10])).max() < 8
    assert noised == detections.boxes_of(truths, 0.1)


def test_a_stopped_run_goes_on(annotations, tmp_path, monkeypatch, capsys):
    asked, out = [], tmp_path / "record.json"

    def run(sam, truths, noise, refine, limit):
        asked.append((noise, refine, limit))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"pictures": 2, "objects": 1, "summary": dict.fromkeys(detections.SHOWN, 0.5),
                "failures": [["a.png", "is broken"]] * (len(asked) == 4)}

    monkeypatch.setattr(detections, "run", run)
    monkeypatch.setattr(suite, "model_of", lambda name: {"name": name, "sha256": "0"})
    monkeypatch.setattr(suite, "loaded", lambda name: lambda: None)
    monkeypatch.setattr("sys.argv", ["x", str(annotations), "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        detections.main()
    assert detections.main() == 1  # a picture failed: its run is done again
    said, err = capsys.readouterr()
    assert err == "a.png: is broken\n" and said.count("50.0") == 4 * len(detections.SHOWN)
    assert detections.main() == 0 and not capsys.readouterr().err
    assert asked == [(0.0, False, 0), (0.0, True, 0), *[(0.1, False, 0)] * 2, (0.1, True, 0), (0.1, False, 0)]
    assert list(json.loads(out.read_text())["runs"]) == list(detections.RUNS)
    monkeypatch.setattr("sys.argv", ["x", str(annotations), "--limit", "1", "--out", str(out)])
    with pytest.raises(InputError, match="limit"):
        detections.main()
    out.write_text("{}")
    with pytest.raises(InputError, match="no record of this experiment"):
        detections.main()
    monkeypatch.setattr("sys.argv", [*sys.argv, "--redo"])
    assert detections.main() == 0
    found = json.loads(out.read_text())
    pytest.importorskip("matplotlib")
    import report_sections

    page, = report_sections.detections(found)
    assert "noised, two rounds" in page and "2 of 2" in page
