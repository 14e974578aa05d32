"""Runs that are broken off and go on; results of cells that runs share."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from notebooks import write_notebook

import scalekit as sk
from scalekit.cli import main
from scalekit.journal.watch import LocalModules

sys.path.insert(0, str(Path(__file__).parent / "torture"))
import journal as torture


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def every_cell(monkeypatch):
    "Also cells that take no time are kept"
    monkeypatch.setattr("scalekit.resume.WORTH", 0.0)


def statuses(run):
    cells = json.loads(run.notebook.read_text())["cells"]
    return [cell["metadata"]["scalekit"]["status"] for cell in cells if cell["cell_type"] == "code"]


def play(folder, *cells, name="book.ipynb", **options):
    return sk.run(write_notebook(folder / name, *cells), store=folder / "runs", check=False, **options)


def test_a_mended_cell_is_the_first_that_runs(folder, every_cell):
    done = ["a = [1]; print('begun')", "b = a; b.append(2); 'shown'"]
    broken = play(folder, *done, "1 / 0")
    resumed = play(folder, *done, "import scalekit as sk; sk.record(a=a)", resume=broken.run_id)
    assert statuses(resumed) == ["restored", "restored", "completed"]
    assert resumed.bundle.records()["a"] == [1, 2]
    cells = json.loads(resumed.notebook.read_text())["cells"]
    assert "".join(cells[0]["outputs"][0]["text"]) == "begun\n"
    assert cells[1]["outputs"][0]["data"]["text/plain"] == ["'shown'"] and cells[2]["execution_count"] == 3


def test_a_class_and_its_objects_need_not_run_again(folder, every_cell):
    cells = ["class Box:\n    def __init__(self, n): self.n = n\nbox = Box(3)", "box.n += 1"]
    broken = play(folder, *cells, "1 / 0")
    resumed = play(folder, *cells, "import scalekit as sk; sk.record(n=box.n)", resume=broken.run_id)
    assert statuses(resumed) == ["restored"] * 2 + ["completed"] and resumed.bundle.records() == {"n": 4}


def test_what_restored_cells_have_logged_belongs_to_the_new_run(folder, every_cell):
    cells = [
        "import scalekit as sk",
        "for i in range(3): sk.log(loss=1 / (i + 1), step=i)",
        "sk.record(n=3)\nsk.artifact('it', name='a.txt')",
    ]
    broken = play(folder, *cells, "1 / 0")
    resumed = play(folder, *cells, "x = 1", resume=broken.run_id)
    assert resumed.bundle.curves() == broken.bundle.curves() and resumed.bundle.records() == {"n": 3}
    assert (resumed.bundle.artifacts / "a.txt").read_text() == "it" and resumed.bundle.verify() == []


def test_parameters_are_those_of_the_earlier_run_unless_said(folder, every_cell):
    cells = [("n: int = 1", "parameters"), "m = n * 2"]
    broken = play(folder, *cells, "1 / 0", n=5)
    ends = "import scalekit as sk; sk.record(m=m)"
    assert play(folder, *cells, ends, resume=broken.run_id).bundle.records() == {"m": 10}
    assert play(folder, *cells, ends, resume=broken.run_id, n=7).bundle.records() == {"m": 14}


def test_a_retry_goes_on_at_the_cell_that_failed(folder, every_cell):
    cells = [
        "open('count.txt', 'a').write('first ')",
        "import os\nopen('count.txt', 'a').write('second ')\n"
        "if not os.path.exists('tried'):\n    open('tried', 'w').close(); 1 / 0",
    ]
    run = play(folder, *cells, retries=1)
    assert run.state == "succeeded" and Path("count.txt").read_text() == "first second second "


def test_a_damaged_or_foreign_journal_only_costs_time(folder, every_cell):
    cells = ["import numpy as np\nx = np.arange(99.0)", "y = x + 1"]
    broken = play(folder, *cells, "1 / 0")
    for file in (broken.path / "cells" / "values").glob("*.npy"):
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    end = "import scalekit as sk; sk.record(y=float(y.sum()))"
    resumed = play(folder, *cells, end, resume=broken.run_id)
    assert resumed.bundle.records() == {"y": 4950.0} and statuses(resumed) == ["completed"] * 3
    for file in (broken.path / "cells").glob("*.json"):
        file.write_bytes(b"0" * 64 + b"\n" + file.read_bytes().partition(b"\n")[2])
    assert statuses(play(folder, *cells, end, resume=broken.run_id)) == ["completed"] * 3


def test_a_run_that_goes_on_can_be_broken_off_again(folder, every_cell):
    cells = ["a = 1", "b = a + 1", "c = b + 1"]
    first = play(folder, *cells[:2], "1 / 0")
    second = play(folder, *cells, "1 / 0", resume=first.run_id)
    third = play(folder, *cells, "d = c", resume=second.run_id)
    assert statuses(third) == ["restored"] * 3 + ["completed"]


def test_only_a_run_that_has_ended_and_is_of_this_notebook_can_go_on(folder):
    done = play(folder, "a = 1")
    with pytest.raises(sk.ScaleKitError, match=r"is of book.ipynb, and other.ipynb can't go on"):
        play(folder, "a = 1", name="other.ipynb", resume=done.run_id)
    with pytest.raises(sk.ScaleKitError, match="no run"):
        play(folder, "a = 1", resume="20200101")


def test_a_run_with_a_secret_keeps_no_journal(folder, every_cell):
    cells = [("from pydantic import SecretStr\npassword: SecretStr", "parameters"), "x = 1", "1 / 0"]
    broken = play(folder, *cells, password="hunter2-hunter2")
    assert not list((broken.path / "cells").glob("**/*.json"))
    found = [path for path in folder.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert found == []


def test_what_is_of_the_run_itself_is_asked_for_again(folder, every_cell):
    cells = [
        "import os, scalekit as sk\nout = sk.current_run().path / 'artifacts'",
        "def mine(): return sk.current_run().run_id\nkept = {'id': mine(), 'n': 1}",
        "pid = os.getpid()\nfile = str(out / 'x.txt')",
    ]
    broken = play(folder, *cells, "1 / 0")
    end = "sk.record(out=str(out), kept=kept, file=file, same=pid == os.getpid())"
    found = play(folder, *cells, end, resume=broken.run_id).bundle
    told = found.records()
    assert told["out"] == str(found.artifacts) and told["file"] == f"{told['out']}/x.txt"
    assert told["kept"] == {"id": found.run_id, "n": 1} and told["same"]


def test_a_succeeded_run_leaves_no_journal(folder, every_cell):
    assert not (play(folder, "x = 1").path / "cells").exists()


def test_a_notebook_that_can_keep_no_journal_says_so_once(folder, every_cell, capsys):
    run = play(folder, "1", "x = _", "y = x")
    notes = [event["text"] for event in run.bundle.events() if event["event"] == "note"]
    assert notes == [
        "this run keeps no journal: the notebook uses earlier outputs by _, Out or In, which are not kept"
    ]
    assert main(["show", run.run_id, "--store", "runs"]) == 0
    assert "note:              this run keeps no journal" in capsys.readouterr().out


RING = """
class Node:
    def __init__(self): self.peers = set()
