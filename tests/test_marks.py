"""Tags and notes: from the start, from the notebook, and long after the seal, by whoever sees the store."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from notebooks import write_notebook

import scalekit as sk
from scalekit.bundle import SealedBundle
from scalekit.cli import main
from scalekit.marks import BadMark
from scalekit.planfile import load_plan
from scalekit.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def make_run(store, **asked):
    "A run that has ended well and is sealed"
    bundle = store.create_run({"notebook": "train.ipynb"} | asked)
    bundle.set_state("running")
    bundle.set_state("succeeded")
    bundle.seal()
    store.index(bundle)
    return bundle


def list_tags(store):
    return [row["tags"] for row in store.list_runs()]


def in_another_process(code, *words):
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)


# After the seal


def test_a_sealed_run_takes_tags_and_notes_and_stays_as_it_was_sealed(store):
    bundle = make_run(store, tags=["team a"])
    bundle.tag("accepted", "draft")
    bundle.tag("draft", remove=True)
    bundle.note("labels of class 3 were wrong")
    bundle.note("and it does not matter")
    row = bundle.summary()
    assert row["tags"] == ["team a", "accepted"]
    assert row["notes"] == "labels of class 3 were wrong\nand it does not matter"
    assert bundle.verify() == []
    with pytest.raises(SealedBundle):
        bundle.append("log", values={})


def test_the_index_hears_of_a_mark_that_another_process_makes_after_the_seal(store):
    bundle = make_run(store)
    assert list_tags(store) == [[]]
    code = "import sys; from scalekit.bundle import Bundle; Bundle(sys.argv[1]).tag('baseline')"
    assert in_another_process(code, bundle.path).returncode == 0
    assert list_tags(store) == [["baseline"]]  # an index that was open all the time
    assert list_tags(Store(store.folder)) == [["baseline"]]


def test_a_mark_is_heard_of_when_its_maker_is_killed_right_after_it(store):
    bundle = make_run(store)
    list_tags(store)
    code = """
import os, sys
from scalekit.bundle import Bundle
Bundle(sys.argv[1]).note("last words")
os.kill(os.getpid(), 9)
"""
    assert in_another_process(code, bundle.path).returncode == -signal.SIGKILL
    assert store.list_runs()[0]["notes"] == "last words"


def test_a_maker_killed_between_the_hint_and_the_mark_leaves_nothing_half(store):
    bundle = make_run(store)
    list_tags(store)
    code = """
import os, sys
from scalekit import marks
from scalekit.bundle import Bundle
append = marks.append_event
def die_at_the_mark(path, event):
    append(path, event) if "run_id" in event else os.kill(os.getpid(), 9)
marks.append_event = die_at_the_mark
Bundle(sys.argv[1]).tag("never")
"""
    assert in_another_process(code, bundle.path).returncode == -signal.SIGKILL
    assert list_tags(store) == [[]]
    bundle.tag("baseline")
    assert list_tags(store) == [["baseline"]]


def test_a_listing_waits_for_a_mark_whose_name_it_has_heard_already(store, monkeypatch):
    from scalekit import marks

    bundle = make_run(store)
    list_tags(store)
    hinted, go_on, append = threading.Event(), threading.Event(), marks.append_event

    def pause_at_the_mark(path, event):
        if "run_id" not in event:
            hinted.set()
            assert go_on.wait(120)
        append(path, event)

    monkeypatch.setattr(marks, "append_event", pause_at_the_mark)
    maker = threading.Thread(target=bundle.tag, args=("slow",))
    maker.start()
    assert hinted.wait(120)
    found = []
    reader = threading.Thread(target=lambda: found.append(list_tags(Store(store.folder))))
    reader.start()
    reader.join(0.2)
    assert found == []
    go_on.set()
    for thread in (maker, reader):
        thread.join(120)
    assert found == [[["slow"]]]


def test_a_bundle_that_is_copied_in_brings_its_marks(store, tmp_path):
    bundle = make_run(store)
    bundle.tag("champion")
    other = Store(tmp_path / "elsewhere")
    make_run(other)
    assert list_tags(other) == [[]]
    shutil.copytree(bundle.path, other.folder / bundle.run_id)
    assert sorted(list_tags(other)) == [[], ["champion"]]
    assert other.open_run(bundle.run_id).verify() == []


def test_marks_are_found_again_when_the_index_is_made_anew(store):
    bundle = make_run(store)
    bundle.tag("champion")
    shutil.rmtree(store.folder / ".index")
    assert list_tags(store) == [["champion"]]
    bundle.tag("old")
    assert list_tags(store) == [["champion", "old"]]
    assert store.rebuild_index() == 1
    assert list_tags(store) == [["champion", "old"]]


def test_marks_of_a_deleted_run_are_no_trouble(store):
    bundle = make_run(store)
    list_tags(store)
    bundle.tag("gone soon")
    shutil.rmtree(bundle.path)
    assert list_tags(store) == []
    with pytest.raises(sk.ScaleKitError, match="can't be marked"):
        bundle.tag("too late")


def test_many_who_mark_one_run_at_once_lose_no_word(store):
    bundle = make_run(store)
    code = """
