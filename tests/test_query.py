"""Conditions on runs: what they find, how they fail, and that nothing in them is executed."""

import csv
import json
import math
import random
import subprocess
import sys

import pytest

import scalekit as sk
from scalekit.cli import main
from scalekit.columns import BadQuery, sort_rows
from scalekit.condition import Where, ago
from scalekit.query import find_frame, find_runs, select
from scalekit.store import Store


def make_row(run_id, state="succeeded", **more):
    "A row as the index has it"
    row = {"run_id": str(run_id), "state": state, "notebook": "train.ipynb", "sweep": None, "seconds": 10.0}
    row |= {
        "created": "2026-11-01T10:00:00.000000Z",
        "tags": [],
        "notes": None,
        "parameters": {},
        "metrics": {},
    }
    return row | more


def ids(rows, where=None, **more):
    return [row["run_id"] for row in select(rows, where, **more)]


def put_run(store, state="succeeded", metrics=None, parameters=None, **asked):
    "A run that has ended"
    bundle = store.create_run({"notebook": "train.ipynb", "parameters": parameters or {}} | asked)
    bundle.set_state("running")
    if metrics:
        bundle.append("record", values=metrics)
    bundle.set_state(state, **({"error": "ValueError: x"} if state == "failed" else {}))
    bundle.seal()
    store.index(bundle)
    return bundle.run_id


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "runs")
    put_run(
        store, metrics={"accuracy": 0.98}, parameters={"lr": 0.1, "layers": {"$tuple": [8, 4]}}, sweep="a"
    )
    put_run(store, metrics={"accuracy": 0.96, "val/loss": math.nan}, parameters={"lr": 0.01}, sweep="a")
    put_run(store, "failed", parameters={"lr": 1.0}, notebook="other.ipynb")
    return store


# What a condition finds


def test_a_condition_agrees_with_python_wherever_nothing_is_missing():
    rng = random.Random(0)
    rows = [
        make_row(n, metrics={"a": rng.randint(0, 9), "b": rng.random()}, seconds=rng.random() * 10)
        for n in range(200)
    ]
    operators = ["<", "<=", ">", ">=", "==", "!="]
    values = [
        "metrics.a",
        "metrics.b",
        "seconds",
        "3",
        "metrics.a / 2",
        "metrics.b * 10 - 1",
        "-metrics.a",
        "abs(metrics.a - 5)",
    ]
    for _ in range(200):
        terms = [f"{rng.choice(values)} {rng.choice(operators)} {rng.choice(values)}" for _ in range(3)]
        joins = rng.choices(["and", "or"], k=2)
        text = f"{terms[0]} {joins[0]} {rng.choice(['', 'not '])}({terms[1]}) {joins[1]} {terms[2]}"
        code = compile(text, "", "eval")
        wanted = [
            row["run_id"]
            for row in rows
            if eval(code, {"metrics": type("M", (), row["metrics"]), "seconds": row["seconds"], "abs": abs})
        ]
        assert ids(rows, text) == wanted, text


def test_what_is_missing_is_never_true_in_a_comparison_nor_in_its_opposite():
    rows = [make_row(1, metrics={"acc": 0.5}), make_row(2)]
    for where in ("metrics.acc < 1", "not metrics.acc > 1", "metrics.acc != 7", "metrics.acc in [0.5, 7]",
                  "metrics.acc not in [7]", "metrics.acc + 1 > 0", "abs(metrics.acc) < 1",
                  "not (metrics.acc > 1 or metrics.acc < 0)"):  # fmt: skip
        assert ids(rows, where) == ["1"], where
    assert ids(rows, "metrics.acc is None") == ids(rows, "metrics.acc == None") == ["2"]
    assert ids(rows, "metrics.acc is not None") == ["1"]
    assert ids(rows, "metrics.acc > 1 or run_id == '2'") == ["2"]


def test_a_run_that_logged_a_text_where_others_logged_numbers_is_passed_over():
    rows = [make_row(1, metrics={"loss": 0.5}), make_row(2, metrics={"loss": "diverged"})]
    assert ids(rows, "metrics.loss < 1") == ["1"]
    assert ids(rows, "metrics.loss == 'diverged'") == ["2"]
    assert ids(rows, "metrics.loss != 0.5") == ["2"]