one, other = Node(), Node()
one.peers.add(other); other.peers.add(one)
deep = []
for _ in range(3000): deep = [deep]
"""


def test_a_ring_through_sets_or_a_deep_list_costs_its_own_cell_only(folder, every_cell):
    cells = ["a = [1]", RING, "b = a + [2]"]
    broken = play(folder, *cells, "1 / 0")
    assert not [event for event in broken.bundle.events() if event["event"] == "note"]
    check = "import scalekit as sk; sk.record(b=b, ring=other in one.peers)"
    resumed = play(folder, *cells, check, resume=broken.run_id)
    assert statuses(resumed) == ["restored", "completed", "restored", "completed"]
    assert resumed.bundle.records() == {"b": [1, 2], "ring": True}


def test_packages_in_a_folder_elsewhere_are_no_modules_of_the_project(folder, monkeypatch):
    for place, name in (("stack/site-packages", "foreign_kit"), ("project", "own_kit")):
        (folder / place).mkdir(parents=True)
        (folder / place / f"{name}.py").write_text("CALLS = []")
        monkeypatch.syspath_prepend(folder / place)  # as PYTHONPATH does
        importlib.import_module(name)
    own = LocalModules({})
    own.find()
    assert "own_kit" in own.modules and "foreign_kit" not in own.modules


def test_settings_switch_the_journal_off(folder, every_cell):
    (folder / "scalekit.toml").write_text("journal = false")
    broken = play(folder, "x = 1", "1 / 0")
    assert list((broken.path / "cells").iterdir()) == []


SWEPT = [
    ("n: int = 1", "parameters"),
    "import numpy as np\nopen('loads.txt', 'a').close()",
    "data = np.arange(1000.0)",
    "answer = float(data.sum()) * n",
    "import scalekit as sk\nsk.record(answer=answer)",
]


def test_cells_that_do_not_depend_on_a_parameter_run_once(folder, every_cell):
    first, second = (play(folder, *SWEPT, n=n, cache=True) for n in (1, 2))
    assert (first.metrics, second.metrics) == ({"answer": 499500.0}, {"answer": 999000.0})
    assert statuses(second)[3] == "restored" and statuses(second)[-2:] == ["completed", "completed"]
    again = play(folder, *SWEPT, n=2, cache=True)
    assert again.metrics == second.metrics and statuses(again)[-2:] == ["restored", "restored"]


@pytest.mark.parametrize(
    "cell, why",
    [
        ("import time\nx = time.time()", "time"),
        ("import numpy as np\nx = np.random.rand()", "without a seed"),
        ("import numpy as np\nx = np.random.default_rng().random()", "default_rng"),
        ("import os\nx = os.urandom(4)", "urandom"),
        ("import uuid\ndef name(): return str(uuid.uuid4())\nx = name()", "uuid4"),
        ("open('out.txt', 'w').write('a')", "writes files"),
        ("import subprocess\nx = subprocess.run(['true'])", "another program"),
        ("x = (i for i in range(3))", "generator"),
    ],
)  # fmt: skip
def test_what_differs_each_time_is_not_shared(cell, why, folder, every_cell):
    run = play(folder, cell, cache=True)
    mark = json.loads(run.notebook.read_text())["cells"][0]["metadata"]["scalekit"]["journal"]
    assert why in mark["unshared"]
    assert statuses(play(folder, cell, cache=True)) == ["completed"]


def test_a_cell_can_stay_out_of_the_cache(folder, every_cell):
    cells = [("x = 1", "no-cache"), "y = 2"]
    play(folder, *cells, cache=True)
    assert statuses(play(folder, *cells, cache=True)) == ["completed", "restored"]


def test_files_that_libraries_read_by_themselves_count(folder, every_cell):
    cells = [
        "import pyarrow.parquet as pq\npath = 'data.parquet'",
        "table = pq.read_table(path).to_pydict()",
        "import scalekit as sk; sk.record(table=table)",
    ]
    import pandas as pd

    for values in ([1], [2]):
        pd.DataFrame({"a": values}).to_parquet("data.parquet")
        assert play(folder, *cells, cache=True).bundle.records() == {"table": {"a": values}}


def test_the_template_does_not_train_twice(folder, every_cell):
    template = json.loads((Path(sk.__file__).parent / "templates" / "train.ipynb").read_text())
    last = {"cell_type": "code", "id": "last", "metadata": {}, "source": "1 / 0"}
    last |= {"outputs": [], "execution_count": None}
    cells = [*template["cells"], last]
    (folder / "train.ipynb").write_text(json.dumps({**template, "cells": cells}))
    broken = sk.run("train.ipynb", store="runs", check=False, smoke=True, epochs=2)
    (folder / "train.ipynb").write_text(json.dumps(template))
    resumed = sk.run("train.ipynb", store="runs", resume=broken.run_id)
    cells = json.loads(resumed.notebook.read_text())["cells"]
    (training,) = [cell for cell in cells if "slot.save" in "".join(cell["source"])]
    assert training["metadata"]["scalekit"]["status"] == "restored"
    assert resumed.bundle.curves() == broken.bundle.curves()


@pytest.mark.slow
def test_no_mutation_gives_a_stale_result(every_cell):
    assert list(torture.torture_by_mutations(12, seed=5))[-1].startswith("12 mutations: 0 stale results")


@pytest.mark.slow
def test_killed_runs_end_with_the_bits_of_an_unbroken_one():
    told = list(torture.torture_by_kills(5, seed=7))
    assert told[-1].endswith("0 kept cells ran twice") and not any("DIFFERENT" in line for line in told)
