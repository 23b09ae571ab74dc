"""Results that grow picture by picture: what they were made with, and how a stopped run goes on.

A record is a JSON file: "model" and "settings" (with others it is refused), "made" (by which commit, versions and
machine, and how many of the pictures), tables made of the pictures, and last its groups, "sets" or "methods": each has
"of", the number of pictures that there are, and "pictures", what each gave; {"failed": why} where it gave nothing.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

STAMP = ("commit", "versions", "machine")
OLD = "the stamp of the last write: that of each picture was not kept"


def read(path: Path) -> dict:
    """A result of an experiment. Raises InputError where it is none."""
    from samjax.errors import InputError

    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is no result of an experiment")
    return found


def load(path: Path, groups: str = "sets", upgrade: Callable[[dict], dict] = lambda found: found) -> dict:
    """What a record holds, as records are written now. upgrade: of those of an older form. Raises InputError."""
    from samjax.errors import InputError

    found = upgrade(read(path))
    whole = all(isinstance(found.get(name), dict) for name in ("settings", groups))
    if not whole or not all(isinstance(one, dict) and isinstance(one.get("pictures"), dict)
                            for one in found[groups].values()):
        raise InputError(f"{path} is no record of an experiment with {groups} and their pictures")
    return restamped(found, groups)


def restamped(found: dict, groups: str) -> dict:
    """Older records had one stamp, of their last write, and what their rows are beside the settings."""
    found["settings"] |= {name: found.pop(name) for name in ("columns", "strengths") if name in found}
    stamp = {name: found.pop(name) for name in STAMP if name in found}
    if "made" not in found:
        number = sum(map(count, found[groups].values()))
        found["made"] = [{**stamp, "pictures": number, "note": OLD}] if number else []
    return found


def failed(found) -> bool:
    return isinstance(found, dict) and "failed" in found


def count(group: dict) -> int:
    """How many pictures gave something."""
    return sum(not failed(each) for each in group["pictures"].values())


def share(group: dict) -> dict:
    """How much of a set is recorded: pictures, and "of", None where it is not known."""
    return {"pictures": count(group), "of": group.get("of")}


def agree(path: Path, found: dict, made: dict, what: str = "") -> None:
    """Raises InputError where something was made otherwise. What was not recorded counts as what it is now."""
    from samjax.errors import InputError

    for key, value in json.loads(json.dumps(made)).items():
        if found.setdefault(key, value) != value:
            raise InputError(f"{path} was made with {what}{key} {found[key]} and not {value}: give --redo to replace "
                             "it, or another --out")


@dataclass
class Record:
    """A result file. sums: from what is in it, tables that are made anew at each write; groups: the entry that holds
    the pictures by set (or by method)."""

    path: Path
    found: dict = field(default_factory=dict)
    sums: Callable[[dict], dict] = lambda found: {}
    groups: str = "sets"

    @classmethod
    def open(cls, path: Path, stamp: dict[str, dict], sums: Callable[[dict], dict], *, groups: str = "sets",
             redo: bool = False, upgrade: Callable[[dict], dict] = lambda found: found) -> "Record":
        """The record that is there, or a new one. Raises InputError where it was made with another model or settings.

        stamp: {"settings": {...}}, with "model" where there is one for all of it. redo: forget what is there.
        """
        found = {}
        if path.exists() and not redo:
            found = load(path, groups, upgrade)
            for key, part in stamp.items():
                agree(path, found.setdefault(key, {}), part, "" if key == "settings" else f"{key} ")
        return cls(path, {**stamp, "made": [], **found, groups: found.get(groups, {})}, sums, groups)

    def group(self, name: str, made: dict | None = None, **facts) -> dict:
        """The entry of a set (or a method). made: what it is made with, beside the settings of all; facts: what is
        known of it now, such as how many pictures it has ("of")."""
        made = made or {}
        one = self.found[self.groups].setdefault(name, {**made, "seconds": 0, "pictures": {}})
        agree(self.path, one, made, f"{name}, ")
        one |= facts
        one["pictures"] = one.pop("pictures")  # what is long comes last
        return one

    def pictures(self, name: str) -> dict:
        """What was found of a set's pictures, by name."""
        return self.found[self.groups][name]["pictures"]

    def add(self, name: str, picture: str, found, seconds: float) -> None:
        """Keeps what a picture gave, and writes the file."""
        one = self.found[self.groups][name]
        one["pictures"][picture] = found
        if "seconds" in one:  # of older records of edges it is not known
            one["seconds"] = round(one["seconds"] + seconds, 2)
        if not failed(found):
            self._stamp()
        self.write()

    def _stamp(self) -> None:
        """Counts a picture for what it was made with."""
        same = lambda each: {key: value for key, value in each.items() if key != "pictures"} == self.now
        entry = next(filter(same, self.found["made"]), None)
        if entry is None:
            self.found["made"].append(entry := {**self.now, "pictures": 0})
        entry["pictures"] += 1

    @cached_property
    def now(self) -> dict:
        """What this run makes its pictures with."""
        return made_now()

    def write(self) -> None:
        self.found |= self.sums(self.found)
        self.found[self.groups] = self.found.pop(self.groups)  # what is long comes last
        write(self.path, self.found)

    def failures(self) -> list[str]:
        return [f"{name}: {picture}: {each['failed']}" for name, one in self.found[self.groups].items()
                for picture, each in one["pictures"].items() if failed(each)]


def made_now() -> dict:
    """What results are made with now."""
    from samjax.evaluate.made import commit, versions

    return {"commit": commit(), "versions": versions(), "machine": machine()}


def machine() -> dict:
    import platform

    import jax

    return {"system": platform.system(), "architecture": platform.machine(), "cores": os.cpu_count(),
            "device": jax.devices()[0].device_kind}


def write(path: Path, found) -> None:
    """JSON by rename; lists of plain values are on one line."""
    joined = lambda match: "[" + re.sub(r"\n *", " ", match[1]) + "]"
    text = re.sub(r"\[\n *([^\[\]{}]*?)\n *\]", joined, json.dumps(found, indent=1, allow_nan=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)