def test_names_with_dots_slashes_and_depth_are_found():
    rows = [
        make_row(
            1,
            metrics={"val/loss": 1, "train.loss": 2},
            parameters={"net": {"depth": 3}, "day": {"$datetime.date": [2026, 5, 1]}},
        )
    ]
    for where in ('metrics["val/loss"] == 1', "metrics.train.loss == 2", 'metrics["train.loss"] == 2',
                  "parameters.net.depth == 3", 'parameters["net"]["depth"] == 3',
                  "parameters.day == '2026-05-01'", "parameters.day < '2026-06'"):  # fmt: skip
        assert ids(rows, where) == ["1"], where


def test_tags_and_notes_can_be_asked_for():
    rows = [make_row(1, tags=["baseline", "fast"], notes="labels were wrong"), make_row(2)]
    for where in ("'fast' in tags", "contains(tags, 'fast')", "'labels' in notes", "len(tags) == 2", "tags",
                  "contains(lower(notes), 'labels')"):  # fmt: skip
        assert ids(rows, where) == ["1"], where
    assert ids(rows, "'fast' not in tags") == ["2"]


def test_times_are_compared_as_times():
    rows = [make_row(n, created=f"2026-11-0{n}T10:00:00.000000Z") for n in (1, 2, 3)]
    assert ids(rows, "created > '2026-11-02'") == ["2", "3"]
    assert ids(rows, "created == '2026-11-02'") == ["2"]
    assert ids(rows, "created != '2026-11-02'") == ["1", "3"]
    assert ids(rows, "'2026-11-02T12:00+02:00' <= created") == ["2", "3"]
    assert ids(rows, "created > '2026-11-02 10:00' and created < '2026-11-04'") == ["3"]
    recent = [make_row(1, created=ago("2h")), make_row(2, created=ago("3d"))]
    assert ids(recent, "created > ago('1d')") == ["1"]
    assert ids(recent, "ago('4d') < created < ago('1d')") == ["2"]


def test_an_order_may_have_several_names_and_what_lacks_them_comes_last():
    rows = [make_row(n, metrics={} if n == 3 else {"a/b": n % 2}, seconds=n) for n in range(5)]
    assert ids(rows, sort='-metrics["a/b"], seconds') == ["1", "0", "2", "4", "3"]
    assert ids(rows, sort=["metrics.a/b", "-seconds"]) == ["4", "2", "0", "1", "3"]
    assert ids(rows, "seconds > 0", sort="-seconds", limit=2) == ["4", "3"]
    mixed = [
        make_row(1, metrics={"a": "x"}),
        make_row(2, metrics={"a": 1}),
        make_row(3, metrics={"a": math.nan}),
    ]
    assert [row["run_id"] for row in sort_rows(mixed, "metrics.a")] == ["2", "1", "3"]


# How it fails


