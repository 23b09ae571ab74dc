"""The README: every code block runs as it stands, in order; what installs packages is what the CI runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = FENCE.findall(README)


def is_installing(code: str) -> bool:
    return "pip install" in code


@pytest.fixture
def place(tmp_path, mobile_sam_path):
    """A directory with the examples and a `samjax` command on the path, as a user has them."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "bin").mkdir()
    for name, line in {"samjax": f'"{sys.executable}" -m samjax', "python": f'"{sys.executable}"'}.items():
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def test_every_block_says_its_language():
    assert README.count("```") == 2 * len(BLOCKS)
    assert {language for language, _ in BLOCKS} == {"bash", "python"}


def test_what_installs_packages_is_run_by_the_ci():
    script = (ROOT / ".ci" / "run").read_text()
    installing = [code for _, code in BLOCKS if is_installing(code)]
    assert len(installing) == 2
    for line in "".join(installing).splitlines():
        assert re.search(rf"^ *{re.escape(line)}$", script, re.MULTILINE), line


@pytest.mark.slow
@pytest.mark.weights
def test_all_blocks_run(place, monkeypatch):
    monkeypatch.chdir(place)
    names = {"__name__": "readme"}  # what one Python block leaves to the next
    for language, code in BLOCKS:
        if language == "python":
            start = README[:README.index(code)].count("\n")
            exec(compile("\n" * start + code, ROOT / "README.md", "exec"), names)
        elif not is_installing(code):
            run_bash(place, code)
    assert names["ious"].shape == (3,)
    assert sorted(path.name for path in (place / "two").iterdir()) == [
        "coffee.json", *(f"coffee_mask_{k}.png" for k in range(6)), "coffee_overlay.png"]


def run_bash(place, code):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], env=environment, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, ""), code
    assert done.stdout


def test_files_that_are_named_exist():
    for name in re.findall(r"`((?:examples|experiments|tests)/[\w/.]+)", README):
        assert (ROOT / name).exists(), name
