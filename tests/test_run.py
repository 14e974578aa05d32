"""One run, from Python and from the command line: what it gets, what it leaves, what it refuses."""

import asyncio
import enum
import hashlib
import json
import math
import os
import pickle
import subprocess
import threading
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from notebooks import read_cells, write_notebook
from processes import SCALEKIT, wait_until

import scalekit as sk
from scalekit.cli import main
from scalekit.execute import execute_run, request_stop
from scalekit.live import LiveNotebook
from scalekit.orders import make_order, plan_run, queue_run
from scalekit.runner import RunFailed
from scalekit.signature import BadParameter, MissingParameter, UnknownParameter
from scalekit.store import Store

pytestmark = pytest.mark.usefixtures("place")

PARAMETERS = ("n: int = 1  # How many\nname: str = 'x'", "parameters")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def all_bytes(folder):
    "Every file below a folder, joined"
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# What a run leaves


def test_a_run_leaves_a_sealed_bundle_and_the_source_as_it_was(place):
    notebook = write_notebook(
        place / "a.ipynb", PARAMETERS, "import scalekit as sk\nsk.log(loss=0.5, step=1)\nprint(name * n)"
    )
    before = sha256(notebook), notebook.stat().st_mtime_ns
    run = sk.run("a.ipynb", n=3)
    assert (sha256(notebook), notebook.stat().st_mtime_ns) == before
    assert (run.state, run.parameters, run.metrics, run.error) == ("succeeded", {"n": 3}, {"loss": 0.5}, None)
    assert run.path.parent == place / "runs"
    assert [cell.status for cell in read_cells(run.notebook)] == ["completed", "completed"]
    assert read_cells(run.notebook)[1].text == "xxx\n"
    assert run.bundle.verify() == []
    assert run.bundle.asked["notebook_sha256"] == before[0]
    assert (
        not list(run.path.glob("lease*"))
        + list(run.path.glob(".notebook*"))
        + list((place / "runs/.leases").iterdir())
    )


def test_an_executed_notebook_can_be_run_again(place):
    write_notebook(place / "a.ipynb", PARAMETERS, "print(n)", "1 / (n - 2)")
    first = sk.run("a.ipynb", n=2, check=False)
    second = sk.run(first.notebook, n=5)
    assert [cell.text for cell in read_cells(second.notebook)] == ["", "5\n", ""]
    assert "scalekit-error" not in second.notebook.read_text()


def test_a_run_shows_itself_as_a_line_and_as_a_table(place):
    write_notebook(place / "a.ipynb", PARAMETERS, "import scalekit as sk; sk.record(score=0.5)")
    run = sk.run("a.ipynb", name="<b>")
    assert repr(run) == f"Run({run.run_id}, succeeded, name='<b>', score=0.5)"
    assert "<th>score</th><td>0.5</td>" in run._repr_html_()
    assert "<b>" not in run._repr_html_()


def test_runs_are_a_table_with_the_newest_first(place):
    write_notebook(place / "a.ipynb", PARAMETERS, "1 / (n - 2)")
    for n in (1, 2, 3):
        sk.run("a.ipynb", n=n, check=False)
    table = sk.runs()
    assert list(table["parameters.n"]) == [3, 2, 1]
    assert list(sk.runs(state="failed")["parameters.n"]) == [2]


# Parameters


@pytest.mark.parametrize(
    "call, error, sentence",
    [
        ({"names": 1}, UnknownParameter, "a.ipynb has no parameter 'names'. Did you mean 'name'?"),
        ({"n": "three"}, BadParameter, "parameter n must be int, got 'three'"),
        ({"n": 1, "name": 7}, BadParameter, "parameter name must be str"),
    ],
)
def test_a_wrong_parameter_stops_before_anything_is_made(place, monkeypatch, call, error, sentence):
    write_notebook(place / "a.ipynb", PARAMETERS, "1")
    monkeypatch.setattr(
        "scalekit.kernels.choose.start_kernel", lambda *_: pytest.fail("a kernel was started")
    )
    with pytest.raises(error, match=sentence.replace(".", r"\.").replace("?", r"\?")):
        sk.run("a.ipynb", call)
    assert [path.name for path in place.iterdir()] == ["a.ipynb"]


