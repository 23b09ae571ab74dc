"""Processes that work in one folder: who is let in, what is cleared away, with locks and without."""

import contextlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

import samjax
from samjax import job, work
from samjax.automatic import Picture
from samjax.errors import InputError
from samjax.inputs import find_sources
from samjax.settings import Settings
from samjax.work import working

locks = pytest.mark.skipif(sys.platform == "win32", reason="no locks there")


@pytest.fixture(params=["flock", pytest.param("none", id="no flock")])
def locking(request, monkeypatch):
    """The system's locks, and a file system without."""
    if request.param == "none" and sys.platform != "win32":
        import fcntl

        def refuse(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def test_the_first_to_end_takes_nothing_from_the_others(tmp_path, locking):
    first, second = (working(tmp_path, i, 2, "a job") for i in range(2))
    with second as two:
        two.put_json(tmp_path / "second.json", {"a": 1})
        with first as one:
            one.put_json(tmp_path / "first.json", {})
            (two.folder / "unfinished.png").write_text("half")
        assert (two.folder / "unfinished.png").exists() and not one.folder.exists()
        two.put_json(tmp_path / "second.json", {"a": 2})
    assert sorted(os.listdir(tmp_path)) == ["first.json", "second.json"]


def test_what_was_killed(tmp_path, locking):
    """Is cleared away by the next; without locks only what has its own number, as others may be alive."""
    for number in range(2):
        killed = tmp_path / ".samjax" / f"process-{number:05d}-of-00002"
        killed.mkdir(parents=True)
        for name in ("lock", "key", "unfinished.json"):
            (killed / name).write_text("")
    with working(tmp_path, 0, 2, "a job") as one:
        assert not (one.folder / "unfinished.json").exists()
    assert (tmp_path / ".samjax").exists() == (locking == "none")
    with working(tmp_path, 1, 2, "a job"):
        pass
    assert not (tmp_path / ".samjax").exists()


@locks
@pytest.mark.parametrize("other", [(0, 2, "a job"), (1, 2, "another"), (1, 3, "a job"), (0, 1, "a job")], ids=str)
def test_who_is_not_let_in(tmp_path, other):
    """The same number, another job, the same one divided otherwise or alone."""
    with working(tmp_path, 0, 2, "a job") as one:
        with pytest.raises(InputError, match="another process is writing to"), working(tmp_path, *other):
            pass
        one.put_json(tmp_path / "a.json", {})
    with working(tmp_path, *other):
        pass
    assert os.listdir(tmp_path) == ["a.json"]


@locks
def test_processes_come_and_go(tmp_path):
    """One that begins while the last one clears up is let in, whatever is removed under its hands."""
    def often(number):
        for count in range(40):
            with working(tmp_path / "out", number, 4, "a job") as one:
                one.put_json(tmp_path / "out" / f"{number}.json", {"count": count})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(often, range(4)))
    assert sorted(os.listdir(tmp_path / "out")) == [f"{number}.json" for number in range(4)]


@locks
def test_a_folder_removed_while_it_is_made(tmp_path, monkeypatch):
    """mkdir finds it there and then finds it gone; a file in its place is told from that."""
    mkdir, often = os.mkdir, iter(range(3))

    def gone(path, *rest):
        if Path(path).name == ".samjax" and next(often, None) is not None:
            raise FileExistsError(17, "File exists", path)
        return mkdir(path, *rest)

    monkeypatch.setattr(os, "mkdir", gone)
    with working(tmp_path) as one:
        one.put_json(tmp_path / "a.json", {})
    assert os.listdir(tmp_path) == ["a.json"]
    (tmp_path / ".samjax").write_text("")
    with pytest.raises(InputError, match="cannot write to .*: file exists"), working(tmp_path):
        pass


def a_job(out, **values):
    sources, _ = find_sources(["photos"], out)
    model = {"name": "m", "architecture": "custom", "sha256": "0" * 64, "dtype": "float32"}
    return job.Job(sources, Path(out), model, **{"settings": Settings(output_mode="coco_rle"), **values})


def run(task, restart=False):
    return job.run(task, lambda: job.Model(lambda path: Picture(samjax.read_image(path)),
                                           lambda pictures: ([] for _ in pictures)), restart)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (9, 7), (number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)


OTHER = Settings(points_per_side=5, output_mode="coco_rle")


def test_what_the_folder_holds_is_looked_at_when_the_job_has_its_turn(photos):
    """Not before, when another one with other settings may be about to begin."""
    late = run(a_job("out", settings=OTHER))
    assert len(list(run(a_job("out")))) == 4
    before = Path("out/0.json").read_bytes()
    with pytest.raises(InputError, match="made otherwise .points_per_side was 32, now 5"):
        next(late)
    assert Path("out/0.json").read_bytes() == before and not Path("out/.samjax").exists()


@locks
def test_a_restart_with_other_settings_waits_for_processes_with_the_old_ones(photos):
    running = run(a_job("out", process=0, processes=2))
    next(running)
    with pytest.raises(InputError, match="another process is writing to out"):
        next(run(a_job("out", process=1, processes=2, settings=OTHER), restart=True))
    list(running)
    assert len(list(run(a_job("out", process=1, processes=2, settings=OTHER), restart=True))) == 2


def test_processes_that_begin_together_without_locks(photos, monkeypatch):
    """The second looks for strange files when the first has just said that the folder is its own, and written one."""
    first, second = (a_job("out", process=i, processes=2) for i in range(2))
    others, running = job._others, run(first)

    def slow(task):
        if task is second:
            next(running)
        return others(task)

    monkeypatch.setattr(work, "_locked", lambda *_, **__: contextlib.nullcontext(False))
    monkeypatch.setattr(job, "_others", slow)
    assert len(list(run(second))) == 2 and len(list(running)) == 1
    assert '"complete": true' in Path("out/manifest.json").read_text() and not Path("out/.samjax").exists()
