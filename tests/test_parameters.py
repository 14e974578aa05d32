"""A notebook's parameters are read without running it."""

import copy
import json
import math
import subprocess
import sys
import textwrap
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from http import HTTPStatus
from pathlib import Path
from time import process_time
from typing import Annotated, Any, Literal, Optional
from uuid import UUID
from zoneinfo import ZoneInfo

import annotated_types as at
import numpy as np
import pytest
from pydantic import SecretStr
from typed_cases import Color, brief, make_notebook, mistake, read, same

from scalekit.signature import BadNotebook, describe, read_signature
from scalekit.typed.expressions import UNKNOWN
from scalekit.typed.kinds import describe_type
from scalekit.values import to_cell, to_json, to_source

DEFAULTS = {
    "1e-3": 1e-3, "2**10": 1024, "-1": -1, "1_000": 1000, "+2": 2, "~5": -6, "not True": False,
    "(1, 'a')": (1, "a"), "{1, 2}": {1, 2}, "{'a': [1, {}]}": {"a": [1, {}]}, "set()": set(),
    "frozenset({1})": frozenset({1}), "float('nan')": float("nan"), "float('inf')": float("inf"),
    "-float('inf')": float("-inf"), "-0.0": -0.0, "1 / 4": 0.25, "7 // 2 + 7 % 2": 4,
    "[0] * 3 + [1]": [0, 0, 0, 1], "'a' + 'b'": "ab", "'a' 'b'": "ab", "1 << 4": 16, "b'x'": b"x",
    "1 + 2j": 1 + 2j, "range(3)": range(3), "None": None, "list(range(3))": [0, 1, 2], "dict(a=1)": {"a": 1},
    "Path('data') / 'x'": Path("data/x"), "pathlib.Path('y')": Path("y"),
    "date(2026, 5, 1)": date(2026, 5, 1),
    "dt.datetime(2026, 5, 1, tzinfo=dt.timezone.utc)": datetime(2026, 5, 1, tzinfo=UTC),
    "dt.timedelta(hours=1) * 2": timedelta(hours=2), "date.fromisoformat('2026-05-01')": date(2026, 5, 1),
    "Decimal('0.1')": Decimal("0.1"), "Fraction(1, 3)": Fraction(1, 3), "math.pi": math.pi,
    "math.inf": math.inf, "np.float32(0.1)": np.float32(0.1), "np.array([1, 2])": np.array([1, 2]),
    "np.nan": math.nan, "np.float16": np.float16, "HTTPStatus.OK": HTTPStatus.OK,
    "ZoneInfo('UTC')": ZoneInfo("UTC"), "BASE * 2": 20, "UUID(int=3)": UUID(int=3),
}  # fmt: skip
IMPORTS = """
import pathlib, math, datetime as dt, numpy as np
from datetime import date
from decimal import Decimal
from fractions import Fraction
from http import HTTPStatus
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo
BASE = 10
"""


@pytest.mark.parametrize(("source", "value"), DEFAULTS.items(), ids=DEFAULTS)
def test_a_default_is_known_without_running(source, value):
    parameter = read(f"x = {source}", IMPORTS).parameters["x"]
    assert same(parameter.default, value)
    assert parameter.default_text == source
    assert not parameter.required


UNREADABLE = [
    "compute()", "os.cpu_count()", "input()", "[i for i in range(3)]", "lambda: 1", "f'{BASE}'",
    "Path.home()", "date.today()", "x if BASE else 2", "BASE > 2", "'a'.upper()", "open('f').read()",
    "__import__('os').system('ls')", "[1, 2][0]", "{**{}}", "9**9**9", "2**-1 ** 9**9", "[0] * 10**12",
    "'a' * 10**12", "1 << 10**12", "bytes(10**12)", "list(range(10**12))", "'%999999999d' % 1",
    "dict(**{'a': 1})", "1 / 0", "unknown_name", "np.random.rand(3)", "np.zeros(3)", "(1).__class__",
    "int.__name__", "np.ndarray((10**12,))", "np.void(10**12)", "np.memmap('f', mode='w+', shape=1)",
    "10**5000 * 10**5000 * " * 500 + "1", "Decimal('x')", "float('x')", "date(2026, 13, 1)", "math.sqrt(2)",
    "-'a'", "eval('1')",
]  # fmt: skip