def test_a_missing_parameter_stops_before_anything_is_made(place):
    write_notebook(place / "a.ipynb", ("n: int", "parameters"), "1")
    with pytest.raises(MissingParameter, match="parameter n has no default and must be given"):
        sk.run("a.ipynb")
    assert not (place / "runs").exists()


class Color(enum.Enum):
    RED = "r"


FAITHFUL = {
    "tuple": (1, (2, "x"), []),
    "bytes": b"\x00\xff'\"",
    "keys": {1: "int", (2, 3): "tuple", None: "none", False: "bool", 1.5: "float"},
    "numbers": [float("inf"), -0.0, 1e-320, 10**40, 1 + 2j, True],
    "texts": ["", "two\nlines", "'\"\\", "☃", "{curly} %s", "\u2028"],
    "date": date(2026, 5, 1),
    "datetime": datetime(2026, 5, 1, 12, 30, 0, 7),
    "decimal": Decimal("0.10"),
    "path": Path("a") / "b c",
    "set": {1, 2},
    "deep": {"a": [{"b": [{"c": (None, {"d": Decimal("1")})}]}]},
    "none": None,
}


def test_values_of_every_kind_arrive_as_they_were_given(place):
    write_notebook(
        place / "a.ipynb",
        ("values = None", "parameters"),
        "import pickle\npickle.dump(values, open('got.pickle', 'wb'))",
    )
    run = sk.run("a.ipynb", values=FAITHFUL)
    got = pickle.loads((place / "got.pickle").read_bytes())
    assert got == FAITHFUL
    assert [type(value) for value in got.values()] == [type(value) for value in FAITHFUL.values()]
    assert math.copysign(1, got["numbers"][1]) == -1
    assert sk.Store("runs").open_run("latest").asked["parameters"].keys() == {"values"}
    assert run.state == "succeeded"


def test_numbers_that_are_no_numbers_and_numpy_scalars_arrive(place):
    write_notebook(
        place / "a.ipynb",
        ("x = 0\ny = 0\nz = 0", "parameters"),
        "import pickle\npickle.dump((x, y, z), open('got', 'wb'))",
    )
    run = sk.run("a.ipynb", x=float("nan"), y=np.float64(0.1), z=np.int64(7))
    x, y, z = pickle.loads((place / "got").read_bytes())
    assert math.isnan(x) and (y, z) == (0.1, 7)
    assert (
        json.loads(run.notebook.read_text(), parse_constant=pytest.fail)["metadata"]["scalekit"]["run_id"]
        == run.run_id
    )


def test_an_enum_of_the_notebook_arrives_as_its_member(place):
    head = "from enum import Enum\nclass Color(Enum):\n    RED = 'r'\n    BLUE = 'b'"
    write_notebook(
        place / "a.ipynb", head, ("color: Color = Color.RED", "parameters"), "print(color is Color.BLUE)"
    )
    assert main(["run", "a.ipynb", "-p", "color=BLUE"]) == 0
    assert read_cells(sk.Store("runs").open_run("latest").notebook)[2].text == "True\n"


def test_twenty_megabytes_arrive_in_one_parameter(place):
    write_notebook(
        place / "a.ipynb",
        ("text: str = ''", "parameters"),
        "import hashlib; hashlib.sha256(text.encode()).hexdigest()",
    )
    text = "0123456789ABCDEF☃'" * 1_100_000
    run = sk.run("a.ipynb", text=text)
    assert read_cells(run.notebook)[1].results == [repr(hashlib.sha256(text.encode()).hexdigest())]


KEY = "hunter2-☃-'\"\\-secret"


def test_a_secret_reaches_the_kernel_and_no_file(place):
    from pydantic import SecretStr

    write_notebook(
        place / "a.ipynb",
        ("from pydantic import SecretStr\ntoken: SecretStr\nn: int = 1", "parameters"),
        "import hashlib\nkey = token.get_secret_value()\nhashlib.sha256(key.encode()).hexdigest()",
        "print(key, [key], token); {'key': key}",
        "import json; print(json.dumps(key))",
        "raise ValueError(f'login with {key} failed')",
    )
    run = sk.run("a.ipynb", token=SecretStr(KEY), check=False)
    cells = read_cells(run.notebook)
    assert cells[1].results == [repr(hashlib.sha256(KEY.encode()).hexdigest())]
    assert cells[4].errors == [("ValueError", "login with ********** failed")]
    assert "login with ********** failed" in run.error
    kept = all_bytes(place / "runs")
    for form in (KEY, repr(KEY)[1:-1], json.dumps(KEY)[1:-1], "hunter2"):
        assert form.encode() not in kept
    assert KEY not in repr(run) + run._repr_html_()


