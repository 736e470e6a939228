"""NumPy arrays in pickles, read without running anything that the file asks for.

``pickle`` builds objects by calling what the file names. Here the file is taken apart by
``pickletools``, like a program by a disassembler: a call becomes a :class:`Call` that nobody
makes, and :func:`array_of` takes the numbers out of those that describe an array. A
``pickle.Unpickler`` with a list of allowed names would not do: a few bytes make it reserve all
memory (the index of a memo), or overflow the C stack (a nested tuple as a key).
"""

import math
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

_MOST_STEPS = 10**7
# What may be named: nothing is called, but a file that asks for more is not what it seems.
_PACKAGES = frozenset(("numpy", "collections", "pathlib", "copyreg", "copy_reg"))
_BUILTINS = frozenset("bytes bytearray set frozenset list dict tuple complex object".split())
_ENCODE, _DICT, _DTYPE = "_codecs.encode", "collections.OrderedDict", "numpy.dtype"
_KINDS = frozenset("biuf")  # boolean, whole and floating numbers
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_DICT": dict}
_SAFE_KEYS = (str, int, float, bytes, bool)


class PickleError(ValueError):
    """A pickle that is damaged or refers to more than arrays and containers."""


@dataclass(eq=False, repr=False)
class Call:
    """A call that a pickle asks for and that is not made.

    Attributes:
        name: module and name of what is called.
        arguments: its arguments.
        state: what its result is then set to.
    """

    name: str
    arguments: Sequence[Any] = ()
    state: Any = None


def read_pickle(file: IO[bytes]) -> Any:
    """Read a pickle as dicts, lists, tuples, text, numbers, bytes and :class:`Call`.

    Sets are lists, and entries with other keys than text, numbers and bytes are left out.

    Args:
        file: at the beginning of the pickle. A file on disk is better mapped into memory: a map
            never reserves more bytes than there are.

    Raises:
        PickleError: it is damaged, or refers to more than NumPy, containers and paths.
    """
    machine = _Machine()
    try:
        for number, (step, argument, _) in enumerate(pickletools.genops(file)):
            if number == _MOST_STEPS:
                raise PickleError(f"it has more than {_MOST_STEPS} steps")
            machine.run(step, argument)
        return machine.stack.pop()
    except PickleError:
        raise
    except Exception as error:  # damaged bytes make it raise nearly anything
        raise PickleError(str(error) or type(error).__name__) from error


def array_of(value: Any) -> np.ndarray | None:
    """Return a described array of numbers; None for anything else.

    Raises:
        PickleError: its shape does not fit to its bytes.
    """
    if not isinstance(value, Call):
        return None
    name = value.name.rpartition(".")[2]
    if name == "_reconstruct" and type(value.state) is tuple and len(value.state) == 5:
        _, shape, dtype, by_columns, content = value.state
    elif name == "_frombuffer" and len(value.arguments) == 4:  # of protocol 5
        content, dtype, shape, order = value.arguments
        by_columns = order == "F"
    else:
        return None
    kind = _dtype(dtype)
    is_shape = type(shape) is tuple and all(type(side) is int and side >= 0 for side in shape)
    if kind is None or not is_shape:
        return None
    content = _bytes(content)
    if content is None or math.prod(shape) * kind.itemsize != len(content):
        raise PickleError("the shape of an array does not fit to its bytes")
    array = np.frombuffer(content, kind).reshape(shape, order="F" if by_columns else "C")
    return array.copy()  # the bytes of a file cannot be written to


def _dtype(value: Any) -> np.dtype | None:
    """Return a described type of numbers; None for text, objects and records."""
    if not isinstance(value, Call) or value.name != _DTYPE or not value.arguments:
        return None
    code, state = value.arguments[0], value.state
    if not isinstance(code, str) or code[:1] not in _KINDS or code[1:] not in ("1", "2", "4", "8"):
        return None
    order = state[1] if type(state) is tuple and len(state) > 1 else "="
    return np.dtype((order if order in ("<", ">") else "=") + code)


def _bytes(value: Any) -> bytes | None:
    if isinstance(value, Call) and value.name == _ENCODE and value.arguments:  # protocols 0 to 2
        value = value.arguments[0]
    if isinstance(value, str):
        return value.encode("latin-1")
    return bytes(value) if isinstance(value, (bytes, bytearray)) else None


class _Machine:
    """The stack and the memo of a pickle.

    Attributes:
        stack: what was read and not yet taken.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, step: pickletools.OpcodeInfo, argument: Any) -> None:
        """Take one step."""
        name, stack = step.name, self.stack
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name in ("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD"):
            self._call(name, argument)
        elif name in ("PERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER"):
            raise PickleError(f"it has the step {name}")
        elif not step.stack_before and len(step.stack_after) == 1:
            stack.append(argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            self._collect(name)

    def _call(self, name: str, argument: Any) -> None:
        last = argument.split(" ", 1) if name == "GLOBAL" else self.stack.pop()
        if name == "GLOBAL":
            self.stack.append(_named(*last))
        elif name == "STACK_GLOBAL":
            self.stack.append(_named(self.stack.pop(), last))
        elif name == "BUILD":
            if isinstance(self.stack[-1], Call):
                self.stack[-1].state = last
        else:
            called = self.stack.pop().name
            pairs = last[0] if called == _DICT and last else []
            made = dict(pairs) if called == _DICT else Call(called, last)
            self.stack.append(made)

    def _collect(self, name: str) -> None:
        """Take a step that puts what is on the stack into a container."""
        stack = self.stack
        if name in ("TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "SETITEM", "POP"):
            count = {"TUPLE2": 2, "TUPLE3": 3, "SETITEM": 2}.get(name, 1)
            place = len(stack) - count
        else:
            place = self._marks.pop()
        items = stack[place:]
        del stack[place:]
        if name.startswith("TUPLE"):
            stack.append(tuple(items))
        elif name in ("LIST", "FROZENSET"):
            stack.append(items)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("DICT", "SETITEM", "SETITEMS"):
            if name == "DICT":
                stack.append({})
            if isinstance(stack[-1], dict):
                pairs = zip(items[::2], items[1::2], strict=True)
                stack[-1].update((key, item) for key, item in pairs if type(key) in _SAFE_KEYS)
        elif name not in ("POP", "POP_MARK"):
            raise PickleError(f"it has the step {name}")


def _named(module: Any, name: Any) -> Call:
    """Return what a pickle refers to, if it belongs to arrays, containers or paths."""
    builtin = module in ("builtins", "__builtin__") and name in _BUILTINS
    is_known = builtin or f"{module}.{name}" == _ENCODE or str(module).split(".")[0] in _PACKAGES
    if not is_known or not isinstance(name, str):
        raise PickleError(f"it refers to {module}.{name}, not only to arrays and containers")
    return Call(f"{module}.{name}")