import sys
from scalekit.bundle import Bundle
for number in range(20):
    Bundle(sys.argv[1]).tag(f"{sys.argv[2]}-{number}")
"""
    makers = [subprocess.Popen([sys.executable, "-c", code, str(bundle.path), name]) for name in "abc"]
    assert [maker.wait(60) for maker in makers] == [0, 0, 0]
    assert len(list_tags(store)[0]) == 60


def test_half_a_line_of_a_killed_maker_is_passed_over(store):
    bundle = make_run(store)
    bundle.tag("one")
    with open(bundle.path / "later" / "marks.jsonl", "ab") as file:
        file.write(b'{"time": "2026", "event": "tags", "add": ["ha')
    bundle.tag("two")
    assert list_tags(store) == [["one", "two"]]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_is_read_only_says_so(store):
    bundle = make_run(store)
    bundle.path.chmod(0o500)
    with pytest.raises(sk.ScaleKitError, match="this user may not write there"):
        bundle.tag("baseline")


# From a notebook, from Python, from the command line


def test_tags_come_from_the_call_and_from_the_notebook(place):
    source = "import scalekit as sk\nsk.tag('fast')\nsk.tag('draft', remove=True)\nsk.note('from May')"
    write_notebook(place / "a.ipynb", source)
    run = sk.run("a.ipynb", tags=["team a", "draft"])
    assert (run.tags, run.notes) == (["team a", "fast"], "from May")
    assert run.bundle.asked["tags"] == ["team a", "draft"]
    run.tag("accepted")
    run.note("reviewed")
    assert (run.tags, run.notes) == (["team a", "fast", "accepted"], "from May\nreviewed")
    assert sk.runs()["tags"].tolist() == [["team a", "fast", "accepted"]]
    assert "accepted" in run._repr_html_()


def test_a_wrong_tag_stops_before_anything_is_made(place):
    write_notebook(place / "a.ipynb", "1")
    with pytest.raises(BadMark, match="tag 'a,b'"):
        sk.run("a.ipynb", tags=["a,b"])
    with pytest.raises(BadMark, match="tag 'a,b'"):
        sk.sweep("a.ipynb", tags=["a,b"])
    assert not (place / "runs").exists()


def test_a_run_that_goes_on_with_another_keeps_its_tags(place):
    write_notebook(place / "a.ipynb", "import os\nassert os.path.exists('ready')")
    failed = sk.run("a.ipynb", tags=["baseline"], check=False, retries=1)
    (place / "ready").touch()
    assert [row["tags"] for row in Store("runs").list_runs()] == [["baseline"]] * 2
    assert sk.run("a.ipynb", resume=failed.run_id).tags == ["baseline"]
    failed_again = sk.run("a.ipynb", resume=failed.run_id, tags=["second"])
    assert failed_again.tags == ["second"]


def test_trials_of_a_sweep_are_tagged_also_when_it_goes_on(place, slots):
    write_notebook(place / "a.ipynb", ("n: int = 1", "parameters"))
    sweep = sk.sweep("a.ipynb", n=[1, 2], tags=["night"], profile=slots)
    assert [row["tags"] for row in sweep.rows] == [["night"]] * 2
    plan, _ = load_plan(sweep.page.parent)
    assert plan.tags == ("night",)
    assert main(["sweep", "a.ipynb", "-g", "n=1,3", "--tag", "typed", "--profile", slots]) == 0
    rows = Store("runs").list_runs()
    assert sorted(row["tags"] for row in rows) == [["night"], ["night"], ["typed"]]  # n=1 was done before
    assert main(["sweep", "--resume", "latest", "--tag", "more"]) == 2


def test_runs_are_tagged_from_the_command_line(place, capsys):
    write_notebook(place / "a.ipynb", "1")
    assert main(["run", "a.ipynb", "--tag", "team a", "--tag", "draft"]) == 0
    assert main(["tag", "latest", "accepted", "fast"]) == 0
    assert main(["tag", "latest", "draft", "--remove"]) == 0
    assert main(["note", "latest", "labels are fine"]) == 0
    capsys.readouterr()
    assert main(["show", "latest"]) == 0
    shown = capsys.readouterr().out
    assert "tags:              team a, accepted, fast\n" in shown
    assert "notes:             labels are fine\n" in shown
    assert main(["runs"]) == 0
    assert "team a, accepted, fast" in capsys.readouterr().out
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["tags"] == ["team a", "accepted", "fast"]
    for words in (["tag", "latest", "a,b"], ["note", "latest", " "], ["tag", "nobody", "x"]):
        assert main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_without_a_run_tags_and_notes_do_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("SCALEKIT_BUNDLE", raising=False)
    monkeypatch.chdir(tmp_path)
    sk.tag("baseline")
    sk.note("nothing")
    assert os.listdir(tmp_path) == []