def test_a_secret_from_the_command_line_reaches_the_kernel_and_no_file(place, capsys):
    head = "from pydantic import SecretStr\ntoken: SecretStr"
    write_notebook(place / "a.ipynb", (head, "parameters"), "print(token.get_secret_value()[::-1])", "1 / 0")
    assert main(["run", "a.ipynb", "-p", "token=hunter2"]) == 1
    assert main(["show", "latest"]) == 0
    shown = capsys.readouterr()
    assert "hunter2" not in shown.out + shown.err
    assert b"hunter2" not in all_bytes(place / "runs")
    assert read_cells(sk.Store("runs").open_run("latest").notebook)[1].text == "2retnuh\n"


# Failures


def test_a_failed_notebook_keeps_its_outputs_and_says_on_top_what_happened_and_where(place):
    write_notebook(place / "a.ipynb", "print('before')", "x = [1]\nx[3]", "print('behind')")
    with pytest.raises(
        RunFailed, match="a.ipynb failed in cell 1: IndexError: list index out of range. The ex"
    ) as caught:
        sk.run("a.ipynb")
    run = caught.value.run
    saved = json.loads(run.notebook.read_text())
    sources = ["".join(cell["source"]) for cell in saved["cells"]]
    assert "This run failed:** IndexError: list index out of range" in sources[0]
    assert "(#scalekit-error)" in sources[0] and 'id="scalekit-error"' in sources[2]
    assert sources[3].startswith("x = [1]")
    assert [cell.status for cell in read_cells(run.notebook)] == ["completed", "failed", "not run"]
    assert (run.state, run.row["cell"], run.bundle.verify()) == ("failed", 1, [])


def test_a_very_long_error_is_shortened_in_the_row_and_kept_in_the_notebook(place):
    write_notebook(place / "a.ipynb", "raise ValueError('x' * 3_000_000 + '\\n\\nend')")
    run = sk.run("a.ipynb", check=False)
    assert len(run.error) < 1000 and "\n" not in run.error
    assert read_cells(run.notebook)[0].errors[0][1].endswith("end")


def test_a_failed_run_starts_again_as_often_as_asked(place):
    counts = "with open('count', 'a') as file: file.write('x')\nassert open('count').read() == 'xxx'"
    write_notebook(place / "a.ipynb", "x = 1", counts)
    run = sk.run("a.ipynb", retries=4)
    rows = sk.Store("runs").list_runs()
    assert [row["state"] for row in rows] == ["succeeded", "failed", "failed"]
    assert [sk.Store("runs").open_run(row["run_id"]).asked["attempt"] for row in rows] == [3, 2, 1]
    assert run.run_id == rows[0]["run_id"]


def test_retries_come_to_an_end(place):
    write_notebook(place / "a.ipynb", "1 / 0")
    assert sk.run("a.ipynb", retries=2, check=False).state == "failed"
    assert len(sk.Store("runs").list_runs()) == 3


def test_a_kernel_that_is_not_installed_is_named_with_the_nearest_one(place, capsys):
    write_notebook(place / "a.ipynb", "1", kernel="pyhton3")
    assert main(["run", "a.ipynb"]) == 2
    assert "kernel 'pyhton3' is not installed. Did you mean 'python3'?" in capsys.readouterr().err
    assert [row["state"] for row in sk.Store("runs").list_runs()] == ["failed"]


