"""Wrong inputs of every kind end in one clear line, at every entry point."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

import dfx
from dfx.datasets import Augmentation, PairedAudio, Treatment, Window
from dfx.errors import UserError
from dfx.tasks import Task, TubeAmp

# --- numbers in the options --------------------------------------------------------------------------

NUMBERS = {"zero": 0, "negative": -1, "nan": math.nan, "infinite": math.inf, "huge": 10**400, "text": "two\nlines"}
"""Numbers for every option; the last four are outside of all ranges."""


def option_classes() -> list[type]:
    """Return the dataclasses that configs hold, and the data module."""
    found = {Augmentation, PairedAudio, Treatment}
    for _, module, _ in pkgutil.walk_packages(dfx.__path__, "dfx."):
        if not module.endswith("__main__"):
            kinds = filter(dataclasses.is_dataclass, vars(importlib.import_module(module)).values())
            found.update(kind for kind in kinds if isinstance(kind, type) and kind.__name__.endswith("Options"))
    return sorted(found, key=lambda kind: kind.__name__)


def numeric_options() -> list[tuple[Callable[..., Any], str, str]]:
    """Return every class with options, the names of its numeric options, and their types."""
    hints = [(kind, get_type_hints(kind)) for kind in option_classes()]
    hints.append((Task, get_type_hints(Task.__init__)))
    return [
        (kind, name, str(hint))
        for kind, of_kind in hints
        for name, hint in of_kind.items()
        if name in inspect.signature(kind).parameters and re.search(r"\b(int|float)\b", str(hint))
    ]


def construct(kind: Callable[..., Any], **options: Any) -> Any:
    if kind is Task:
        return TubeAmp([{"effect": "pedalboard:Gain"}], **options)
    if kind is PairedAudio:
        return PairedAudio(**{"root": "", "sample_rate": 22050, "channels": 1, "window": Window(4096, 1024), **options})
    return kind(**options)


def wrapped(hint: str, number: Any) -> Any:
    """Return a number in the container that a type asks for."""
    containers = {"dict": {"an effect.a parameter": number}, "tuple": (number, number), "list": [number]}
    return next((value for container, value in containers.items() if container in hint), number)


OPTIONS = numeric_options()


def test_the_options_of_all_parts_are_found():
    assert len({kind for kind, _, _ in OPTIONS}) >= 13 and len(OPTIONS) >= 45


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind, name, hint", OPTIONS, ids=lambda value: getattr(value, "__name__", value))
def test_a_number_out_of_range_is_refused_with_the_name_of_its_option(kind, name, hint, number):
    is_refused = number not in ("zero", "negative")
    try:
        construct(kind, **{name: wrapped(hint, NUMBERS[number])})
    except UserError as error:
        assert name in str(error) and "must be" in str(error) and len(str(error).splitlines()) == 1
        is_refused = False
    assert not is_refused