@pytest.mark.parametrize("source", UNREADABLE, ids=brief)
def test_a_default_that_only_a_run_would_tell_is_unknown_and_can_be_set(source):
    begin = process_time()
    signature = read(f"x = {source}", IMPORTS)
    assert process_time() - begin < 1
    assert signature.parameters["x"].default is UNKNOWN
    assert signature.check({"x": [1, "a"]}) == {"x": [1, "a"]}


def test_nothing_of_the_notebook_is_executed(tmp_path):
    mark = tmp_path / "ran"
    touch = f"open({str(mark)!r}, 'w').close()"
    (tmp_path / "evil.py").write_text(f"{touch}\nfrom enum import Enum\nclass Kind(Enum):\n    A = 1\n")
    path = tmp_path / "train.ipynb"
    cell = f"""
        from evil import Kind
        {touch}
        x = {touch}
        k: Kind = Kind.A
        @{touch}
        class C(Enum):
            A = {touch}
        """
    path.write_text(json.dumps(make_notebook(cell, touch)))
    before = path.read_bytes()
    signature = read_signature(path)
    assert signature.parse(["k=A"])["k"].name == "A"
    assert not mark.exists()
    assert "evil" not in sys.modules
    assert path.read_bytes() == before


def test_defaults_that_would_fill_the_memory_cost_nothing():
    begin = process_time()
    signature = read("""
        a = [0] * 1000
        b = [a] * 1000
        c = [b] * 1000
        d = {1: c, 2: [c] * 1000}
        """)
    assert process_time() - begin < 1
    assert [len(p.default) if p.default is not UNKNOWN else None for p in signature.parameters.values()] == [
        1000,
        None,
        None,
        None,
    ]


def test_long_lines_and_comments_are_read_quickly():
    begin = process_time()
    read(f"x = 1  # type: {'int ' * 5000}\ny = 2")
    with pytest.raises(BadNotebook):
        read("x" + " " * 200_000 + "y")
    assert process_time() - begin < 2


