"""A value becomes what a type promises, by the door it comes through, or it is refused."""

import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import annotated_types as at
import numpy as np
import pandas as pd
import pytest
from pydantic import Field, SecretStr
from typed_cases import Color, Permission, brief, same

from scalekit.typed.convert import BadValue, convert, find_example
from scalekit.typed.expressions import UNKNOWN, read_literal
from scalekit.values import to_text

STRICT = [
    (int, "3"),
    (int, 3.0),
    (int, True),
    (int, None),
    (int, np.float64(3)),
    (int, np.bool_(True)),
    (float, True),
    (float, "1"),
    (float, 1j),
    (str, 1),
    (str, b"a"),
    (str, Path("a")),
    (bool, 1),
    (bool, "true"),
    (bytes, "a"),
    (bytes, bytearray(b"a")),
    (list[int], (1,)),
    (list[int], [1, "2"]),
    (list[int], {1}),
    (tuple[int, ...], [1]),
    (tuple[int, int], (1, 2, 3)),
    (tuple[int, int], (1,)),
    (set[int], [1]),
    (frozenset[int], {1}),
    (dict[str, int], {"a": "1"}),
    (dict[int, str], {"1": "a"}),
    (date, datetime(2026, 5, 1)),
    (date, "2026-05-01"),
    (datetime, date(2026, 5, 1)),
    (datetime, np.datetime64("2026-05-01T00:00:00.123456789", "ns")),
    (timedelta, 3),
    (Decimal, 0.1),
    (Decimal, "0.1"),
    (Decimal, True),
    (Fraction, 0.5),
    (Literal[1, 2], True),
    (Literal[1], 1.0),
    (Literal["a"], "A"),
    (Color, 2),
    (Color, True),
    (Color, "GREEN"),
    (np.float32, "1"),
    (np.int8, 300),
    (np.int8, 1.5),
    (np.uint8, -1),
    (np.int64, True),
    (np.bool_, 1),
    (np.ndarray, 5),
    (np.ndarray, "a"),
    (np.ndarray, [[1], [2, 3]]),
    (Annotated[float, at.Gt(0)], 0),
    (Annotated[float, at.Gt(0)], float("nan")),
    (Annotated[float, at.Gt(0)] | None, -1),
    (Annotated[int, at.MultipleOf(8)], 9),
    (Annotated[list[int], at.Len(2)], [1]),
    (UUID, "x"),
    (int | str, 1.5),
    (list[Annotated[int, at.Gt(0)]], [1, 0]),
    (dict[str, list[int]], {"a": [1, None]}),
    (SecretStr, 1),
    (Path, 1),
    (range, [1]),
]


@pytest.mark.parametrize(("kind", "value"), STRICT, ids=brief)
def test_a_python_value_is_never_guessed_at(kind, value):
    with pytest.raises(BadValue, match="must be"):
        convert(kind, value)


KEPT = [
    (float, 1, 1.0),
    (float, np.float32(0.5), 0.5),
    (float, Decimal("0.5"), 0.5),
    (float, np.int64(2), 2.0),
    (int, np.int64(3), 3),
    (bool, np.bool_(True), True),
    (str, np.str_("a"), "a"),
    (complex, 1, 1 + 0j),
    (Path, "a/b", Path("a/b")),
    (Decimal, 1, Decimal(1)),
    (Fraction, 2, Fraction(2)),
    (list[float], np.array([1.0, 2.0]), [1.0, 2.0]),
    (tuple[int, ...], np.array([1, 2]), (1, 2)),
    (list[int], [np.int64(1)], [1]),
    (list[list[int]], np.eye(2, dtype=int), [[1, 0], [0, 1]]),
    (datetime, np.datetime64("2026-05-01", "ns"), datetime(2026, 5, 1)),
    (datetime, pd.Timestamp("2026-05-01", tz="UTC"), datetime(2026, 5, 1, tzinfo=UTC)),
    (date, np.datetime64("2026-05-01"), date(2026, 5, 1)),
    (timedelta, np.timedelta64(1, "s"), timedelta(seconds=1)),
    (np.float32, 0.1, np.float32(0.1)),
    (np.float32, 1, np.float32(1)),
    (np.int8, np.int64(5), np.int8(5)),
    (np.ndarray, [1, 2], np.array([1, 2])),
    (Any, np.float32(1), np.float32(1)),
    (Any, (1,), (1,)),
    (Any, True, True),
    (int | float, 3, 3),
    (float | int, 3, 3),
    (int | str, "3", "3"),
    (int | None, None, None),
    (set[int], {1}, {1}),
    (dict[int, float], {1: 1}, {1: 1.0}),
    (Literal[1, "a"], "a", "a"),
    (Color, "RED", Color.RED),
    (Color, 1, Color.RED),
    (bytes, b"a", b"a"),
    (Color, "blue", Color.BLUE),
    (Permission, 3, Permission.READ | Permission.WRITE),
    (range, range(3), range(3)),
    (list, ["a", 1], ["a", 1]),
]


