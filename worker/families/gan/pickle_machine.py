"""Reads a pickle as data: it names what the pickle asks for, and calls none of it.

The stack machine of pickle (PEP 3154, `pickletools`) with the calls left out. A name becomes an inert mark, and what
a pickle wants called with that name is looked up in a table, the reader's `builders`, that makes plain values and
records; a name that is not in the table ends the reading. So there is nothing to escape from: nothing is imported, no
attribute is looked up or set, no class of the pickle's choosing is made. What it may cost is bounded too.
"""

from __future__ import annotations

import mmap
import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final, NoReturn, cast

#: Instructions of one pickle; a published generator with its discriminator has about 50,000.
MAX_INSTRUCTIONS: Final = 1_000_000

#: (module, qualified name) as the pickle gives them.
Name = tuple[str, str]
#: Makes a value of the arguments that the pickle would call the name with.
Builder = Callable[..., Any]


class PickleRefused(Exception):
    """The file is not read to the end; the message says what it tried to load, or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Stands for a name; is never called and has no attributes of what it names."""

    name: Name


class Buildable(ABC):
    """A record that takes a state, as the BUILD instruction gives it."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Takes the state; raises PickleRefused for one that does not fit."""


def read(stream: IO[bytes] | mmap.mmap, builders: Mapping[Name, Builder]) -> Any:
    """The value at the front of the stream, which is left behind it.

    Raises PickleRefused for a name outside `builders`, an instruction that plain data does not need, a builder that
    refuses, and bytes that are no pickle.
    """
    machine = _Machine(builders)
    try:
        for count, (instruction, argument, _) in enumerate(_instructions(stream)):
            if count >= MAX_INSTRUCTIONS:
                raise PickleRefused(f"has more than {MAX_INSTRUCTIONS:,} instructions")
            if instruction.name == "STOP":
                return machine.pop()
            machine.step(instruction.name, argument)
    # What a machine meets in a pickle that lies about itself; a builder meets arguments of any kind.
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError, RecursionError) as exc:
        raise PickleRefused(f"is no pickle that can be read ({type(exc).__name__}: {_line(str(exc))})") from exc
    raise PickleRefused("ends too early")


def _instructions(stream: IO[bytes] | mmap.mmap) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    # A mapped file is no IO[bytes] to the type checker, but reads no more than is there: a pickle that announces
    # 2^60 bytes would have a plain file make room for them.
    return pickletools.genops(cast(IO[bytes], stream))


def refuse_name(name: Name) -> NoReturn:
    """Ends the reading with the name that was asked for."""
    raise PickleRefused(f"tries to load {_line('.'.join(name))}, which is no part of a model: it was not loaded")


