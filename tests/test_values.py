"""A value comes back from source and JSON equal and of its type, or it is refused in a sentence."""

import io
import json
import math
import os
import struct
import subprocess
import sys
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from http import HTTPStatus
from pathlib import Path, PurePosixPath, PureWindowsPath
from time import process_time
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from pydantic import HttpUrl, SecretBytes, SecretStr
from typed_cases import ENUMS, Color, Permission, brief, read, same

from scalekit.forms import UnreadableValue, UnwritableValue
from scalekit.values import MASK, from_json, secret_texts, to_cell, to_json, to_python, to_source, to_text

VALUES = [
    None, True, False, 0, 1, -1, 10**18, 2**63, -(2**63), -(2**63) - 1, 10**100, -(10**5000), 0.0, -0.0, 0.1,
    1e300, 5e-324, float("inf"), float("-inf"), float("nan"), "", "text", "it's \"both\"", "a\nb\t\\",
    "äß€😀",
    "\x00\x1f\x7f", "\u2028\u2029", "\ud800", "file\udcff.txt", "$dollar", b"", b"\x00\xff'\"",
    bytearray(b"ab"), [], [1, [2, [3]]], (), (1,), (1, (2, [3])), {}, {"a": 1}, {"$a": 1}, {"$tuple": [1]},
    {1: "a"}, {(1, 2): [3]}, {None: 0}, {True: 0}, {1.5: 0}, {float("inf"): 1}, {"\ud800": 1},
    {"b": 1, "a": 2}, {b"k": {2: {3: ()}}}, set(), {1, 2}, {"a", "b"}, frozenset(), frozenset({1, (2,)}),
    {frozenset({1}), frozenset()}, range(3), range(1, 10, 2), range(5, 0, -1), 1j, complex(-0.0, 1),
    complex(1, -0.0), complex(float("nan"), float("-inf")), Decimal("0.10"), Decimal("-0"), Decimal("NaN"),
    Decimal("sNaN"), Decimal("Infinity"), Decimal("1E+30"), Fraction(1, 3), Fraction(-7), date(2026, 5, 1),
    date.min, date.max, time(), time(12, 30), time(12, 30, 0, 5, tzinfo=UTC), time(2, 30, fold=1),
    datetime(2026, 5, 1), datetime(2026, 5, 1, 12, 0, 30), datetime(2026, 5, 1, 0, 0, 0, 1), datetime.max,
    datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    datetime(2026, 5, 1, tzinfo=timezone(timedelta(hours=2), "CEST")),
    datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1), timedelta(),
    timedelta(days=-1, seconds=1), timedelta.max, timedelta(microseconds=1), UTC,
    timezone(timedelta(hours=1)), timezone(timedelta(0), "Z"), ZoneInfo("Asia/Kolkata"), Path("data/train"),
    Path("."), Path("/tmp/ä b"), Path("\udcff"), PurePosixPath("a/b"), PureWindowsPath("C:\\x"), UUID(int=7),
    Color.RED, Color.BLUE, [Color.RED], {Color.RED: 1}, Permission.READ, Permission.READ | Permission.WRITE,
    Permission(0), HTTPStatus.OK, int, float, str, HttpUrl("http://a.b/c?d=e"), np.float32(0.1),
    np.float16(65504), np.float64(-0.0), np.float64("nan"), np.float32("-inf"), np.int8(-128),
    np.uint64(2**64 - 1), np.int64(3), np.bool_(True), np.complex64(1 - 2j), np.str_("ä"), np.bytes_(b"\xff"),
    np.datetime64("2026-05-01"), np.datetime64("2026-05-01T00:00:00.123456789", "ns"),
    np.datetime64("NaT", "s"), np.datetime64("2026-05-01", "25s"), np.timedelta64(5, "D"),
    np.timedelta64("NaT", "ms"), np.float32, np.int64, np.dtype("float32"), np.dtype(">i2"), np.dtype("U5"),
    np.array(5), np.array([1, 2]), np.array([[0.1, np.nan]]), np.array([], dtype="float32"), np.zeros((0, 3)),
    np.array([1, 2], dtype="uint8"), np.array([0.1], dtype="float16"), np.array([1 + 2j], dtype="complex64"),
    np.array(["a", "bcd"]), np.array([b"ab"]), np.array([True, False]),
    np.array(["2026-05-01", "NaT"], dtype="M8[ns]"), np.array([1, 2], dtype="m8[s]"),
    np.array([1], dtype=">i4"), np.asfortranarray(np.arange(6).reshape(2, 3)),
    [np.float32(0.5), {"a": (np.int64(1), date(2026, 5, 1))}],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=brief)