@pytest.mark.parametrize(("kind", "value", "kept"), KEPT, ids=brief)
def test_a_python_value_that_says_the_same_is_taken(kind, value, kept):
    assert same(convert(kind, value), kept)


TEXTS = [
    (int, "3", 3),
    (int, "-3", -3),
    (int, "1_000", 1000),
    (int, "1e6", 10**6),
    (int, " 7 ", 7),
    (int, "0x10", 16),
    (float, "0.1", 0.1),
    (float, "1", 1.0),
    (float, "1e-3", 1e-3),
    (float, "nan", math.nan),
    (float, "-inf", -math.inf),
    (float, "NaN", math.nan),
    (float, "Infinity", math.inf),
    (bool, "true", True),
    (bool, "False", False),
    (bool, "yes", True),
    (bool, "0", False),
    (bool, "off", False),
    (str, "3", "3"),
    (str, "true", "true"),
    (str, "'a'", "'a'"),
    (str, "None", "None"),
    (str, "", ""),
    (str, " a ", " a "),
    (str | None, "None", None),
    (str | None, "null", None),
    (str | None, "a", "a"),
    (str | None, "3", "3"),
    (int | None, "None", None),
    (int | None, "3", 3),
    (int | str, "3", 3),
    (int | str, "a", "a"),
    (int | float, "3", 3),
    (int | float, "3.0", 3.0),
    (float | int, "3", 3),
    (Path, "~/a b", Path("~/a b")),
    (Path | None, "x", Path("x")),
    (list[int], "[1, 2]", [1, 2]),
    (list[int], "1,2", [1, 2]),
    (list[int], "(1, 2)", [1, 2]),
    (tuple[int, str], "[1, 'a']", (1, "a")),
    (tuple[int, ...], "(1,)", (1,)),
    (set[int], "{1, 2}", {1, 2}),
    (set[int], "[1, 2]", {1, 2}),
    (frozenset[str], '["a"]', frozenset({"a"})),
    (dict[str, int], '{"a": 1}', {"a": 1}),
    (dict[int, float], '{"1": 1}', {1: 1.0}),
    (dict[int, str], "{1: 'a'}", {1: "a"}),
    (list[float | None], "[1, null, NaN]", [1.0, None, math.nan]),
    (list[date], '["2026-05-01"]', [date(2026, 5, 1)]),
    (dict[date, Path], '{"2026-05-01": "x"}', {date(2026, 5, 1): Path("x")}),
    (list[bool], "[true, False]", [True, False]),
    (date, "2026-05-01", date(2026, 5, 1)),
    (datetime, "2026-05-01", datetime(2026, 5, 1)),
    (time, "12:30", time(12, 30)),
    (datetime, "2026-05-01T12:00:00Z", datetime(2026, 5, 1, 12, tzinfo=UTC)),
    (timedelta, "01:30:00", timedelta(minutes=90)),
    (datetime, "2026-05-01 12:00+02:00", datetime(2026, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))),
    (timedelta, "P1D", timedelta(1)),
    (timedelta, "1 day", timedelta(1)),
    (Decimal, "0.10", Decimal("0.10")),
    (Decimal, "0.1000000000000000000001", Decimal("0.1000000000000000000001")),
    (Fraction, "1/3", Fraction(1, 3)),
    (complex, "1+2j", 1 + 2j),
    (complex, "2", 2 + 0j),
    (bytes, "abc", b"abc"),
    (bytes, "b'\\xff'", b"\xff"),
    (UUID, "00000000-0000-0000-0000-000000000007", UUID(int=7)),
    (ZoneInfo, "Europe/Berlin", ZoneInfo("Europe/Berlin")),
    (Color, "RED", Color.RED),
    (Color, "1", Color.RED),
    (Color, "blue", Color.BLUE),
    (Color, "Color.BLUE", Color.BLUE),
    (Permission, "READ|WRITE", Permission.READ | Permission.WRITE),
    (Color | None, "None", None),
    (list[Color], '["RED", "blue"]', [Color.RED, Color.BLUE]),
    (Literal["a", "b"], "a", "a"),
    (Literal[16, 32], "16", 16),
    (Literal["auto", 16], "auto", "auto"),
    (Literal["auto", 16], "16", 16),
    (Literal["1"], "1", "1"),
    (np.float32, "0.1", np.float32(0.1)),
    (np.int8, "5", np.int8(5)),
    (np.ndarray, "[[1, 2], [3, 4]]", np.array([[1, 2], [3, 4]])),
    (range, "range(0, 3)", range(3)),
    (Any, "3", 3),
    (Any, "1e-3", 1e-3),
    (Any, "a", "a"),
    (Any, "true", True),
    (Any, "null", None),
    (Any, "[1, 'a']", [1, "a"]),
    (Any, "2026-10-12", "2026-10-12"),
    (Any, "1/3", "1/3"),
    (Any, "int", "int"),
    (Any, "numpy", "numpy"),
    (Any, "os.environ", "os.environ"),
    (Any, "", ""),
    (Any, "yes", "yes"),
    (Any, "'3'", "3"),
    (Any, "(", "("),
]


