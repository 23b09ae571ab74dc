"""samjax.outputs: all files or none."""

import os
import threading

import pytest

from samjax.errors import InputError
from samjax.outputs import check_folder, write_all


def text(content):
    def write(path):
        with open(path, "w") as file:
            file.write(content)
    return write


def full(path):
    text("half")(path)
    raise OSError(28, "No space left on device")


def test_files_are_written_into_a_new_folder(tmp_path):
    folder = tmp_path / "a" / "b"
    check_folder(folder)
    assert not folder.exists()
    write_all(folder, {"one": text("1"), "two": text("2")})
    write_all(folder, {"two": text("3")})
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"one": "1", "two": "3"}


def test_one_failure_leaves_nothing(tmp_path):
    (tmp_path / "one").write_text("older")
    with pytest.raises(InputError, match=f"cannot write to {tmp_path}: no space left on device"):
        write_all(tmp_path, {"one": text("1"), "two": full})
    assert os.listdir(tmp_path) == ["one"] and (tmp_path / "one").read_text() == "older"
    with pytest.raises(InputError):
        write_all(tmp_path / "new" / "er", {"two": full})
    assert os.listdir(tmp_path) == ["one"]


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupted(path):
        text("half")(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all(tmp_path / "new", {"one": text("1"), "two": interrupted})
    assert not os.listdir(tmp_path)


def test_a_writers_message_names_the_final_file(tmp_path):
    def write(path):
        raise InputError(f"cannot write {path}: reason")

    with pytest.raises(InputError) as caught:
        write_all(tmp_path, {"one": write})
    assert str(caught.value) == f"cannot write {tmp_path / 'one'}: reason"


def test_a_directory_in_the_way(tmp_path):
    (tmp_path / "two").mkdir()
    with pytest.raises(InputError, match="two: a directory has that name"):
        write_all(tmp_path, {"one": text("1"), "two": text("2")})
    assert os.listdir(tmp_path) == ["two"]


def test_a_rename_that_fails_takes_the_others_back(tmp_path, monkeypatch):
    rename = os.replace

    def replace(source, target):
        if target.name == "two":
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(InputError, match="permission denied"):
        write_all(tmp_path, {"one": text("1"), "two": text("2")})
    assert not os.listdir(tmp_path)


def test_writers_run_side_by_side(tmp_path):
    meeting = threading.Barrier(2, timeout=20)

    def write(path):
        meeting.wait()
        text("met")(path)

    write_all(tmp_path, {"one": write, "two": write})
    assert len(os.listdir(tmp_path)) == 2


def test_folders_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below", "file/far/below"):
        with pytest.raises(InputError, match="is a file, not a directory"):
            check_folder(tmp_path / folder)
        with pytest.raises(InputError, match="cannot write to"):
            write_all(tmp_path / folder, {"one": text("1")})
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write anywhere
    with pytest.raises(InputError, match="no permission"):
        check_folder(tmp_path / "new")