def test_an_error_in_somebody_elses_callback_ends_the_run_and_tells_it(place):
    write_notebook(place / "a.ipynb", "print('one')", "print('two')")

    def complain(event, index=None, **_):
        if event == "cell" and index == 1:
            raise KeyError("my own mistake")

    with pytest.raises(KeyError):
        sk.run("a.ipynb", on_event=complain)
    (row,) = sk.Store("runs").list_runs()
    assert (row["state"], row["sealed"]) == ("failed", True)
    assert "my own mistake" in row["error"]
    cells = read_cells(Path(row["path"]) / "notebook.ipynb")
    assert (cells[0].text, [cell.status for cell in cells]) == ("one\n", ["completed", "failed"])


# What is checked is what runs


def test_a_notebook_saved_over_while_it_runs_is_run_as_it_was(place):
    notebook = write_notebook(place / "a.ipynb", "open('a.ipynb', 'w').write('{}')", "print('old')")
    before = sha256(notebook)
    run = sk.run("a.ipynb")
    assert (notebook.read_text(), read_cells(run.notebook)[1].text) == ("{}", "old\n")
    assert run.bundle.asked["notebook_sha256"] == before


def test_a_notebook_saved_over_while_it_waits_is_run_as_it_was_checked(place):
    notebook = write_notebook(place / "a.ipynb", "print('old')")
    plan, settings, store = plan_run("a.ipynb", {}), sk.load_settings(), Store("runs")
    write_notebook(notebook, "print('new')")
    with store.lease() as owner:
        bundle = queue_run(plan, store, settings.get_profile("auto"), owner)
        notebook.unlink()
        row = execute_run(make_order(plan, bundle, settings, threads=1))
    assert (row["state"], read_cells(bundle.notebook)[0].text) == ("succeeded", "old\n")


def test_the_checksum_belongs_to_the_very_bytes_that_run(place):
    "While somebody saves without a pause"
    versions = [b"%s" % write_notebook(place / "v", f"print({n})").read_bytes() for n in range(2)]
    known = {hashlib.sha256(version).hexdigest(): f"print({n})" for n, version in enumerate(versions)}
    path, over = place / "a.ipynb", threading.Event()
    path.write_bytes(versions[0])

    def save_for_ever():
        while not over.is_set():
            for version in versions:
                (place / "aside").write_bytes(version)
                os.replace(place / "aside", path)

    saver = threading.Thread(target=save_for_ever)
    saver.start()
    plans = [plan_run(path, {}) for _ in range(300)]
    over.set()
    saver.join()
    assert all(known[plan.sha256] == plan.notebook["cells"][0]["source"] for plan in plans)
    assert len({plan.sha256 for plan in plans}) == 2


# Where it runs


def test_two_runs_at_once_each_work_in_the_folder_of_their_notebook(place):
    names = ["left", "right"]
    for name in names:
        (place / name).mkdir()
        (place / name / "data.txt").write_text(name)
        write_notebook(
            place / name / "a.ipynb", "import time; time.sleep(0.2); print(open('data.txt').read())"
        )
    seen, folders = {}, set()

    def work(name):
        seen[name] = sk.run(f"{name}/a.ipynb")

    threads = [threading.Thread(target=work, args=[name]) for name in names * 1]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        folders.add(os.getcwd())
    assert folders == {str(place)}
    assert [read_cells(seen[name].notebook)[0].text for name in names] == ["left\n", "right\n"]


def test_a_run_may_be_started_where_an_event_loop_is_running(place):
    write_notebook(place / "a.ipynb", "print('ok')")

    async def as_in_a_cell():
        return sk.run("a.ipynb")

    assert asyncio.run(as_in_a_cell()).state == "succeeded"


def test_a_run_may_be_started_from_a_cell_of_another_run(place):
    write_notebook(place / "inner.ipynb", PARAMETERS, "import scalekit as sk; sk.record(double=2 * n)")
    write_notebook(
        place / "outer.ipynb",
        "import scalekit as sk\nrun = sk.run('inner.ipynb', n=21)",
        "sk.record(found=run.metrics['double'])",
    )
    outer = sk.run("outer.ipynb")
    assert outer.metrics == {"found": 42}
    assert [row["metrics"] for row in sk.Store("runs").list_runs()] == [{"double": 42}, {"found": 42}]


def test_a_run_may_be_started_in_a_slot_of_a_cluster(place, slots):
    write_notebook(place / "a.ipynb", PARAMETERS, "import os; print(os.getppid(), n)")
    run = sk.run("a.ipynb", n=4, profile=slots)
    assert run.state == "succeeded"
    assert read_cells(run.notebook)[1].text.endswith(" 4\n")
    assert run.bundle.asked["profile"] == slots


