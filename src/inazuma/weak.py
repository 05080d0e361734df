"""References back: to what holds the object, or to what outlives it. They keep nothing alive, so that all is freed when
its last name goes, without a garbage collection."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class _Reference:
    """A reference that is left out of copies and pickles. `get` is a plain weak one: torch.compile can trace that."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self.get = get

    def __reduce__(self) -> Any:
        return _Reference, (_nothing,)


def _nothing() -> None:
    return None


def _same(value: T) -> T:
    return value


class Weak(Generic[T]):
    """An attribute that does not keep its value alive; None where it was not set, and once the value is gone."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_weak_{name}"

    def __get__(self, instance: object | None, owner: type) -> T | None:
        reference = None if instance is None else vars(instance).get(self._name)
        return None if reference is None else cast("T | None", reference.get())

    def __set__(self, instance: object, value: T | None) -> None:
        get: Callable[[], Any]
        try:
            get = _nothing if value is None else weakref.ref(value)
        except TypeError:  # some stand-ins in tests cannot be referred to weakly
            get = partial(_same, value)
        vars(instance)[self._name] = _Reference(get)
