"""`samjax finetune` for those who err: one line, status 2, before anything is trained. No JAX is started here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samjax.cli import main
from samjax.errors import InputError

sys.path.insert(0, str(Path(__file__).parent / "train"))

import shapes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes.write_folder(tmp_path_factory.mktemp("data") / "shapes", pictures=6)


def call(capsys, *words):
    status = main(["finetune", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("words, message", [
    (["--steps", "10"], "--out DIR is needed"),
    (["--out", "OUT", "--train", "neck"], "invalid choice: 'neck'"),
    (["--out", "OUT", "--steps", "ten"], "invalid int value: 'ten'"),
    (["--out", "OUT", "--steps", "-3"], "--steps -3: it must not be below 0"),
    (["--out", "OUT", "--lr", "nan"], "--lr nan: it must not be below 0"),
    (["--out", "OUT", "--steps", "5", "--epochs", "2"], "give --steps or --epochs, not both"),
    (["--out", "OUT", "--mix-share", "1.5"], "--mix-share 1.5: it must be above 0 and below 1"),
    (["--out", "OUT", "--balance", "-1"], "--balance -1.0: it must be from 0 to 1"),
    (["--out", "OUT", "--average", "1"], "--average 1.0: it must be at least 0 and below 1"),
    (["--out", "OUT", "--val-objects", "0"], "--val-objects 0: it must be 1 or more"),
    (["--out", "OUT", "--val", "nowhere"], "nowhere: no such file or folder"),
    (["--out", "OUT", "--mix", "nowhere"], "nowhere: no such file or folder"),
    (["--out", "OUT", "--init", "mobile_san"], "did you mean mobile_sam?"),
    (["--out", "OUT/file", "--init", "mobile_san"], "is a file, not a directory"),
])
def test_wrong_arguments(capsys, tmp_path, data, words, message):
    (tmp_path / "file").touch()
    status, _, err = call(capsys, data, *(word.replace("OUT", str(tmp_path)) for word in words))
    assert status == 2
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_no_data(capsys, tmp_path, name):
    (tmp_path / "empty").mkdir()
    status, _, err = call(capsys, tmp_path / name, "--out", tmp_path / "out")
    assert status == 2 and str(tmp_path / name) in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_check(capsys, tmp_path):
    """Every bad item by name and reason; status 1; nothing is written."""
    folder = shapes.write_folder(tmp_path / "shapes", pictures=6)
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(folder / "masks" / "01.png")
    (folder / "images" / "02.png").write_bytes(b"no picture")
    (folder / "masks" / "03.png").unlink()
    status, out, _ = call(capsys, folder, "--check")
    assert status == 1
    for name in ("01.png", "02.png", "03.png"):
        assert name in out
    assert "train: " in out and "val: " in out
    assert {path.name for path in tmp_path.iterdir()} == {"shapes"}
    status, out, _ = call(capsys, folder, "--check", "--json")
    reports = json.loads(out)
    assert status == 1 and set(reports) == {"train", "val", "mix", "kept"}
    assert {problem["name"] for found in reports.values() for report in found for problem in report["problems"]} >= {
        "images/01.png", "images/02.png", "images/03.png"}
    assert call(capsys, shapes.write_folder(tmp_path / "good", pictures=6), "--check")[0] == 0


def test_nothing_usable(capsys, tmp_path):
    folder = shapes.write_folder(tmp_path / "shapes", pictures=4)
    for mask in (folder / "masks").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint16)).save(mask)
    status, _, err = call(capsys, folder, "--out", tmp_path / "out")
    assert status == 2 and "none of its pictures" in err


def test_a_folder_of_something_else(capsys, tmp_path, data):
    """Other files, and another fine-tuning."""
    model = shapes.write_model(tmp_path / "init")
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").touch()
    status, _, err = call(capsys, data, "--init", model, "--out", out)
    assert status == 2 and "thesis.txt" in err and "choose another --out" in err
    (out / "thesis.txt").unlink()
    (out / "job.json").write_text(json.dumps({"options": {"lr": 1.0}, "init": "", "pictures": ""}))
    status, _, err = call(capsys, data, "--init", model, "--out", out)
    assert status == 2 and "lr was 1.0, now 0.0" in err and "--restart" in err
    (out / "job.json").write_text("{")
    status, _, err = call(capsys, data, "--init", model, "--out", out)
    assert status == 2 and "job.json cannot be read" in err


def test_what_a_kill_left(tmp_path):
    """Temporary files of a fine-tuning are its own: --restart removes them; before it finds others' files, nothing."""
    from samjax.train.finetune import claim
    from samjax.train.options import Options

    model, out = shapes.write_model(tmp_path / "init"), tmp_path / "out"
    options = Options(["data"], str(model), str(out))
    assert claim(options, model, ["a"], restart=False) is None
    (out / ".model.123").mkdir()
    (out / ".job.json.77").touch()
    (out / "report.json").write_text("{}")
    (out / "thesis.txt").touch()
    with pytest.raises(InputError, match="thesis.txt"):
        claim(options, model, ["a"], restart=True)
    assert (out / "report.json").exists()
    (out / "thesis.txt").unlink()
    (out / "embeddings").mkdir()
    assert claim(options, model, ["a"], restart=True) is None
    assert sorted(entry.name for entry in out.iterdir()) == ["embeddings", "job.json"]