# While it runs


def test_the_live_notebook_is_whole_whenever_it_is_read(place, monkeypatch):
    monkeypatch.setattr(LiveNotebook, "interval", 0.0)
    monkeypatch.setattr(LiveNotebook, "share", 1e9)
    monkeypatch.setattr("scalekit.engine._LOOK_EVERY", 0.001)
    write_notebook(place / "a.ipynb", *["for i in range(10): print(i, 'x' * 100, flush=True)"] * 30)
    n_read, seen, over = 0, set(), threading.Event()

    def read_for_ever():
        nonlocal n_read
        while not over.is_set() or n_read < 1000:
            for path in place.glob("runs/*/notebook.ipynb"):
                seen.add(sum(cell.status == "completed" for cell in read_cells(path)))
                n_read += 1

    reader = threading.Thread(target=read_for_ever)
    reader.start()
    sk.run("a.ipynb")
    over.set()
    reader.join()
    assert n_read >= 1000
    assert len(seen) > 2


def test_the_live_notebook_shows_what_a_cell_has_printed_so_far(place):
    write_notebook(
        place / "a.ipynb",
        "import time",
        "for i in range(6000):\n    print('tick', i, flush=True); time.sleep(0.1)",
    )
    thread = threading.Thread(target=sk.run, args=["a.ipynb"], kwargs={"check": False})
    thread.start()
    wait_until(lambda: list(place.glob("runs/*/notebook.ipynb")))
    (path,) = place.glob("runs/*/notebook.ipynb")
    wait_until(lambda: read_cells(path)[1].text.count("tick") >= 3)
    first = read_cells(path)[1].text.count("tick")
    wait_until(lambda: read_cells(path)[1].text.count("tick") > first)
    assert read_cells(path)[1].status == "running"
    request_stop(sk.Store("runs").open_run("latest"))
    thread.join()
    assert sk.Store("runs").open_run("latest").state == "cancelled"


# The command