@pytest.mark.parametrize(("kind", "text", "value"), TEXTS, ids=brief)
def test_text_from_a_terminal_becomes_the_type(kind, text, value):
    assert same(convert(kind, text, "text"), value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (int, "3.5"),
        (int, "a"),
        (int, ""),
        (int, "True"),
        (float, "a"),
        (float, "1,5"),
        (bool, "2"),
        (bool, "maybe"),
        (date, "5"),
        (date, "2026-13-01"),
        (datetime, "yesterday"),
        (timedelta, "90"),
        (Decimal, "a"),
        (Fraction, "1/0"),
        (list[int], "a"),
        (ZoneInfo, "No/Where"),
        (list[int], "[1, 2"),
        (list[int], '["1"]'),
        (dict[int, str], "[1]"),
        (tuple[int, int], "(1,)"),
        (Literal["a"], "b"),
        (np.int8, "300"),
        (Color, "2"),
        (UUID, "x"),
        (complex, "x"),
        (int | None, "x"),
    ],
    ids=brief,
)
def test_text_that_does_not_say_the_type_is_refused(kind, text):
    with pytest.raises(BadValue, match="must be"):
        convert(kind, text, "text")


JSONS = [
    (date, "2026-05-01", date(2026, 5, 1)),
    (tuple[int, date], [1, "2026-05-01"], (1, date(2026, 5, 1))),
    (set[int], [1], {1}),
    (dict[int, str], {"1": "a"}, {1: "a"}),
    (Decimal, 0.1, Decimal("0.1")),
    (Decimal, "0.1", Decimal("0.1")),
    (Color, "blue", Color.BLUE),
    (float, 1, 1.0),
    (bytes, "é", b"\xc3\xa9"),
    (Path, "a", Path("a")),
    (list[tuple[int, int]], [[1, 2]], [(1, 2)]),
    (np.float32, 0.1, np.float32(0.1)),
]


@pytest.mark.parametrize(("kind", "data", "value"), JSONS, ids=brief)
def test_json_written_by_hand_becomes_the_type(kind, data, value):
    assert same(convert(kind, data, "json"), value)


@pytest.mark.parametrize(
    ("kind", "data"), [(int, "3"), (int, 3.0), (float, "1"), (bool, 1), (str, 1), (bool, "true")]
)
def test_json_is_not_guessed_at_where_it_has_the_type(kind, data):
    with pytest.raises(BadValue):
        convert(kind, data, "json")


@pytest.mark.parametrize("kind", [kind for kind, _, _ in TEXTS + KEPT + JSONS], ids=brief)
def test_every_type_has_an_example_that_it_takes_back_as_text(kind):
    example = find_example(kind)
    if example is not UNKNOWN:
        assert same(convert(kind, example), example)
        text = to_text(example)
        assert same(convert(kind, text, "text"), example), text


def test_a_literal_of_a_terminal_calculates_nothing():
    for text in (
        "2026-10-12",
        "1/3",
        "2**10",
        "a",
        "int",
        "datetime",
        "",
        "1 2",
        "print(1)",
        "x" * 2_000_000,
    ):
        assert read_literal(text) is UNKNOWN
    assert read_literal("datetime.date(2026, 5, 1)") == date(2026, 5, 1)


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        (str | Annotated[float, at.Gt(0)], -1, "must be > 0, got -1"),
        (int | list[int], [1, "a"], "[1] must be int, got 'a'"),
        (dict[str, list[int]], {"a": [1, None]}, "['a'][1] must be int, got None"),
        (tuple[int, int], (1, 2, 3), "must be tuple[int, int], got (1, 2, 3)"),
        (tuple[int, int], (1,), "must be tuple[int, int], got (1,)"),
        (int | None, "x", "must be int | None, got 'x'"),
        (Annotated[list[int], at.Len(2)], [1], "must be at least 2 long, got [1]"),
        (list[Color], ["RED", "PINK"], "[1] must be one of RED, BLUE, got 'PINK'"),
    ],
    ids=brief,
)
def test_the_most_telling_reason_is_given(kind, value, sentence):
    with pytest.raises(BadValue) as caught:
        convert(kind, value)
    assert str(caught.value) == sentence


def test_a_member_of_an_integer_enum_given_for_an_integer_is_its_number():
    value = convert(Annotated[int, Field(gt=0)], HTTPStatus.OK)
    assert (value, type(value)) == (200, int)