def test_source_gives_the_value_back_without_any_import(value):
    names = {"__builtins__": __builtins__, **ENUMS}  # what a notebook has: its own Enums and nothing else
    assert same(eval(to_source(value), names), value)


@pytest.mark.parametrize("value", VALUES, ids=brief)
def test_json_gives_the_value_back(value):
    data = to_json(value)
    text = json.dumps(data, allow_nan=False, ensure_ascii=False)
    text.encode()  # a file can hold it
    assert same(from_json(json.loads(text), ENUMS), value)
    assert to_json(from_json(data, ENUMS)) == data


@pytest.mark.parametrize("value", VALUES, ids=brief)
def test_json_of_a_value_nested_in_containers_comes_back(value):
    nested = {"outer": [(value, {"inner": value})]}
    assert same(from_json(json.loads(json.dumps(to_json(nested), allow_nan=False)), ENUMS), nested)


@pytest.mark.parametrize("value", VALUES, ids=brief)
def test_every_faithful_value_has_one_short_line(value):
    assert "\n" not in to_text(value) or isinstance(value, str)
    assert "__import__" not in to_text(value) + to_python(value)


def test_text_of_a_value_inside_itself_ends():
    assert to_text(_loop()) == "{'self': {...}}"


def test_torch_number_types_are_values():
    import torch

    source = to_source({"dtype": torch.bfloat16})
    assert eval(source, {}) == {"dtype": torch.bfloat16}
    assert from_json(json.loads(json.dumps(to_json(torch.float16)))) is torch.float16


def test_code_of_the_notebook_gets_its_own_enum_members_back(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "Color", Color, raising=False)
    assert from_json(to_json([Color.RED])) == [Color.RED]


def test_the_same_set_always_gives_the_same_text():
    words = {f"word{i}" for i in range(50)}
    script = "from scalekit.values import to_source; print(to_source({f'word{i}' for i in range(50)}))"
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True
    )
    assert other.stdout.strip() == to_source(words)


Point = namedtuple("Point", "x y")


class Text(str):
    pass


def _nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def _loop() -> dict:
    value: dict = {}
    value["self"] = value
    return value


class _Inner:
    pass


def _local_enum():
    class Local(Enum):
        A = 1

    return Local.A


def _nameless_zone() -> ZoneInfo:
    "The smallest file of a time zone that zoneinfo reads: UTC, no transitions"
    header = b"TZif2" + bytes(15) + struct.pack(">6l", 0, 0, 0, 0, 1, 4)
    body = struct.pack(">lbb", 0, 0, 0) + b"UTC\0"
    return ZoneInfo.from_file(io.BytesIO((header + body) * 2 + b"\nUTC0\n"))


REFUSED = [
    (object(), "type object would not come back unchanged. Pass numbers"),
    (Point(1, 2), "Point would not come back unchanged. Pass tuple(value)"),
    (Text("a"), "Pass str(value)"),
    (OrderedDict(a=1), "Pass dict(value)"),
    (
        pd.DataFrame({"a": [1]}),
        "pandas.DataFrame would not come back unchanged. Save it and pass the file's path",
    ),
    (pd.Timestamp("2026-05-01"), "pandas.Timestamp"),
    (pd.NaT, "pandas.NaTType"),
    (np.zeros(10_001), "10,001 elements is too large to write (at most 10,000). Save it and pass its path"),
    (np.array([object()]), "dtype object cannot be written"),
    (np.zeros(1, dtype="i4,f4"), "cannot be written"),
    (np.zeros(2, dtype=np.longdouble), "cannot be written"),
    (np.ma.array([1]), "MaskedArray"),
    (np.longdouble(1), "numpy.longdouble would not come back"),
    (np.dtype("i4,f4"), "would not come back"),
    (len, "builtin_function_or_method"),
    (lambda: 1, "type function would not"),
    (math, "type module would not"),
    (_Inner, "the class _Inner cannot be written. Pass its name as text"),
    (_nameless_zone(), "Use ZoneInfo('Area/City')"),
    (_local_enum(), "lives inside a function"),
    (_nested(200), "nested 90 levels deep, or in itself"),
    (_loop(), "nested 90 levels deep, or in itself"),
    ({"a": [(object(),)]}, "type object would not"),
]


