"""Bad data are named with file and reason."""

import numpy as np
import pytest
from made import instance_folder, members, picture, sa1b_folder
from PIL import Image

from samjax.data import check, open_source


@pytest.fixture
def root(tmp_path):
    return instance_folder(tmp_path / "data", pictures=8)


def test_good_data(root):
    calls = []
    report = check(open_source(root), lambda done, of: calls.append((done, of)))
    assert (report.pictures, report.good, report.bad) == (8, list(range(8)), [])
    assert report.objects == sum(len(record.objects) for record in open_source(root))
    assert calls == [(k + 1, 8) for k in range(8)]
    assert "8 pictures" in report.lines()[0] and "0 cannot" in report.lines()[0]


def test_everything_bad_is_named(root):
    masks, images = root / "masks", root / "images"
    masks.joinpath("0.png").unlink()
    Image.fromarray(np.zeros((40, 60), np.uint16)).save(masks / "1.png")
    Image.fromarray(np.ones((41, 60), np.uint16)).save(masks / "2.png")
    images.joinpath("3.png").write_bytes(images.joinpath("3.png").read_bytes()[:900])
    masks.joinpath("4.png").write_text("no picture")
    ids = np.zeros((40, 60), np.uint16)
    ids[0, 0], ids[2, :5], ids[10:20, 10:20] = 1, 2, 3
    Image.fromarray(ids).save(masks / "5.png")
    ids[10:20, 10:20] = 0
    Image.fromarray(ids).save(masks / "6.png")
    Image.fromarray(np.ones((40, 60), np.uint16)).save(masks / "7.png")
    report = check(open_source(root))
    found = {problem.name: (problem.reason, problem.usable) for problem in report.problems}
    assert found == {
        "images/0.png": ("has no mask in masks", False),
        "images/1.png": ("no masks: nothing is marked", False),
        "images/2.png": ("a mask of 60 x 41 pixels (width x height), but the picture is 60 x 40", False),
        "images/3.png": (found["images/3.png"][0], False),
        "images/4.png": (f"{masks / '4.png'} is not an image that Pillow can read", False),
        "images/5.png": (found["images/5.png"][0], True),
        "images/6.png": ("no usable object: 1 of 2 objects of one pixel; 1 of 2 objects of 2 to 31 pixels", False),
        "images/7.png": ("no usable object: 1 of 1 objects over 90% of the picture", False)}
    assert "is damaged" in found["images/3.png"][0] and str(images / "3.png") in found["images/3.png"][0]
    assert [problem.reason for problem in report.problems if problem.name == "images/5.png"] == [
        "1 of 3 objects of one pixel", "1 of 3 objects of 2 to 31 pixels"]
    assert (report.pictures, report.objects) == (1, 1)
    assert open_source(root).select(report.good).names() == ["images/5.png"]
    lines = report.lines(most=3)
    assert len(lines) == 5 and lines[0].endswith("1 pictures with 1 objects can be used; 7 cannot, 2 remarks")
    assert lines[-1] == "  and 6 more" and report.lines()[-1].startswith("  note  images/5.png")


def test_broken_json_is_named(tmp_path):
    folder = sa1b_folder(tmp_path / "sa", members(pictures=3))
    (folder / "sa_1.json").write_text("{")
    text = (folder / "sa_2.json").read_text()
    (folder / "sa_2.json").write_text(text.replace('"counts": "', '"counts": "~'))
    report = check(open_source(folder))
    assert [problem.name for problem in report.bad] == ["sa_1.jpg", "sa_2.jpg"]
    assert "sa_1.json is broken JSON" in report.bad[0].reason and "damaged" in report.bad[1].reason
    assert report.good == [0]


def test_a_turned_picture_is_of_another_size(root):
    """Annotated without regard to EXIF: the masks do not fit the picture as it is meant to be seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(np.random.default_rng(0), (40, 60)).save(root / "images" / "0.png", exif=exif)
    assert "picture is 40 x 60" in check(open_source(root)).bad[0].reason
