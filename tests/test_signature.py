"""A call that does not fit a notebook ends in a sentence before anything starts."""

import json
from datetime import date
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from pydantic import SecretStr
from typed_cases import mistake, read, same

from scalekit.core import ScaleKitError
from scalekit.signature import (
    BadParameter,
    MissingParameter,
    ParameterError,
    UnknownParameter,
    describe,
    list_rows,
)
from scalekit.typed.kinds import describe_allowed
from scalekit.values import MASK, to_json

SECRETS = "from pydantic import SecretStr\ntoken: SecretStr"


def test_what_check_gave_check_takes_again():
    signature = read(
        """
        from typing import *
        from pydantic import SecretStr
        import datetime
        from enum import Enum
        import numpy as np
        class Color(Enum):
            RED = 1
        lr = 0.1
        day: datetime.date = None
        key: SecretStr = None
        c: Color = None
        f: np.float32 = None
        t: tuple[int, ...] = ()
        """
    )
    values = signature.parse(["lr=1", "day=2026-05-01", "key=a", "c=RED", "f=0.1", "t=[1,2]"])
    assert same(signature.check(values), values)


TRAIN = """
from typing import Annotated, Literal
from pydantic import Field
data: str                                             # folder
lr: Annotated[float, Field(gt=0, le=1)] = 0.5
optimizer: Literal["adam", "sgd"] = "adam"
layers: list[int] = [64]
momentum = 0.9
"""


def test_an_error_names_the_place_the_promise_what_arrived_and_the_way_out():
    signature = read(TRAIN)
    texts = {
        "lr=-1": "parameter lr must be > 0, got -1. Allowed: 0 < lr <= 1. Example: -p lr=0.5",
        "lr=2": "parameter lr must be <= 1, got 2. Allowed: 0 < lr <= 1. Example: -p lr=0.5",
        "lr=fast": "parameter lr must be float, got 'fast'. Allowed: 0 < lr <= 1. Example: -p lr=0.5",
        "optimizer=adan": "parameter optimizer must be one of 'adam', 'sgd', got 'adan'. "
        "Example: -p optimizer=adam",
        "optimizer=sdg": "parameter optimizer must be one of 'adam', 'sgd', got 'sdg'. "
        "Example: -p optimizer=sgd",
        "layers=[1, 'a']": "parameter layers[1] must be int, got 'a'. Example: -p 'layers=[64]'",
        "momentum=x": "parameter momentum must be float, got 'x'. Example: -p momentum=0.9",
    }
    for word, sentence in texts.items():
        assert mistake(signature.parse, [word]) == f"train.ipynb: {sentence}"
    assert mistake(signature.check, {"lr": -1, "data": "x"}).endswith("Allowed: 0 < lr <= 1. Example: lr=0.5")


def test_an_unknown_name_leads_to_the_nearest():
    with pytest.raises(UnknownParameter) as caught:
        read(TRAIN).check({"learning_rate": 1, "data": "x"})
    assert str(caught.value) == (
        "train.ipynb has no parameter 'learning_rate'. There are: data, layers, lr, momentum, optimizer"
    )
    assert "Did you mean 'momentum'?" in mistake(read(TRAIN).parse, ["momentun=1"])


def test_a_missing_parameter_is_named_with_its_help():
    with pytest.raises(MissingParameter) as caught:
        read(TRAIN).check({"lr": 0.1}, cli=True)
    assert str(caught.value) == (
        "train.ipynb: parameter data (folder) has no default and must be given. Example: -p data=text"
    )
    assert read(TRAIN).parse(["lr=0.1"]) == {"lr": 0.1}  # a grid may bring the rest


