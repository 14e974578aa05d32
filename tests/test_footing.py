"""A training that is killed goes on from its saved steps only if everything they depend on is as it was."""

import os
from pathlib import Path

import pytest
from notebooks import write_notebook

import scalekit as sk

CELLS = [
    ("rate: float = 0.5", "parameters"),
    "import json, os, signal\nfrom pathlib import Path\nimport scalekit as sk\nimport helper_of_training",
    "data = json.loads(Path('data.json').read_text())\nparts = sorted(os.listdir('parts'))\n"
    "scale = float(os.environ.get('TRAINING_SCALE', '1'))",
    "history = []\nout = Path('out'); out.mkdir(exist_ok=True)",
    """slot = sk.checkpoint(history=history)
for epoch in range(slot.step, 4):
    added = data['x'] + float(Path('shift.txt').read_text()) + helper_of_training.offset() + len(parts)
    history.append(rate * scale * added)
    slot.save(epoch + 1)
    (out / f'model-{epoch}.txt').write_text(str(history))
    if epoch == 1 and not Path('killed').exists():
        Path('killed').touch()
        os.kill(os.getpid(), signal.SIGKILL)""",
    "sk.record(history=history)",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRAINING_SCALE", raising=False)
    Path("data.json").write_text('{"x": 1}')
    Path("shift.txt").write_text("10")
    Path("helper_of_training.py").write_text("def offset(): return 100")
    Path("parts").mkdir()
    return tmp_path


def play(*cells, **options):
    return sk.run(write_notebook(Path("book.ipynb"), *cells), store="runs", check=False, **options)


def goes_on(run):
    return "going on after step" in Path(run.notebook).read_text()


def notes(run):
    return [event["text"] for event in run.bundle.events() if event["event"] == "note"]


def rewrite(path, text):
    Path(path).write_text(text)


CHANGES = {
    "a file that a quick cell reads": lambda: rewrite("data.json", '{"x": 2}'),
    "a file that the training reads": lambda: rewrite("shift.txt", "20"),
    "a module of the project": lambda: rewrite("helper_of_training.py", "def offset(): return 200"),
    "the files in a folder": lambda: rewrite("parts/new", ""),
    "a variable of the environment": lambda: os.environ.update(TRAINING_SCALE="3"),
    "a parameter": lambda: {"rate": 0.7},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_training_begins_anew_when_something_before_it_has_changed(folder, monkeypatch, change):
    monkeypatch.setenv("TRAINING_SCALE", "1")
    broken = play(*CELLS)
    assert broken.state == "failed"
    parameters = CHANGES[change]() or {}
    resumed = play(*CELLS, parameters=parameters, resume=broken.run_id)
    fresh = play(*CELLS, parameters=parameters)
    assert resumed.bundle.records() == fresh.bundle.records() and not goes_on(resumed)
    assert any(note.startswith("a training begins anew") for note in notes(resumed))


def test_what_a_cell_with_a_record_has_read_counts_as_well(folder):
    cells = [*CELLS[:3], "import time; time.sleep(0.3)", *CELLS[3:]]
    broken = play(*cells)
    Path("data.json").write_text('{"x": 2}')
    assert not goes_on(play(*cells, resume=broken.run_id))


def test_a_training_goes_on_when_nothing_has_changed(folder, monkeypatch):
    broken = play(*CELLS)
    resumed = play(*CELLS, resume=broken.run_id)
    assert goes_on(resumed) and resumed.bundle.records()["history"] == [55.5] * 4 and notes(resumed) == []


def test_a_training_goes_on_also_when_it_is_killed_twice(folder):
    later = "Path('la' + 'ter')"  # a file whose name stood in the notebook would count
    dies = f"if not {later}.exists(): {later}.touch(); os.kill(os.getpid(), signal.SIGKILL)"
    cells = [*CELLS[:3], f"{CELLS[3]}\n{dies}", *CELLS[4:]]
    Path("later").touch()
    broken = play(*cells)
    Path("later").unlink()
    again = play(*cells, resume=broken.run_id)
    assert again.state == "failed" and goes_on(play(*cells, resume=again.run_id))
    Path("data.json").write_text('{"x": 2}')
    assert not goes_on(play(*cells, resume=again.run_id))


def test_random_numbers_before_a_training_are_drawn_again_as_they_were(folder):
    draws = "import random, numpy as np, torch\n"
    draws += "noise = random.random() + np.random.rand() + torch.rand(1).item()"
    train = CELLS[4].replace("rate * scale * added", "noise")
    for cells in ([*CELLS[:4], draws, train, CELLS[5]], [*CELLS[:4], draws, "noise", "_", train, CELLS[5]]):
        Path("killed").unlink(missing_ok=True)
        broken = play(*cells)
        resumed = play(*cells, resume=broken.run_id)
        assert goes_on(resumed) and len(set(resumed.bundle.records()["history"])) == 1
    Path("killed").unlink()
    broken = play(*cells)
    (broken.path / "cells" / "start.json").unlink()
    assert not goes_on(play(*cells, resume=broken.run_id))


def test_without_a_word_on_what_they_depend_on_steps_are_not_used(folder):
    broken = play(*CELLS)
    (broken.path / "checkpoints" / "footing.json").unlink()
    resumed = play(*CELLS, resume=broken.run_id)
    assert notes(resumed) == ["a training begins anew: what its steps depend on was not written down"]
    assert resumed.state == "succeeded"


def test_a_file_counts_as_it_was_when_it_was_read(folder):
    cells = [*CELLS[:4], CELLS[4].replace("Path('killed').touch()", "{}; Path('killed').touch()"), CELLS[5]]
    for change, is_new in {
        "os.system('echo 5 > shift.txt')": True,
        "os.utime('data.json', (1, 1))": False,
    }.items():
        Path("killed").unlink(missing_ok=True)
        changing = [cell.replace("{}", change) if "slot" in cell else cell for cell in cells]
        broken = play(*changing)
        assert goes_on(play(*changing, resume=broken.run_id)) != is_new


def test_a_module_that_comes_later_counts_if_it_was_asked_for(folder):
    asks = "try:\n    import later_of_training\nexcept ImportError:\n    pass"
    cells = [*CELLS[:2], asks, *CELLS[2:]]
    broken = play(*cells)
    rewrite("plots.py", "")
    assert goes_on(play(*cells, resume=broken.run_id))
    Path("killed").unlink()
    broken = play(*cells)
    rewrite("later_of_training.py", "")
    assert not goes_on(play(*cells, resume=broken.run_id))


def test_a_notebook_that_keeps_no_journal_has_a_footing_too(folder):
    cells = [*CELLS[:3], "import time; time.sleep(0.3); 7", "last = _", *CELLS[3:]]
    broken = play(*cells)
    assert goes_on(play(*cells, resume=broken.run_id))
    Path("killed").unlink()
    broken = play(*cells)
    Path("data.json").write_text('{"x": 2}')
    assert not goes_on(play(*cells, resume=broken.run_id))


def test_a_variable_that_a_cell_asks_for_is_like_a_parameter(folder, monkeypatch):
    monkeypatch.setattr("scalekit.resume.WORTH", 0.0)
    cells = ["import os, scalekit as sk", "mode = os.environ.get('TRAINING_SCALE', 'none')"]
    broken = play(*cells, "1 / 0")
    monkeypatch.setenv("TRAINING_SCALE", "7")
    assert play(*cells, "sk.record(mode=mode)", resume=broken.run_id).bundle.records() == {"mode": "7"}
    play(*cells, "sk.record(mode=mode)", cache=True)
    monkeypatch.setenv("TRAINING_SCALE", "8")
    assert play(*cells, "sk.record(mode=mode)", cache=True).bundle.records() == {"mode": "8"}


def test_a_module_that_is_edited_while_the_notebook_runs_counts_as_it_was_loaded(folder, monkeypatch):
    monkeypatch.setattr("scalekit.resume.WORTH", 0.0)
    edit = "os.system(\"echo 'def offset(): return 5' > helper_of_training.py\")"
    cells = ["import helper_of_training, os", f"x = helper_of_training.offset(); {edit}"]
    broken = play(*cells, "1 / 0")
    end = "import scalekit as sk; sk.record(x=x)"
    assert play(*cells, end, resume=broken.run_id).bundle.records() == {"x": 5}
