"""The code that a model brings along, beside Keras's."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Iterator
from typing import Any

import keras

_OF_OTHERS = {"keras", "tensorflow", *sys.stdlib_module_names} - {"__main__", "builtins"}
_INSTALLED = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def own_code(model: keras.Model) -> bytes:
    """What Keras does not define of a model's code, to tell a changed model from an old one.

    Read are all layers, those in attributes of other layers too; of each the functions of its
    classes and the functions among its attributes; and from there on the functions, classes,
    numbers and texts that these name, alone or in lists and dicts: globals, closures, defaults,
    attributes of classes and of modules. Not followed are functions of installed packages, and
    what is set on a layer or a class from outside.

    Args:
        model: Any model.

    Returns:
        The same bytes for the same code, in other processes too; none for Keras's layers alone.
    """
    code = _Code()
    code.add(model)
    return b"".join(piece.encode() for piece in sorted(code.pieces))


class _Code:
    """Collects a text for each function that is found."""

    def __init__(self) -> None:
        self.pieces: set[str] = set()
        # Kept, so that no id is given twice.
        self._seen: dict[int, Any] = {}

    def add(self, thing: Any) -> None:
        """Reads a layer, a class or a function, alone or in containers; all else is left."""
        if isinstance(thing, _PLAIN) or id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing
        if isinstance(thing, keras.Layer):
            self._add_layer(thing)
        elif isinstance(thing, type):
            if thing is not object and _package(thing.__module__) not in _OF_OTHERS:
                self._add_class(thing)
        elif isinstance(thing, dict):
            self._add_all(thing.values())
        elif isinstance(thing, (list, tuple, set, frozenset)):
            self._add_all(thing)
        elif isinstance(thing, functools.partial):
            self.pieces.add(_values({"arguments": thing.args, "keywords": thing.keywords}))
            self._add_all((thing.func, *thing.args, *thing.keywords.values()))
        elif callable(thing):
            function = _function(thing)
            if function is not None and not _is_of_others(function):
                self._add_function(function, "")

    def _add_all(self, things: Any) -> None:
        for thing in list(things):
            self.add(thing)

    def _add_layer(self, layer: keras.Layer) -> None:
        self._add_all(type(layer).__mro__)
        # What it was compiled with says nothing of what it answers.
        self._add_all(value for name, value in vars(layer).items() if name != "loss")
        self._add_all(getattr(layer, "layers", ()))

    def _add_class(self, kind: type) -> None:
        own = {k: v for k, v in vars(kind).items() if not k.startswith("__")}
        self.pieces.add(kind.__qualname__ + _values(own))
        for member in vars(kind).values():
            inner = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
            function = _function(inner)
            if function is not None:
                self._add_function(function, kind.__qualname__)
        self._add_all(kind.__mro__)

    def _add_function(self, function: types.FunctionType, owner: str) -> None:
        named = dict(_named(function))
        text = _text(function.__code__, function.__doc__)
        self.pieces.add(f"{owner}.{text}{_values(named)}")
        self._add_all(named.values())


def _package(module: Any) -> str:
    return str(module or "").split(".")[0]


def _is_of_others(function: types.FunctionType) -> bool:
    """Whether a function that own code names is not itself own code."""
    package = _package(function.__globals__.get("__name__"))
    installed = function.__code__.co_filename.startswith(_INSTALLED)
    return installed or package in _OF_OTHERS or package == "tfcomp"


def _function(thing: Any) -> types.FunctionType | None:
    """The Python function behind decorators; None if it is something else."""
    thing = inspect.unwrap(thing) if callable(thing) else thing
    thing = getattr(thing, "__func__", thing)
    return thing if isinstance(thing, types.FunctionType) else None


def _named(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function knows from outside: closure, defaults and globals, by name."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"closure {name}", cell.cell_contents
        except ValueError:  # It has not been filled yet.
            continue
    for index, value in enumerate(function.__defaults__ or ()):
        yield f"default {index}", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"default {name}", value
    for name in _globals(function.__code__):
        if name in function.__globals__:
            value = function.__globals__[name]
            yield f"global {name}", value
            if isinstance(value, types.ModuleType) and not _is_installed(value):
                for attribute in function.__code__.co_names:
                    if attribute in vars(value):
                        yield f"global {name}.{attribute}", vars(value)[attribute]


def _is_installed(module: types.ModuleType) -> bool:
    path = str(getattr(module, "__file__", None) or "")
    package = _package(module.__name__)
    return path.startswith(_INSTALLED) or package in _OF_OTHERS or package == "tfcomp"


def _values(named: dict[str, Any]) -> str:
    """Those of the things that are numbers or texts, or lists and dicts of such."""
    return repr(sorted((name, repr(value)) for name, value in named.items() if _is_plain(value)))


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return isinstance(value, _PLAIN) or (
        isinstance(value, (list, tuple)) and all(map(_is_plain, value))
    )


def _globals(code: types.CodeType) -> set[str]:
    """Names that code reads from its module, that of functions within it too."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals(constant)
    return names


def _text(code: types.CodeType, docstring: str | None = None) -> str:
    constants = [
        _text(one)
        if isinstance(one, types.CodeType)
        # The order of a set's elements is another in each process.
        else (sorted(map(repr, one)) if isinstance(one, frozenset) else repr(one))
        for one in code.co_consts
        if docstring is None or one != docstring
    ]
    return repr((code.co_name, code.co_code, code.co_names, code.co_varnames, constants))