@pytest.mark.parametrize(("value", "sentence"), REFUSED, ids=brief)
def test_what_would_not_come_back_unchanged_is_refused_in_a_sentence(value, sentence):
    for write in (to_source, to_json):
        with pytest.raises(UnwritableValue) as caught:
            write(value)
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        {"$os.system": ["ls"]}, {"$eval": ["1"]}, {"$eval": None}, {"$antigravity": None},
        {"$subprocess.run": [["ls"]]},
        {"$numpy.load": ["x"]}, {"$torch.load": ["x"]}, {"$pydantic.BaseModel": []},
        {"$builtins.eval": ["1"]},
        {"$datetime.date": [2026, 13, 1]}, {"$datetime.date": {"a": 1}}, {"$decimal.Decimal": ["x"]},
        {"$enum": "Shade.RED"}, {"$enum": "os.environ"}, {"$enum": "Color.PINK"},
        {"$enum": "Permission", "value": 99},
        {"$int": ["zz", 16]}, {"$": 1}, {"$pathlib.Path.home": []},
        {"$pathlib.Path": [{"$os.system": ["ls"]}]},
    ],
    ids=brief,
)  # fmt: skip
def test_json_that_scalekit_did_not_write_calls_nothing(data):
    with pytest.raises(UnreadableValue):
        from_json(data, ENUMS)
    assert "antigravity" not in sys.modules


def test_twenty_megabytes_of_text_take_a_moment():
    text = "line of text\n" * 1_600_000
    signature = read("corpus: str = ''\nanything = None")
    begin = process_time()
    for name in ("corpus", "anything"):
        assert signature.check({name: text})[name] == text
        assert signature.parse([f"{name}={text}"])[name] == text
    source, data = to_source(text), to_json(text)
    assert process_time() - begin < 3  # papermill needs 7 s
    assert eval(source, {}) == text == data


def test_a_list_of_a_hundred_thousand_numbers_is_written_quickly():
    values = [i / 7 for i in range(100_000)]
    begin = process_time()
    assert eval(to_source(values), {}) == values
    assert from_json(to_json(values)) == values
    assert process_time() - begin < 5


SECRETS = """
from pydantic import SecretStr, SecretBytes
token: SecretStr
keys: dict[str, SecretStr] = {}
raw: SecretBytes = None
"""


def test_a_secret_is_masked_everywhere_but_for_the_kernel():
    values = read(SECRETS).check({"token": "hunter2", "keys": {"a": "s3cret"}, "raw": b"by\xfftes"})
    for text in (to_cell(values), json.dumps(to_json(values)), to_text(values), str(values)):
        assert not any(secret in text for secret in ("hunter2", "s3cret", "tes'"))
    names: dict = {}
    exec(to_cell(values, reveal=True), names)
    assert names["token"] == SecretStr("hunter2")
    assert names["keys"] == {"a": SecretStr("s3cret")}
    assert names["raw"] == SecretBytes(b"by\xfftes")


def test_every_spelling_of_a_secret_is_listed_the_longest_first():
    values = {
        "a": SecretStr("pass"),
        "b": [SecretStr("pass'word\n")],
        "c": {"x": SecretBytes(b"\xff")},
        "d": "open",
    }
    assert secret_texts(values) == ["pass'word\\n", "pass'word\n", "\\\\xff", "\\xff", "pass"]
    assert secret_texts({"empty": SecretStr(""), "masked": SecretStr(MASK)}) == []


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    A = "a"


Level.__module__ = Word.__module__ = "__main__"


def test_members_of_mixed_enums_keep_their_class():
    assert to_source([Level.LOW, Word.A]) == "[Level.LOW, Word.A]"
    assert to_json(Word.A) == {"$enum": "Word.A"}
    assert to_text([Level.LOW, Word.A]) == "['LOW', 'A']"
