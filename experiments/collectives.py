"""What a compiled program sends between devices: a reading of XLA's text (`compiled.as_text()`).

Every collective operation is found with how often it runs: the product of the lengths of the loops that it lies in. Of
the branches of a conditional each is counted as if it were taken.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
         "u64": 8, "f64": 8}
SMALL = 4096  # numbers; a step's sums and counts, which belong to no parameter, have fewer

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
CALLED = re.compile(r"(?:calls|body|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One operation in the text. shapes: what it makes whole: of a reduce-scatter what is added up, else its result."""

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]  # (type, dimensions)
    times: int

    @property
    def bytes(self) -> int:
        """Of its arrays, once."""
        return sum(SIZES[dtype] * math.prod(shape) for dtype, shape in self.shapes)


class Line(NamedTuple):
    name: str
    shape: str
    operation: str
    rest: str


def collectives(text: str) -> list[Collective]:
    """All of a program, in the order of the text's calls from its entry."""
    entry, bodies = computations(text)
    found = []

    def walk(name: str, times: int):
        for line in bodies[name]:
            operation = line.operation.removesuffix("-start")
            if operation in KINDS:
                found.append(Collective(*_kind_and_shapes(name, operation, line, bodies[name]), times))
            elif not line.operation.endswith(("-done", "-update")):
                inner = times * trip_count(line, bodies) if line.operation == "while" else times
                for called in _called(line.rest):
                    walk(called, inner)

    walk(entry, 1)
    return found


def computations(text: str) -> tuple[str, dict[str, list[Line]]]:
    """(the entry's name, the instructions of each computation)."""
    entry, bodies, current = None, defaultdict(list), None
    for line in text.splitlines():
        if start := COMPUTATION.match(line):
            current = start[2]
            entry = current if start[1] else entry
        elif current and (found := INSTRUCTION.match(line)):
            bodies[current].append(Line(*found.groups()))
    if entry is None:
        raise ValueError("this is no text of a compiled program: it has no ENTRY")
    return entry, bodies


def trip_count(line: Line, bodies: dict[str, list[Line]]) -> int:
    """How often a loop runs: as the compiler notes it, or from its condition, a counter below a constant."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line.rest):
        return int(known[1])
    condition = bodies[re.search(r"condition=%?([\w.\-]+)", line.rest)[1]]
    limits = [int(found[1]) for each in condition if each.operation == "constant"
              and (found := re.match(r"(\d+)\)", each.rest))]
    if len(limits) != 1:
        raise ValueError(f"the loop {line.name} has no plain count: {[each.operation for each in condition]}")
    return limits[0]


def _called(rest: str) -> list[str]:
    branches = [name.strip().lstrip("%") for group in BRANCHES.findall(rest) for name in group.split(",")]
    return CALLED.findall(rest) + branches


def _kind_and_shapes(computation: str, kind: str, line: Line, body: list[Line]) -> tuple[str, tuple]:
    shapes = _arrays(line.shape)
    if line.operation.endswith("-start") and kind != "all-reduce":  # (operands, results)
        shapes = shapes[len(shapes) // 2 :] if kind != "collective-permute" else shapes[1:2]
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):  # what TPUs fuse
        kind = "reduce-scatter"
    elif kind == "reduce-scatter":
        named = {each.name: each.shape for each in body}
        operands = re.findall(r"%([\w.\-]+)", line.rest.split(")")[0])
        shapes = tuple(array for name in operands for array in _arrays(named[name]))
    return kind, shapes


def _arrays(text: str) -> tuple:
    return tuple((dtype, tuple(map(int, filter(None, shape.split(","))))) for dtype, shape in ARRAY.findall(text)
                 if dtype in SIZES)


def summary(found: list[Collective]) -> dict:
    """For each kind: operations in the text, how often they run in all, and their bytes in all."""
    return {kind: {"operations": len(of_kind), "runs": sum(each.times for each in of_kind),
                   "bytes": sum(each.times * each.bytes for each in of_kind)}
            for kind in KINDS if (of_kind := [each for each in found if each.kind == kind])}


def unexpected(found: list[Collective], shapes: list[tuple], kinds: set[str], small: int = SMALL) -> list[str]:
    """What is not of the given kinds, or neither small nor of a parameter's size, in words.

    shapes: of the parameters. A parameter may be sent whole, or a layer at a time where layers are stacked, and in
    another order of its dimensions; so what counts is the number of elements.
    """
    sizes = {math.prod(shape[i:]) for shape in shapes for i in range(min(3, len(shape)))}
    strange = []
    for each in found:
        parts = [(dtype, shape) for dtype, shape in each.shapes
                 if math.prod(shape) > small and math.prod(shape) not in sizes]
        if each.kind not in kinds or parts:
            what = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in parts or each.shapes)
            strange.append(f"{each.kind} of {what}, {each.times} times")
    return strange