def _line(text: str) -> str:
    """On one line, at most 200 characters, with what cannot be shown escaped."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return shown if len(shown) <= 200 else f"{shown[:199]}…"


class _Bottom:
    """What the MARK instruction puts on the stack."""


_BOTTOM: Final = _Bottom()

#: Push their argument.
_CONSTANTS: Final = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)
_LITERALS: Final[Mapping[str, Any]] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Final[Mapping[str, Callable[[], Any]]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
_TUPLES: Final[Mapping[str, int]] = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _key(value: Any) -> str | int:
    """Only text and numbers are keys: hashing a tuple of tuples of tuples … can exhaust the C stack."""
    if type(value) is str or type(value) is int:
        return value
    raise TypeError(f"a {type(value).__name__} as a key")


class _Machine:
    """Stack and memo. Methods are named after the instructions in pickletools."""

    def __init__(self, builders: Mapping[Name, Builder]) -> None:
        self._builders = builders
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, instruction: str, argument: Any) -> None:
        if instruction in _CONSTANTS:
            self._stack.append(argument)
        elif instruction in _LITERALS:
            self._stack.append(_LITERALS[instruction])
        elif instruction in _EMPTY:
            self._stack.append(_EMPTY[instruction]())
        elif instruction in _TUPLES:
            self._stack.append(tuple(self._take(_TUPLES[instruction])))
        elif (method := _METHODS.get(instruction)) is not None:
            method(self, argument)
        else:
            raise PickleRefused(f"uses the instruction {instruction}, which plain data does not need")

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _BOTTOM:
            raise ValueError("a mark where a value should be")
        return value

    def _take(self, count: int) -> list[Any]:
        """The topmost values, lowest first."""
        return [self.pop() for _ in range(count)][::-1]

    def _above_mark(self) -> list[Any]:
        found: list[Any] = []
        while (value := self._stack.pop()) is not _BOTTOM:
            found.append(value)
        return found[::-1]

    def _top(self, kind: type[Any]) -> Any:
        value = self._stack[-1]
        if type(value) is not kind:
            raise TypeError(f"a {type(value).__name__} where a {kind.__name__} should be")
        return value

    def nothing(self, _: Any) -> None:
        pass

    def mark(self, _: Any) -> None:
        self._stack.append(_BOTTOM)

    def pop_one(self, _: Any) -> None:
        self._stack.pop()

    def pop_mark(self, _: Any) -> None:
        self._above_mark()

    def dup(self, _: Any) -> None:
        value = self.pop()
        self._stack += [value, value]

    def put(self, key: Any) -> None:
        # A dictionary: a memo that is an array would take what its largest key says.
        self._memo[key] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, key: Any) -> None:
        self._stack.append(self._memo[key])

    def make_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._above_mark()))

    def make_list(self, _: Any) -> None:
        self._stack.append(self._above_mark())

    def make_dict(self, _: Any) -> None:
        items = self._above_mark()
        self._stack.append({})
        self._set(items)

    def make_frozenset(self, _: Any) -> None:
        self._stack.append(frozenset(map(_key, self._above_mark())))

    def append(self, _: Any) -> None:
        (value,) = self._take(1)
        self._top(list).append(value)

    def appends(self, _: Any) -> None:
        values = self._above_mark()
        self._top(list).extend(values)

    def add_items(self, _: Any) -> None:
        values = self._above_mark()
        self._top(set).update(map(_key, values))

    def set_item(self, _: Any) -> None:
        self._set(self._take(2))

    def set_items(self, _: Any) -> None:
        self._set(self._above_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._top(dict)
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def global_name(self, argument: str) -> None:
        module, _, qualified = argument.partition(" ")
        self._push_name(module, qualified)

    def inst(self, argument: str) -> None:
        """INST would load a name and call it at once; told apart here only to say which name."""
        self.global_name(argument)
        raise PickleRefused("uses the instruction INST, which plain data does not need")

    def stack_global(self, _: Any) -> None:
        module, qualified = self._take(2)
        if type(module) is not str or type(qualified) is not str:
            raise TypeError("a name that is no text")
        self._push_name(module, qualified)

    def _push_name(self, module: str, qualified: str) -> None:
        name = (module, qualified)
        if name not in self._builders:
            refuse_name(name)
        self._stack.append(Mark(name))

    def reduce(self, _: Any) -> None:
        """REDUCE would call the name, NEWOBJ its `__new__`; both ask the table instead."""
        function, arguments = self._take(2)
        if type(function) is not Mark or type(arguments) is not tuple:
            raise TypeError("a call of what is no name")
        self._stack.append(self._builders[function.name](*arguments))

    def build(self, _: Any) -> None:
        """BUILD would set attributes or call `__setstate__`; only records of ours take a state."""
        state = self.pop()
        target = self._stack[-1]
        if isinstance(target, Buildable):
            target.build(state)
        elif type(target) is not dict:
            # Attributes of a mapping, such as a state dict's `_metadata`, are left out.
            raise TypeError(f"a state for a {type(target).__name__}")


_METHODS: Final[Mapping[str, Callable[[_Machine, Any], None]]] = {
    "PROTO": _Machine.nothing,
    "FRAME": _Machine.nothing,
    "MARK": _Machine.mark,
    "POP": _Machine.pop_one,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.dup,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.make_tuple,
    "LIST": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "FROZENSET": _Machine.make_frozenset,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.add_items,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.global_name,
    "INST": _Machine.inst,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "BUILD": _Machine.build,
}