MISTAKES = [
    "state == ", "==", "state = 'a'", "state === 'a'", "(", "'", "a b", "1 +", "state == 'a' 'b", '\x00',
    '\ud800', "import os", "lambda: 1", "[x for x in tags]", "{**tags}", "f'{state}'", "state if 1 else 2",
    "await x", "x := 1", "__import__('os').system('true')", "().__class__.__bases__", "state.__class__",
    "metrics.__class__.x == 1", "open('/etc/passwd')", "tags[0] == 'a'", "metrics[state]", "metrics",
    "parameters == 1", "seconds.real > 1", "len(tags", "len()", "len(tags, 1)", "len(x=tags)",
    "ago('7 days') < created", "created > 7", "created > 'now'", "seconds > '10'", "state > 1",
    "seconds + 'a' > 1", "len(seconds) > 1", "seconds in 5", "state is 'a'", "nobody > 1",
    "metrics.nothing > 1", "parameters.x.y > 1", "1j == seconds", "b'a' == state", "... == state", "1 if",
    "not", "seconds << 2 > 1", "seconds @ 2", "~seconds == 1", "*tags", "", " ", "\n", "((((((1", ")",
]  # fmt: skip


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_told_in_one_sentence_and_never_as_a_traceback(text):
    rows = [make_row(1, metrics={"accuracy": 0.5}, parameters={"x": 1})]
    with pytest.raises(BadQuery, match="^where: ") as caught:
        select(rows, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


RUBBISH = """state metrics.a and or not in ( ) [ ] == > 'a' 9 ** * - , len ago('1d') None . tags
lambda if else : is created % / min"""


def test_random_rubbish_is_refused_or_answered_quickly():
    rng = random.Random(1)
    words = RUBBISH.split()
    rows = [make_row(1, metrics={"a": 1}), make_row(2)]
    for _ in range(3000):
        text = " ".join(rng.choices(words, k=rng.randint(1, 9)))
        try:
            select(rows, text)
        except BadQuery as error:
            assert "\n" not in str(error)


def test_no_expression_can_fill_the_memory_or_the_time():
    rows = [make_row(1, metrics={"a": 10**300})]
    huge = [
        "9**9**9**9 > 1",
        "10**10**10 == 1",
        "-9**9**9 < 1",
        "(9**99)**(9**99) > 0",
        "1/0 > 1",
        "7 % 0 == 0",
    ]
    huge += ["metrics.a * metrics.a * metrics.a > 1e308", "metrics.a + 0.5 > 0", "(-8) ** 0.5 > 0"]
    for text in huge:
        assert ids(rows, text) in ([], ["1"])
    deep = ["-" * 9000 + "1", "(" * 5000, "not " * 2000 + "state", "1" * 9000, "a" * 20_000]
    for text in [*deep, "[" * 99 + "]" * 99, "+".join("1" * 4000)]:
        with pytest.raises(BadQuery):
            select(rows, text)
    deep = sys.getrecursionlimit()
    many = " or ".join(f"seconds == {n}" for n in range(500))
    assert ids(rows, many) == ["1"] and sys.getrecursionlimit() == deep


def test_the_place_of_a_mistake_is_shown_also_behind_letters_of_two_bytes():
    rows = [make_row(1, metrics={"accuracy": 0.5})]
    with pytest.raises(
        BadQuery, match=r"where: notes == 'größe' or »metrics\.acuracy« > 1: no run has metrics\.acuracy\. "
    ):
        select(rows, "notes == 'größe' or metrics.acuracy > 1")


def test_a_name_that_some_run_has_is_no_mistake_though_the_chosen_ones_lack_it(store):
    assert find_runs(store, "state == 'failed' and metrics.accuracy > 0") == []
    assert find_runs(store, "state == 'running' and metrics.accuracy > 0") == []
    with pytest.raises(BadQuery, match=r"Did you mean metrics\.accuracy\?"):
        find_runs(store, "state == 'failed' and metrics.acuracy > 0")


def test_in_an_empty_store_every_name_may_come_one_day(tmp_path):
    store = Store(tmp_path / "runs")
    assert find_runs(store, "metrics.accuracy > 0.9", sort="-metrics.accuracy") == []
    assert find_frame(store, "metrics.accuracy > 0.9", columns="metrics.accuracy").empty


# From Python and from the command line


def test_runs_are_asked_for_with_a_condition_an_order_and_columns(store):
    table = sk.runs(store.folder, where="metrics.accuracy > 0.9", sort="metrics.accuracy",
                    columns=["state", "parameters.*", "metrics.val/loss"])  # fmt: skip
    assert list(table) == ["state", "parameters.lr", "parameters.layers", "metrics.val/loss"]
    assert table["parameters.lr"].tolist() == [0.01, 0.1]
    assert table["parameters.layers"].tolist()[1] == (8, 4)
    assert len(sk.runs(store.folder, limit=2)) == 2
    assert len(sk.runs(store.folder, notebook="other", where="seconds >= 0")) == 1
    assert sk.runs(store.folder, sweep="a", where="metrics.accuracy < 0.97")["metrics.accuracy"].tolist() == [
        0.96
    ]
    assert sk.runs(store.folder, state="failed")["error"].tolist() == ["ValueError: x"]
    with pytest.raises(BadQuery, match="Did you mean metrics.accuracy"):
        sk.runs(store.folder, columns="metrics.acuracy")


def test_the_table_is_what_it_was_before_rows_were_turned_into_columns(store):
    import pandas as pd

    table = sk.runs(store.folder)
    assert table["state"].tolist() == ["failed", "succeeded", "succeeded"]
    assert pd.api.types.is_float_dtype(table["metrics.accuracy"]) and table[
        "metrics.accuracy"
    ].isna().tolist() == [True, False, False]
    assert isinstance(table["created"].dtype, pd.DatetimeTZDtype)
    assert table["parameters.lr"].tolist() == [1.0, 0.01, 0.1]
    assert list(table)[:3] == ["run_id", "state", "notebook"]
    assert set(list(table)[-2:]) == {"metrics.accuracy", "metrics.val/loss"}


def test_the_index_looks_up_what_it_can_and_the_rest_is_the_same(store, monkeypatch):
    asked = []
    listed = Store.list_runs
    monkeypatch.setattr(
        Store, "list_runs", lambda self, **filters: asked.append(filters) or listed(self, **filters)
    )
    where = "sweep == 'a' and state in ['succeeded', 'failed'] and metrics.accuracy > 0.97"
    found = find_runs(store, where)
    ranges = [(("metrics", "accuracy"), 0.97, math.inf)]
    assert asked == [{"sweep": ("a",), "state": ("succeeded", "failed"), "ranges": ranges}]
    assert [row["run_id"] for row in found] == [row["run_id"] for row in select(listed(store), where)]
    assert Where("state == 'a' or state == 'b'").equalities == Where("not state == 'a'").equalities == {}


def test_the_first_choice_of_the_index_leaves_nothing_out(tmp_path):
    rng, store = random.Random(3), Store(tmp_path / "runs")
    odd = [0, 1, 0.1 + 0.2, 0.3, -0.0, 1e-300, 1e300, math.inf, -math.inf, math.nan, True, "0.5", None, 2**63]
    for number in range(120):
        bundle = store.create_run({"parameters": {"lr": rng.choice([0.1, {"$decimal.Decimal": ["0.3"]}, 3])}})
        if rng.random() < 0.9:
            bundle.append("record", values={"a": rng.choice(odd), 'b"/\\é': number / 7})
        store.index(bundle)
    rows = store.list_runs()
    for _ in range(150):
        names = ["metrics.a", "parameters.lr", "metrics['b\"/\\\\é']", "seconds"]
        numbers = ["0", "1", "0.3", "0.30000000000000004", "-1", "1e300", "9223372036854775808", "0.1"]
        operators = ["<", "<=", ">", ">=", "=="]
        terms = [f"{rng.choice(names)} {rng.choice(operators)} {rng.choice(numbers)}" for _ in range(2)]
        where = " and ".join(terms[: rng.randint(1, 2)])
        try:
            wanted = ids(rows, where)
        except BadQuery as error:
            with pytest.raises(BadQuery) as caught:
                find_runs(store, where)
            assert str(caught.value) == str(error)
        else:
            assert [row["run_id"] for row in find_runs(store, where)] == wanted, where


def test_the_command_lists_chosen_runs(store, capsys):
    folder = ["--store", str(store.folder)]
    assert main(["runs", *folder, "--where", "metrics.accuracy > 0.9", "--sort=-metrics.accuracy",
                 "--columns", "metrics.accuracy,parameters.lr", "--json"]) == 0  # fmt: skip
    shown = json.loads(capsys.readouterr().out)
    assert shown == [
        {"metrics.accuracy": 0.98, "parameters.lr": 0.1},
        {"metrics.accuracy": 0.96, "parameters.lr": 0.01},
    ]
    assert main(["runs", *folder, "--where", "state == 'failed'", "--columns", "run_id,error"]) == 0
    assert "ValueError: x" in capsys.readouterr().out
    assert main(["runs", *folder, "--where", "state == 'pruned'"]) == 0
    assert "no runs in" in capsys.readouterr().out
    for words in (["--where", "state = 'failed'"], ["--sort", "nobody"], ["--columns", "metrics.acc"]):
        assert main(["runs", *folder, *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1


# Files


def read_back(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_line_a_run_is_exported_with_its_columns(store, tmp_path):
    lines = read_back(
        sk.export(tmp_path / "a.csv", "metrics.accuracy > 0", sort="created", store=store.folder)
    )
    assert [line["metrics.accuracy"] for line in lines] == ["0.98", "0.96"]
    assert lines[0]["parameters.layers"] == "(8, 4)"
    lines = read_back(
        sk.export(tmp_path / "a.csv", columns="state,parameters.*", limit=1, store=store.folder)
    )
    assert lines == [{"state": "failed", "parameters.lr": "1.0"}]


def test_no_cell_of_a_csv_file_is_a_formula(tmp_path):
    store = Store(tmp_path / "runs")
    dangerous = ["=1+1", "+1", "-1+cmd", "@SUM(A1)", "\t=1", "\r=1"]
    for text in dangerous:
        put_run(store, parameters={"kind": text}, metrics={"said": text, "=head": 1, "n": -1}, tags=["=tag"])
    path = sk.export(tmp_path / "a.csv", store=store.folder)
    with open(path, newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r"))]
    assert {cell for cell in cells if cell.startswith("-")} == {"-1"}  # a number


def test_parquet_keeps_types(store, tmp_path):
    import pyarrow.parquet as pq

    store.open_run("latest").tag("a", "b")
    put_run(store, metrics={"n": 3, "ok": True, "odd": "text", "accuracy": 1}, parameters={"big": 2**70})
    put_run(store, metrics={"n": 4, "ok": False, "odd": 0.5})
    table = pq.read_table(sk.export(tmp_path / "a.parquet", store=store.folder))
    types = {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types, strict=True)}
    wanted = {
        "created": "timestamp[us, tz=UTC]",
        "seconds": "double",
        "metrics.n": "int64",
        "metrics.ok": "bool",
    }
    wanted |= {
        "metrics.odd": "string",
        "metrics.accuracy": "double",
        "state": "string",
        "parameters.big": "string",
    }
    assert {name: types[name] for name in wanted} == wanted
    assert types["tags"].startswith("list<")
    assert table["tags"].to_pylist()[2] == ["a", "b"]
    assert table["metrics.accuracy"].to_pylist()[:2] == [None, 1.0]


def test_curves_are_exported_point_by_point(tmp_path):
    import pandas as pd

    store = Store(tmp_path / "runs")
    bundle = store.create_run({})
    for step in range(3):
        bundle.append("log", step=step * 10, values={"loss": 1 / (step + 1), "phase": "warm"})
    bundle.append("log", step=None, values={"loss": math.inf})
    other = store.create_run({})
    other.append("log", step=None, values={"=x": True})
    table = pd.read_parquet(sk.export(tmp_path / "p.parquet", curves=True, sort="run_id", store=store.folder))
    loss = table[table.metric == "loss"]
    assert loss["step"].tolist() == [0, 10, 20, 3] and loss["value"].tolist() == [1, 0.5, 1 / 3, math.inf]
    assert table[table.metric == "phase"]["text"].tolist() == ["warm"] * 3
    assert table["run_id"].iloc[-1] == other.run_id and table["value"].iloc[-1] == 1.0
    lines = read_back(sk.export(tmp_path / "p.csv", curves=True, sort="run_id", store=store.folder))
    assert len(lines) == len(table) == 8 and lines[-1]["metric"] == "'=x"


def test_curves_larger_than_a_block_pass_through_little_memory(tmp_path):
    code = """
import json, resource, sys
from pathlib import Path
folder = Path(sys.argv[1]) / "20260501-120000-123-9f2c1a"
folder.mkdir()
line = {"time": "2026-05-01T12:00:00.000000Z", "event": "log", "values": {"loss": 0.5}}
with open(folder / "events.jsonl", "w") as file:
    file.write((json.dumps(line) + "\\n") * 100_000)
from scalekit.exports import export_curves
import pyarrow.parquet as pq
export_curves([{"path": str(folder)}] * 2, f"{sys.argv[1]}/few.parquet")  # more than one batch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
export_curves([{"path": str(folder)}] * 4, f"{sys.argv[1]}/many.parquet")
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(pq.ParquetFile(f"{sys.argv[1]}/many.parquet").metadata.num_rows, grown)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    n_rows, grown = done.stdout.split()
    assert int(n_rows) == 400_000 and float(grown) < 60  # MiB; all at once it would be 120


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(store, tmp_path, monkeypatch):
    target = tmp_path / "out" / "a.csv"
    for path, said in ((target, "no folder"), (tmp_path / "a.xlsx", "must end in .csv or .parquet")):
        with pytest.raises(sk.ScaleKitError, match=said):
            sk.export(path, store=store.folder)
    target.parent.mkdir()
    sk.export(target, store=store.folder)
    before = target.read_bytes()

    def fill_disk(*values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scalekit.exports.write_cell", fill_disk)
    with pytest.raises(sk.ScaleKitError, match="the disk is full"):
        sk.export(target, store=store.folder)
    assert [path.name for path in target.parent.iterdir()] == ["a.csv"] and target.read_bytes() == before


def test_the_command_exports_chosen_runs(store, tmp_path, capsys):
    words = ["export", "--store", str(store.folder), "--where", "state == 'failed'"]
    assert main([*words, "--csv", str(tmp_path / "a.csv")]) == 0
    assert [line["error"] for line in read_back(tmp_path / "a.csv")] == ["ValueError: x"]
    assert main([*words, "--parquet", str(tmp_path / "a.parquet"), "--columns", "run_id"]) == 0
    assert main([*words, "--curves", "--csv", str(tmp_path / "b.csv")]) == 0
    capsys.readouterr()
    assert main([*words, "--csv", str(tmp_path / "a.parquet")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