def test_a_type_that_imports_what_it_is_given_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "evil_given.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    signature = read("""
        from pydantic import ImportString
        x: ImportString = 'evil_given'
        y = pydantic.v1.utils.import_string('evil_given')
        """)
    assert signature.check({"x": "evil_given"}) == {"x": "evil_given"}
    assert "evil_given" not in sys.modules


def test_annotations_give_types():
    before = """
        from typing import *
        from pathlib import Path
        import datetime as dt, decimal, typing as t
        from annotated_types import Gt, Interval, MultipleOf, Len
        import annotated_types as at
        from pydantic import Field, SecretStr, PositiveInt
        import numpy as np
        import numpy.typing as npt
        from enum import Enum
        class Color(Enum):
            RED = 1
        Rate = Annotated[float, Gt(0)]
        """
    kinds = {
        "int": int, "str": str, "list[int]": list[int], "dict[str, float]": dict[str, float],
        "tuple[int, ...]": tuple[int, ...],
        "int | None": int | None, "Optional[int]": Optional[int],  # noqa: UP045
        "t.Union[int, str]": int | str,
        "Literal['a', 3]": Literal["a", 3], "'int | None'": int | None, "List[int]": list[int],
        "Final[int]": int,
        "Annotated[float, Gt(0)]": Annotated[float, at.Gt(0)], "Rate": Annotated[float, at.Gt(0)],
        "Annotated[float, at.Gt(0), my_check]": Annotated[float, at.Gt(0)], "np.float32": np.float32,
        "Path": Path,
        "Annotated[int, MultipleOf(8), AfterValidator(f)]": Annotated[int, at.MultipleOf(8)], "Any": Any,
        "dt.date": date, "dt.timedelta | None": timedelta | None, "decimal.Decimal": Decimal, "bytes": bytes,
        "SecretStr": SecretStr, "np.ndarray": np.ndarray, "Unheard.Of": Any,
        "list['Later']": list["Later"],  # noqa: F821
    }  # fmt: skip
    cell = "\n".join(f"p{i}: {text}" for i, text in enumerate(kinds))
    parameters = read(cell, before).parameters
    for i, (text, kind) in enumerate(kinds.items()):
        found = parameters[f"p{i}"]
        assert found.type == kind or describe_type(found.type).lower() == describe_type(kind).lower(), text
        assert found.annotation == text
        assert found.required


def test_a_bound_keeps_its_meaning():
    before = """
        from typing import Annotated
        from annotated_types import *
        from pydantic import Field, PositiveInt
        """
    cases = {
        "Annotated[float, Field(gt=0, le=1)]": "0 < x <= 1",
        "Annotated[float, Interval(ge=0, lt=1)]": "0 <= x < 1",
        "Annotated[float, Gt(0)] | None": "x > 0 or None",
        "Annotated[int, Le(5)]": "x <= 5",
        "PositiveInt": "x > 0",
        "list[PositiveInt]": "each item > 0",
        "Annotated[str, Len(1, 8)]": "at least 1 long, at most 8 long",
        "Annotated[str, Field(pattern='^a')]": "text like ^a",
        "Annotated[int, MultipleOf(8), Ge(8)]": "x >= 8, a multiple of 8",
        "bool": "True, False",
        "float": "",
    }
    for text, allowed in cases.items():
        assert read(f"x: {text}", before).parameters["x"].allowed == allowed


def test_without_an_annotation_the_default_is_a_hint():
    signature = read(
        """
        n = 1
        lr = 0.1
        name = 'a'
        flag = True
        layers = [1]
        shape = (1,)
        nothing = None
        maybe: int = None
        """
    )
    assert {p.name: describe_type(p.type) for p in signature.parameters.values()} == {
        "n": "int | float", "lr": "float", "name": "str", "flag": "bool", "layers": "list", "shape": "tuple",
        "nothing": "Any", "maybe": "int | None",
    }  # fmt: skip
    values = {"n": 0.5, "lr": 1, "layers": ["a"], "shape": (2, 3), "nothing": {1: 2}, "maybe": None}
    assert same(signature.check(values), {**values, "lr": 1.0})
    assert same(signature.parse(["n=3", "shape=[2,3]", "name=3"]), {"n": 3, "shape": (2, 3), "name": "3"})
    assert "must be int | float, got True" in mistake(signature.check, {"n": True})


def test_comments_are_help():
    signature = read(
        """
        # Parameters
        a = 1  # first one
        b = 2  # noqa: E501

        # --- two lines
        #     of help ---
        c = 3
        d = {  # a dict
            1: 2,  # inner
        }
        e = [
            1,
        ]  # behind the end
        f = '# no comment'
        g = 1; h = 2  # both
        i = 5  # type: float  # with a type
        j = None  # type: Optional[dict[str, int]] many things
        k = 1  # type: of thing to use
        l = 2  # type: ignore[assignment]  # kept # with sharp
        """,
        "from typing import Optional",
    )
    helps = {name: parameter.help for name, parameter in signature.parameters.items()}
    assert helps == {
        "a": "first one", "b": "", "c": "two lines of help", "d": "a dict", "e": "behind the end", "f": "",
        "g": "both", "h": "both", "i": "with a type", "j": "many things", "k": "type: of thing to use",
        "l": "kept # with sharp",
    }  # fmt: skip
    assert signature.parameters["i"].type is float
    assert signature.parameters["j"].type == dict[str, int] | None


def test_a_description_in_the_type_is_help_where_no_comment_is():
    signature = read("""
        from typing import Annotated
        from pydantic import Field
        from typing_extensions import Doc
        a: Annotated[int, Field(gt=0, description="how many")] = 1
        b: Annotated[int, Doc("which")] = 1
        c: Annotated[int, Doc("which")] = 1  # the comment
        """)
    assert [p.help for p in signature.parameters.values()] == ["how many", "which", "the comment"]


def test_an_annotation_that_names_itself_ends():
    signature = read("A = 'A'\nx: A = 1\ny: \"'int'\" = 1")
    assert [p.type for p in signature.parameters.values()] == [str, Any, int]


def test_names_that_are_no_parameters_are_left_out():
    signature = read(
        """
        import os
        from typing import Annotated
        _private = 1
        def f(): y = 1
        class C: z = 1
        Rate = Annotated[float, 'doc']
        for i in range(3): pass
        x: Rate = 1.0
        'text'
        print(x)
        with open('f') as g: pass
        """
    )
    assert list(signature.parameters) == ["x"]


def test_what_later_lines_may_change_has_no_known_default():
    signature = read(
        """
        a = [1]
        a.append(2)
        b = {}
        b['x'] = 1
        c = 1
        c += 2
        d = 1
        d = 2
        if c: e = 1
        else: e = 2
        try:
            f = 1
        except Exception:
            f = 2
        g, h = 1, 'x'
        i = j = 3
        k, l = unknown
        for d2 in a: d = d2
        m = n * 2
        """
    )
    defaults = {name: p.default for name, p in signature.parameters.items()}
    assert defaults == {
        "a": UNKNOWN, "b": UNKNOWN, "c": 3, "d": UNKNOWN, "e": UNKNOWN, "f": UNKNOWN, "g": 1, "h": "x",
        "i": 3, "j": 3, "k": UNKNOWN, "l": UNKNOWN, "m": UNKNOWN,
    }  # fmt: skip
    assert not any(p.required for p in signature.parameters.values())
    assert read("x: int\nx = 3").parameters["x"].required is False


def test_magics_in_the_cell_do_no_harm():
    signature = read(
        """
        %matplotlib inline
        lr = 0.1
        files = !ls
        !pip install x
        %load_ext a
        lr?
        text = '''
        %not magic
        '''
        """
    )
    assert [(p.name, p.default) for p in signature.parameters.values()] == [
        ("lr", 0.1), ("files", UNKNOWN), ("text", "\n%not magic\n"),
    ]  # fmt: skip
    assert read("%%time\nlr = 0.1").parameters["lr"].default == 0.1
    assert (
        read("x: Path", "%%bash\nls | wc", "this is ( broken", "from pathlib import Path")
        .parameters["x"]
        .type
        is Path
    )


def test_an_enum_of_the_notebook_is_known_by_its_source():
    before = """
        from enum import *
        import enum
        class Color(Enum):
            'doc'
            RED = auto()
            BLUE = 'b'
            ALIAS = 'b'
            def mix(self): return 1
        class Mode(StrEnum):
            FAST = auto()
        @unique
        class Size(enum.IntEnum):
            S = 1
            L = S + 4
        class Bits(Flag):
            A = auto()
            B = auto()
            AB = A | B
        class Odd(Enum):
            A = 1
            def __new__(cls, v): return object.__new__(cls)
        """
    signature = read(
        """
        c: Color = Color.RED
        m = Mode.FAST
        s: Size = Size(5)
        b: Bits = Bits.A
        o: Odd = None
        """,
        before,
    )
    found = signature.parse(["c=BLUE", "m=fast", "s=L", "b=AB"])
    assert to_cell(found) == "c = Color.BLUE\nm = Mode.FAST\ns = Size.L\nb = Bits.AB"
    names: dict = {}
    exec(textwrap.dedent(before) + to_cell(found), names)  # the notebook's own classes
    assert names["c"] is names["Color"].BLUE
    assert (names["s"], names["b"].value) == (5, 3)
    assert signature.parse(["c=Color.RED"])["c"].value == 1
    assert signature.check({"c": "b"})["c"].name == "BLUE"
    assert signature.from_json(to_json(found)) == found
    assert signature.parameters["o"].type is Any
    assert mistake(signature.parse, ["c=GREEN"]) == (
        "train.ipynb: parameter c must be one of RED, BLUE, got 'GREEN'. Example: -p c=RED"
    )


def test_a_callers_own_copy_of_an_enum_means_the_notebooks():
    signature = read(
        """
        from enum import Enum
        class Color(Enum):
            RED = 1
            BLUE = 'blue'
        c: Color = Color.RED
        x = None
        """
    )
    assert to_cell(signature.check({"c": Color.BLUE})) == "c = Color.BLUE"

    class Other(Enum):
        RED = 1

    stale = Enum("Color", {"RED": 2})  # the caller's copy is of another day
    assert "must be one of RED, BLUE" in mistake(signature.check, {"c": stale.RED})

    assert "must be one of RED, BLUE" in mistake(signature.check, {"c": Other.RED})


def test_an_enum_in_a_module_beside_the_notebook_is_read_not_imported(tmp_path):
    package = tmp_path / "shapes"
    package.mkdir()
    (tmp_path / "colors.py").write_text(
        "raise SystemExit\nfrom enum import Enum\nclass Color(Enum):\n    RED = 1\nSTEP = 0.5\n"
    )
    (package / "__init__.py").write_text("from .kinds import Kind\nfrom . import kinds\nimport shapes\n")
    (package / "kinds.py").write_text("from enum import Enum\nclass Kind(Enum):\n    FLAT = 'flat'\n")
    cell = """
        import colors
        from colors import Color as Paint, STEP
        from shapes import Kind, kinds
        import shapes.kinds as sk
        a: Paint = Paint.RED
        b: Kind = kinds.Kind.FLAT
        step = STEP
        c = sk.Kind.FLAT
        missing: Gone = 1
        from gone import *
        """
    path = tmp_path / "train.ipynb"
    path.write_text(json.dumps(make_notebook(cell)))
    signature = read_signature(path)
    assert to_cell(signature.parse(["a=RED", "b=flat"])) == "a = Paint.RED\nb = Kind.FLAT"
    assert signature.parameters["step"].default == 0.5
    assert set(signature.enums) == {"Paint", "Kind"}
    assert "colors" not in sys.modules


def test_an_enum_of_the_standard_library_is_the_real_one():
    signature = read("from http import HTTPStatus\nstatus: HTTPStatus = HTTPStatus.OK")
    value = signature.parse(["status=404"])["status"]
    assert value is HTTPStatus.NOT_FOUND
    assert eval(to_source(value), {}) is value
    assert HTTPStatus.__module__ == "http"


def test_a_notebook_comes_as_path_text_dict_or_node(tmp_path):
    import nbformat

    content = make_notebook("lr = 0.1")
    path = tmp_path / "train.ipynb"
    path.write_text(json.dumps(content))
    before = copy.deepcopy(content)
    for notebook in (path, str(path), content, nbformat.from_dict(content)):
        assert read_signature(notebook).parameters["lr"].default == 0.1
    assert content == before
    lines = make_notebook("lr = 0.1\nn = 2")
    lines["cells"][0]["source"] = ["lr = 0.1\n", "n = 2"]
    assert list(read_signature(lines).parameters) == ["lr", "n"]
    path.write_bytes(json.dumps(content).encode("utf-8-sig"))
    assert read_signature(path).name == "train.ipynb"


def _write(folder: Path, text: str | bytes) -> Path:
    path = folder / "train.ipynb"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "train.ipynb is not a notebook"), ("lr = 0.1", "is not a notebook: Expecting value"),
        ("[]", "it has no list of cells"),
        (b"\xff\xfe\x00", "is not a notebook"), ("{}", "is JSON but not a notebook"),
        ('{"cells": 3}', "no list of cells"), ('{"cells": [1]}', "no list of cells"),
        ('{"worksheets": []}', "has the old format 3. Run: jupyter nbconvert"),
        ("[" * 100_000, "is not a notebook"),
        ('{"cells": [\n<<<<<<< HEAD\n]}', "it holds conflict marks of a git merge"),
        (json.dumps(make_notebook("""