def test_all_mistakes_are_reported_together():
    with pytest.raises(ParameterError) as caught:
        read(TRAIN).check({"lr": -1, "epochs": 3, "layers": 5})
    assert type(caught.value) is ParameterError
    assert isinstance(caught.value, ScaleKitError)
    assert len(caught.value.mistakes) == 4
    assert [line.split(":")[-2][-9:] for line in caught.value.mistakes if "Example" in line]
    with pytest.raises(BadParameter) as caught:
        read(TRAIN).parse(["lr=-1", "layers=a"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("words", [["lr"], ["=1"], ["lr=0.1", "lr=0.2"], [" =1"]])
def test_words_that_are_no_parameters_are_refused(words):
    assert "train.ipynb: " in mistake(read(TRAIN).parse, words)


def test_a_value_that_cannot_reach_the_kernel_is_refused_before_it_starts():
    signature = read("anything = None\nmodel: Net = None")
    assert "parameter anything: a value of type pandas.DataFrame" in mistake(
        signature.check, {"anything": pd.DataFrame()}
    )
    assert "type object" in mistake(signature.check, {"model": object()})


def test_a_long_value_is_cut_in_the_error():
    message = mistake(read("n: int = 1").check, {"n": "x" * 10_000_000})
    assert len(message) < 200
    assert len(mistake(read("n: int = 1").check, {"n": list(range(10**6))})) < 200


def test_a_secret_comes_from_the_environment_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "from env")
    signature = read(SECRETS)
    assert signature.parse(["token=env:API_TOKEN"])["token"].get_secret_value() == "from env"
    assert signature.check({"token": "env:API_TOKEN"})["token"].get_secret_value() == "from env"
    assert (
        signature.parse(["token=literal, with = and ,"])["token"].get_secret_value()
        == "literal, with = and ,"
    )
    assert (
        signature.check({"token": SecretStr("env:API_TOKEN")})["token"].get_secret_value() == "env:API_TOKEN"
    )
    message = mistake(signature.parse, ["token=env:NO_SUCH_NAME"])
    assert message == (
        "train.ipynb: parameter token asks for the environment variable NO_SUCH_NAME, which is not set. "
        "Example: -p token=env:NAME"
    )


def test_a_masked_text_from_a_saved_run_is_not_taken_for_the_secret():
    signature = read(SECRETS)
    saved = to_json(signature.check({"token": "hunter2"}))
    assert saved == {"token": MASK}
    assert "was masked when it was saved and must be given again" in mistake(signature.from_json, saved)


def test_no_error_shows_a_secret():
    signature = read(
        """
        from typing import Annotated
        from pydantic import SecretStr, Field
        pin: Annotated[SecretStr, Field(max_length=3)]
        """
    )
    for call in (lambda: signature.check({"pin": "hunter2"}), lambda: signature.parse(["pin=hunter2"])):
        with pytest.raises(BadParameter) as caught:
            call()
        assert "hunter2" not in str(caught.value)
        assert "at most 3 long" in str(caught.value)
    assert "12345" not in mistake(signature.check, {"pin": 12345})
    assert "hunter2" not in mistake(signature.parse_grid, ["pin=hunter2,abc"])


def test_a_secret_default_is_not_shown():
    signature = read("from pydantic import SecretStr\nkey: SecretStr = SecretStr('hunter2')")
    assert "hunter2" not in describe(signature) + signature._repr_html_() + json.dumps(list_rows(signature))


def test_a_grid_is_split_at_the_outer_commas():
    signature = read(
        """
        import datetime
        lr = 0.1
        layers = [1]
        name = 'a'
        seed: int = 0
        shape = (1,)
        x = None
        d: dict[str, int] = {}
        day: datetime.date = None
        flag = False
        limit: int | None = None
        """
    )
    cases = {
        "lr=0.1,0.01": [0.1, 0.01], "lr=1": [1.0], "layers=[1,2],[3,4]": [[1, 2], [3, 4]],
        "layers=[1,2]": [[1, 2]],
        "name=a,b": ["a", "b"], "name=a, b": ["a", "b"], "name='a,b',c": ["a,b", "c"],
        "name=it's,b": ["it's", "b"], "name=0..3": ["0..3"],
        "name='',x": ["", "x"], "name=f(x,y),z": ["f(x,y)", "z"], 'name="q",\'3\'': ["q", "3"],
        "seed=0..3": [0, 1, 2, 3], "seed=3..1": [3, 2, 1],
        "seed=0..10..5": [0, 5, 10], "seed=-2..-1,7": [-2, -1, 7], "shape=(1,2),(3,)": [(1, 2), (3,)],
        "x=a,1,'1',null": ["a", 1, "1", None],
        'd={"a": 1},{"b": 2}': [{"a": 1}, {"b": 2}],
        "day=2026-05-01,2026-05-02": [date(2026, 5, 1), date(2026, 5, 2)],
        "flag=true,false": [True, False], "limit=None,3": [None, 3], "lr=0..2": [0.0, 1.0, 2.0],
    }  # fmt: skip
    for word, values in cases.items():
        assert same(signature.parse_grid([word]), {word.partition("=")[0]: values}), word


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("lr=0.1,1e-1", "the grid of lr has 0.1 twice. Keep one"), ("lr=nan,nan", "has nan twice"),
        ("lr=", "nothing between commas"),
        ("lr=0.1,", "nothing between commas"), ("lr=0.1,,1", "nothing between commas"),
        ("layers=[1,2", "a closing ] is missing"),
        ("name='a,b", "a closing ' is missing"), ("seed=0..999999999", "more than 100,000 values"),
        ("seed=0..5..0", "has no end"),
        ("lr=0.1,x", "parameter lr must be float, got 'x'"),
        ("lrs=1", "no parameter 'lrs'. Did you mean 'lr'?"), ("lr", "NAME=VALUE"),
    ],
)  # fmt: skip
def test_a_grid_that_is_wrong_is_refused(word, sentence):
    signature = read("""
        lr = 0.1
        layers = [1]
        name = 'a'
        seed: int = 0
        """)
    assert sentence in mistake(signature.parse_grid, [word])


