"""What the tests of parameters share: notebooks, Enums, and equality that looks closely."""

import math
import re
import textwrap
from datetime import datetime, time
from decimal import Decimal
from enum import Enum, Flag
from typing import Any

import numpy as np
import pytest

from scalekit.signature import ParameterError, Signature, read_signature


def make_notebook(parameters: str, *before: str, **metadata) -> dict:
    "A notebook whose last cell holds `parameters`"
    sources = [textwrap.dedent(source).strip("\n") for source in (*before, parameters)]
    cells: list[dict] = [{"cell_type": "code", "metadata": {}, "source": source} for source in sources]
    cells[-1]["metadata"] = {"tags": ["parameters"]}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def read(parameters: str, *before: str, **metadata) -> Signature:
    return read_signature(make_notebook(parameters, *before, **metadata), "train.ipynb")


def mistake(call, *args, **keywords) -> str:
    "The message of the `ParameterError` that a call ends in"
    with pytest.raises(ParameterError) as caught:
        call(*args, **keywords)
    return str(caught.value)


def same(a: Any, b: Any) -> bool:
    "Equal, of one type, down to the sign of zero, NaN and the order of dicts"
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and same(a.tolist(), b.tolist())
    if isinstance(a, np.datetime64 | np.timedelta64):
        return a.dtype == b.dtype and (a == b or np.isnat(a) and np.isnat(b))
    if isinstance(a, float | np.floating):
        return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)
    if isinstance(a, complex | np.complexfloating):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, Decimal):
        return a.as_tuple() == b.as_tuple()
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, datetime | time) and a.fold != b.fold:
        return False
    if isinstance(a, datetime):
        return a.replace(tzinfo=None) == b.replace(tzinfo=None) and repr(a.tzinfo) == repr(b.tzinfo)
    return bool(a == b)


def brief(value: Any) -> str:
    "Name of a case, the same in each process"
    try:
        shown = sorted(value, key=repr) if isinstance(value, set) else value
        return re.sub(" at 0x[0-9a-f]+", "", ascii(shown))[:40]
    except ValueError:  # Python does not print integers beyond 4,300 digits
        return "huge"


class Color(Enum):
    "An Enum as a notebook would hold it; a test stands in for the notebook by giving the name"

    RED = 1
    BLUE = "blue"


Color.__module__ = "__main__"


class Permission(Flag):
    READ = 1
    WRITE = 2


Permission.__module__ = "__main__"
ENUMS = {"Color": Color, "Permission": Permission}