a = 1
lr = = 1
""")), "not Python, line 2 `lr = = 1`: invalid syntax"),
        (json.dumps(make_notebook("x = (\n")), "the parameters cell is not Python, line 1 `x = (`"),
        (json.dumps(make_notebook("x = '\x00'")), "the parameters cell is not Python"),
        (json.dumps({"cells": make_notebook("a = 1")["cells"] * 2}), "cells tagged parameters (cells 1, 2)"),
        (json.dumps({"cells": [{"metadata": {"tags": ["parameters"]}, "source": ""}]}), "is not a code cell"),
    ],
    ids=brief,
)  # fmt: skip
def test_a_notebook_that_cannot_be_read_is_refused_in_a_sentence(tmp_path, text, sentence):
    with pytest.raises(BadNotebook) as caught:
        read_signature(_write(tmp_path, text))
    assert sentence in str(caught.value)
    assert "train.ipynb" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_path_leads_to_the_notebook(tmp_path):
    _write(tmp_path, json.dumps(make_notebook("a = 1")))
    with pytest.raises(
        BadNotebook, match=r"there is no notebook .*trian.ipynb. Did you mean 'train.ipynb'\?"
    ):
        read_signature(tmp_path / "trian.ipynb")
    with pytest.raises(BadNotebook, match="can't be read: Is a directory"):
        read_signature(tmp_path)


def test_a_notebook_without_a_parameters_cell_takes_none():
    signature = read_signature({"cells": [{"cell_type": "code", "source": "lr = 1"}]}, "plain.ipynb")
    assert signature.parameters == {}
    assert signature.check({}) == {}
    assert mistake(signature.check, {"lr": 1}).startswith(
        "plain.ipynb takes no parameter 'lr': it has no cell tagged parameters"
    )
    assert describe(signature) == "plain.ipynb has no parameters"


def test_an_executed_notebook_can_run_again():
    content = make_notebook("lr = 0.1\nstep = BASE", "BASE = 10")
    injected = {
        "cell_type": "code",
        "metadata": {"tags": ["injected-parameters"]},
        "source": "lr = 0.7\nBASE = 3",
    }
    content["cells"].insert(1, injected)
    content["cells"].append(injected)
    signature = read_signature(content)
    assert [p.default for p in signature.parameters.values()] == [0.1, 10]
    assert signature.cell == 2


def test_a_notebook_in_another_language_takes_common_values_only():
    signature = read("lr <- 0.1", kernelspec={"name": "ir", "language": "R"})
    assert (signature.language, signature.parameters) == ("r", {})
    values = {"a": 1, "b": [1.5, None, True], "c": {"x": "y"}}
    assert signature.check(values) == values
    assert signature.parse(["a=1", "b=text", "c=[1, true]"]) == {"a": 1, "b": "text", "c": [1, True]}
    for value in ((1,), {1: 2}, Path("x"), float("nan"), date(2026, 5, 1), {1}):
        assert "but a r notebook takes None, bools, numbers" in mistake(signature.check, {"a": value})
    assert "it takes any name" in describe(signature)


def test_reading_is_fast_and_imports_nothing_heavy(tmp_path):
    content = make_notebook("""
        lr = 0.1
        from pathlib import Path
        out: Path = Path('x')
        """)
    content["cells"] += [{"cell_type": "code", "metadata": {}, "source": "x = 1\n", "outputs": []}] * 500
    path = _write(tmp_path, json.dumps(content))
    script = (
        "import sys, time\nfrom scalekit.signature import read_signature\nt = time.process_time()\n"
        f"read_signature({str(path)!r})\nprint(time.process_time() - t)\n"
        "heavy = {'pydantic', 'numpy', 'pandas', 'nbformat', 'jsonschema', 'IPython', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5