def test_the_command_exits_with_0_1_or_2(place, capsys):
    write_notebook(place / "a.ipynb", PARAMETERS, "print('out')\n1 / (n - 2)")
    assert main(["run", "a.ipynb", "-p", "n=3"]) == 0
    assert "succeeded" in capsys.readouterr().out
    assert main(["run", "a.ipynb", "-p", "n=2"]) == 1
    failed = capsys.readouterr().out
    assert "failed in cell 2: ZeroDivisionError: division by zero" in failed  # cell 1 holds the parameters
    assert f"executed notebook: {sk.Store('runs').open_run('latest').notebook.relative_to(place)}" in failed
    for words in (["-p", "m=2"], ["-p", "n=x"], ["-p", "n"], ["--profile", "labb"]):
        assert main(["run", "a.ipynb", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("scalekit: ") and error.count("\n") == 1, error
    assert main(["run", "b.ipynb"]) == 2
    assert "there is no notebook b.ipynb. Did you mean 'a.ipynb'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["run"], ["run", "a.ipynb", "--timeout", "soon"], ["rum"], [], ["run", "a", "--retries", "-1"]]
)
def test_wrong_words_exit_with_2_and_the_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: scalekit" in capsys.readouterr().err


def test_limits_and_tags_come_from_the_command_line(place, capsys):
    write_notebook(place / "a.ipynb", ("print('plot')", "plot"), "import time; time.sleep(60)")
    assert main(["run", "a.ipynb", "--skip-tag", "plot", "--cell-timeout", "0.3s"]) == 1
    assert "CellTimeout: the cell took longer than 0.3 s" in capsys.readouterr().out
    assert main(["run", "a.ipynb", "--timeout", "0.3"]) == 1
    assert "RunTimeout: the run took longer than 0.3 s" in capsys.readouterr().out
    newest, first = sk.Store("runs").list_runs()
    assert read_cells(Path(first["path"]) / "notebook.ipynb")[0].status == "skipped"
    assert read_cells(Path(newest["path"]) / "notebook.ipynb")[0].status != "skipped"


def test_every_listing_verb_speaks_json(place, capsys):
    def ask(*words):
        code = main([*words, "--json"])
        return code, json.loads(capsys.readouterr().out)

    assert ask("runs") == (0, [])
    write_notebook(place / "a.ipynb", PARAMETERS, "import scalekit as sk; sk.record(score=1.5); 1 / (n - 2)")
    code, row = ask("run", "a.ipynb", "-p", "n=1")
    assert (code, row["state"], row["metrics"]) == (0, "succeeded", {"score": 1.5})
    code, row = ask("run", "a.ipynb", "-p", "n=2")
    assert (code, row["state"], row["cell"]) == (1, "failed", 2)
    code, rows = ask("runs")
    wanted = {"run_id", "state", "notebook", "parameters", "metrics", "started", "seconds", "cost"}
    assert (code, len(rows), wanted - rows[0].keys()) == (0, 2, set())
    assert [row["state"] for row in rows] == ["failed", "succeeded"]
    assert ask("runs", "--state", "failed", "-n", "5")[1] == rows[:1]
    code, shown = ask("show", row["run_id"])
    assert (code, shown["asked"]["parameters"], shown["events"][0]["state"]) == (0, {"n": 2}, "queued")
    code, findings = ask("doctor")
    assert code in (0, 1) and {"topic", "text"} <= findings[0].keys()


def test_a_run_is_shown_with_its_cells_and_files(place, capsys):
    write_notebook(place / "a.ipynb", PARAMETERS, "1 / 0")
    main(["run", "a.ipynb"])
    capsys.readouterr()
    assert main(["show", "latest"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "failed in cell 1: ZeroDivisionError",
        "notebook.ipynb",
        "events.jsonl",
        "completed",
        "a.ipynb",
    ):
        assert part in shown
    assert "changed since" not in shown
    bundle = sk.Store("runs").open_run("latest")
    bundle.notebook.write_text("{}")
    assert main(["show", "latest"]) == 0
    assert "changed since it was sealed: notebook.ipynb: differs" in capsys.readouterr().out


def test_a_run_that_is_not_there_is_a_mistake_of_one_line(place, capsys):
    for verb in ("show", "stop"):
        assert main([verb, "2026"]) == 2
        assert "has no runs yet. Start one: scalekit run NOTEBOOK" in capsys.readouterr().err
    write_notebook(place / "a.ipynb", "1")
    main(["run", "a.ipynb"])
    capsys.readouterr()
    assert main(["show", "nothing"]) == 2
    assert "has no run 'nothing'" in capsys.readouterr().err
    assert main(["stop", "latest"]) == 2
    assert "has ended already: succeeded" in capsys.readouterr().err
    assert main(["index"]) == 0
    assert capsys.readouterr().out == "1 runs\n"


def test_a_run_is_stopped_from_another_terminal(place, capsys):
    write_notebook(place / "a.ipynb", "print('begins', flush=True)\nimport time; time.sleep(60)")
    thread = threading.Thread(target=sk.run, args=["a.ipynb"], kwargs={"check": False})
    thread.start()
    wait_until(lambda: list(place.glob("runs/*/notebook.ipynb")))
    (path,) = place.glob("runs/*/notebook.ipynb")
    wait_until(lambda: read_cells(path)[0].text == "begins\n")
    assert main(["stop", "latest"]) == 0
    thread.join(120)
    bundle = sk.Store("runs").open_run("latest")
    assert (bundle.state, read_cells(bundle.notebook)[0].text) == ("cancelled", "begins\n")
    assert not (bundle.path / "stop").exists()


def test_the_parameters_of_a_notebook_are_described_without_running_it(place, capsys):
    write_notebook(place / "a.ipynb", PARAMETERS, "1")
    assert main(["run", "a.ipynb", "--describe"]) == 0
    assert "How many" in capsys.readouterr().out
    assert not (place / "runs").exists()


def test_a_reader_that_has_seen_enough_is_no_error(place):
    write_notebook(place / "a.ipynb", PARAMETERS, "1")
    main(["run", "a.ipynb"])
    done = subprocess.run(f"{SCALEKIT} show latest | true", shell=True, capture_output=True, text=True)
    assert done.stderr == ""