def test_a_grid_of_python_values_is_checked():
    signature = read("""
        lr = 0.1
        n: int = 1
        name = 'a'
        """)
    grid = {"lr": np.logspace(-2, 0, 3), "n": range(2), "name": ("a", "b")}
    assert same(signature.check_grid(grid), {"lr": [0.01, 0.1, 1.0], "n": [0, 1], "name": ["a", "b"]})
    for values in (0.1, "ab", b"ab", {"a": 1}, [], [1, 1], [1, "x"], iter([1]), None):
        assert "train.ipynb" in mistake(signature.check_grid, {"n": values})


def test_the_description_has_a_line_a_parameter():
    assert describe(read(TRAIN)).splitlines() == [
        "name       type                    default     allowed        help",
        "data       str                     (required)                 folder",
        "lr         float                   0.5         0 < lr <= 1",
        "optimizer  Literal['adam', 'sgd']  \"adam\"      'adam', 'sgd'",
        "layers     list[int]               [64]",
        "momentum   float                   0.9",
    ]
    assert str(read(TRAIN)) == describe(read(TRAIN))


def test_the_rows_are_json_for_programs():
    rows = json.loads(json.dumps(list_rows(read(TRAIN)), allow_nan=False))
    assert [row["name"] for row in rows] == ["data", "lr", "optimizer", "layers", "momentum"]
    assert rows[0] == {
        "name": "data", "type": "str", "required": True, "default": None, "default_known": False,
        "default_text": "", "allowed": "",
        "choices": [], "help": "folder", "secret": False,
    }  # fmt: skip
    assert rows[2]["choices"] == ["adam", "sgd"]


def test_the_table_for_jupyterlab_is_escaped():
    html = read("x = '<script>'  # a < b")._repr_html_()
    assert "<script>" not in html
    assert "a &lt; b" in html


def test_allowed_values_of_many_choices_stay_short():
    assert describe_allowed(Literal["a"], "x") == "'a'"
    assert "(62 in all)" in mistake(read("from http import HTTPStatus\ns = HTTPStatus.OK").parse, ["s=NO"])
