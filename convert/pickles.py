"""A reader of the pickles in PyTorch checkpoints that cannot run code.

It is an interpreter of the few pickle instructions that `torch.save` emits. It imports nothing and calls
nothing but the functions it is given: a global not in the caller's table ends the reading, and so does any
instruction that is not listed here. Time and memory are linear in the pickle's length: dictionary keys are
strings and small integers (no hash attacks), and nothing walks the objects built.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_BYTES = 64 << 20
MAX_STEPS = 2_000_000  # a tensor takes about 35
_MAX_INT_BYTES = 32
RESAVE = "load it where it was made and save model.state_dict() alone"


class PickleError(ValueError):
    """What is wrong with a pickle, to follow the file's name in a message."""


@dataclass(frozen=True, slots=True)
class Call:
    """A stand-in for a function: `build` checks a tuple of arguments and returns an inert object."""

    build: Callable[[tuple], object]


def load(data: bytes, allowed: Mapping[str, object], persistent: Callable[[object], object],
         start: int = 0) -> tuple[object, int]:
    """The object pickled at data[start:], and the position after it.

    `allowed` maps "module.name" to what stands for that global: a `Call`, or any inert object.
    `persistent` turns a persistent id into an object. Raises PickleError.
    """
    machine = _Machine(data, start, allowed, persistent)
    try:
        return machine.run(), machine.at
    except (IndexError, KeyError, struct.error, UnicodeDecodeError):
        raise PickleError("is damaged or cut short; fetch or save it again") from None


class _Machine:
    def __init__(self, data, start, allowed, persistent):
        self.data, self.at, self.allowed, self.persistent = data, start, allowed, persistent
        self.stack, self.marks, self.memo = [], [], {}

    def run(self):
        data, handlers = self.data, _HANDLERS
        for _ in range(MAX_STEPS):
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return self.stack.pop()
            handler = handlers[code]
            if handler is None:
                raise PickleError(f"has the pickle instruction 0x{code:02x}, which no plain checkpoint uses; "
                                  f"{RESAVE}")
            handler(self)
        raise PickleError(f"describes more than a model; {RESAVE}")

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self.at + count
        if end > len(self.data):
            raise IndexError
        taken, self.at = self.data[self.at:end], end
        return taken

    def number(self, form: struct.Struct):
        value, = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            raise IndexError
        text, self.at = self.data[self.at:end].decode(), end + 1
        return text

    def push_global(self, module: str, name: str) -> None:
        known = self.allowed.get(f"{module}.{name}", self)
        if known is self:
            raise PickleError(f"asks for {module[:60]}.{name[:60]}, which no plain checkpoint does; it was "
                              f"not run; {RESAVE}")
        self.stack.append(known)

    def since_mark(self) -> list:
        """Take what lies above the last mark off the stack."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def put(self, items: list) -> None:
        """Set the pairs of a flat list in the dictionary on top of the stack."""
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise IndexError
        for key, value in zip(items[::2], items[1::2]):
            target[check_key(key)] = value

    def extend(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise IndexError
        target.extend(items)


_I1, _U2, _I4, _U4, _U8, _F8 = (struct.Struct(form) for form in ("<B", "<H", "<i", "<I", "<Q", ">d"))


def check_key(key):
    """A dictionary key whose hash costs nothing to compute and cannot be forced to collide."""
    if type(key) is str or type(key) is int and -1 << 63 <= key < 1 << 63:
        return key
    raise PickleError(f"has a dictionary key that is neither a name nor a number; {RESAVE}")


def _long(m):
    size = m.number(_I1)
    if size > _MAX_INT_BYTES:
        raise PickleError(f"has a number of {size} bytes; {RESAVE}")
    m.stack.append(int.from_bytes(m.take(size), "little", signed=True))


def _tuple(count):
    def handler(m):
        if len(m.stack) < count:
            raise IndexError
        m.stack[-count:] = [tuple(m.stack[-count:])]
    return handler


def _reduce(m):
    arguments, function = m.stack.pop(), m.stack.pop()
    if type(function) is not Call or type(arguments) is not tuple:
        raise PickleError(f"calls something that is not a function; {RESAVE}")
    m.stack.append(function.build(arguments))


def _build(m):
    m.stack.pop()  # an object's attributes (a state_dict's version numbers): not needed
    m.stack[-1]


def _stack_global(m):
    name, module = m.stack.pop(), m.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise IndexError
    m.push_global(module, name)


def _set_item(m):
    value, key = m.stack.pop(), m.stack.pop()
    m.put([key, value])


def _memoize(m):
    m.memo[len(m.memo)] = m.stack[-1]


def _constant(make):
    return lambda m: m.stack.append(make())


def _scalar(form):
    return lambda m: m.stack.append(m.number(form))


def _text(form):
    return lambda m: m.stack.append(m.take(m.number(form)).decode())


def _bytes(form):
    return lambda m: m.stack.append(m.take(m.number(form)))


def _store(form):
    def handler(m):
        m.memo[m.number(form)] = m.stack[-1]
    return handler


def _fetch(form):
    return lambda m: m.stack.append(m.memo[m.number(form)])


_HANDLERS = [None] * 256
for _code, _handler in {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"N": _constant(lambda: None), b"\x88": _constant(lambda: True), b"\x89": _constant(lambda: False),
    b"}": _constant(dict), b"]": _constant(list), b")": _constant(tuple),
    b"K": _scalar(_I1), b"M": _scalar(_U2), b"J": _scalar(_I4), b"G": _scalar(_F8), b"\x8a": _long,
    b"X": _text(_U4), b"\x8c": _text(_I1), b"\x8d": _text(_U8), b"T": _text(_U4), b"U": _text(_I1),
    b"B": _bytes(_U4), b"C": _bytes(_I1),
    b"t": lambda m: m.stack.append(tuple(m.since_mark())),
    b"\x85": _tuple(1), b"\x86": _tuple(2), b"\x87": _tuple(3),
    b"s": _set_item, b"u": lambda m: m.put(m.since_mark()),
    b"a": lambda m: m.extend([m.stack.pop()]), b"e": lambda m: m.extend(m.since_mark()),
    b"q": _store(_I1), b"r": _store(_U4), b"\x94": _memoize, b"h": _fetch(_I1), b"j": _fetch(_U4),
    b"c": lambda m: m.push_global(m.line(), m.line()), b"\x93": _stack_global,
    b"R": _reduce, b"b": _build, b"Q": lambda m: m.stack.append(m.persistent(m.stack.pop())),
}.items():
    _HANDLERS[_code[0]] = _handler
