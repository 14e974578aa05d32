"""The engine: what a notebook says after its cells have run, stopped, crashed or printed too much."""

import json
import os
import time

import nbformat
import pytest
from notebooks import STUBBORN, make_notebook, show_cells
from processes import is_alive, wait_until

from scalekit import engine
from scalekit.engine import Execution
from scalekit.kernels import choose
from scalekit.kernels.choose import KernelOrder, open_kernel
from scalekit.kernels.connection import NoWarmKernel
from scalekit.live import LiveNotebook, recover_notebook
from scalekit.notebook import clear_notebook
from scalekit.outcome import Limits

pytestmark = pytest.mark.usefixtures("place")


class Ran:
    "An execution that is over"

    def __init__(self, *cells, limits=None, path=None, secrets=(), **more):
        self.notebook = clear_notebook(make_notebook(*cells))
        self.live = LiveNotebook(self.notebook, path, secrets)
        order = KernelOrder("python3", os.getcwd(), dict(os.environ), 1, ("json",), 3.0)
        limits = limits or Limits()
        with open_kernel(order, limits.grace) as (kernel, crash_report):
            execution = Execution(self.notebook, kernel, self.live, limits, crash_report=crash_report, **more)
            self.outcome = execution.run()
        self.live.finish()
        self.cells = show_cells(self.notebook)

    @property
    def marks(self):
        return [cell.status for cell in self.cells]


class Ear:
    "Hears what a kernel publishes; with each text that a cell prints an hour passes on the engine's clock"

    def __init__(self, monkeypatch):
        self.said, self._hours = "", 0
        monkeypatch.setattr(engine, "monotonic", lambda: time.monotonic() + 3600 * self._hours)

    def __call__(self, message):
        if message["header"]["msg_type"] == "stream":
            self.said += message["content"]["text"]
            self._hours += 1


@pytest.fixture
def ear(monkeypatch):
    return Ear(monkeypatch)


MINUTE, DAY = 60.0, 86_400.0
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
SLEEP = "import time; print('begins', flush=True); time.sleep(600)"


# Limits


def test_a_cell_that_takes_too_long_is_interrupted_and_what_it_printed_stays(ear):
    ran = Ran("x = 1", SLEEP, "x", limits=Limits(cell_timeout=MINUTE, grace=DAY), on_message=ear)
    assert ran.marks == ["completed", "failed", "not run"]
    assert ran.cells[1].text == "begins\n"
    assert [name for name, _ in ran.cells[1].errors] == ["KeyboardInterrupt", "CellTimeout"]
    assert str(ran.outcome.failure) == "CellTimeout: the cell took longer than 1:00"


def test_a_cell_that_ignores_the_interrupt_is_killed_after_the_grace(ear):
    ran = Ran("x = 1", STUBBORN, "x", limits=Limits(cell_timeout=MINUTE, grace=MINUTE), on_message=ear)
    assert ran.marks == ["completed", "failed", "not run"]
    assert ran.cells[1].text == "begins\nnot yet\n"
    assert [name for name, _ in ran.cells[1].errors] == ["CellTimeout"]
    assert ran.outcome.state == "failed"


def test_a_cell_may_clean_up_when_it_is_interrupted(ear):
    cell = f"try:\n    {SLEEP}\nfinally:\n    time.sleep(0.5); print('cleaned up')"
    ran = Ran(cell, limits=Limits(cell_timeout=MINUTE, grace=DAY), on_message=ear)
    assert ran.cells[0].text == "begins\ncleaned up\n"


def test_a_run_that_takes_too_long_is_stopped_in_the_cell_where_it_is():
    ran = Ran(*["import time; time.sleep(0.4)"] * 20, limits=Limits(run_timeout=1.0))
    n_done = ran.marks.count("completed")
    assert ran.marks == ["completed"] * n_done + ["failed"] + ["not run"] * (19 - n_done)
    assert str(ran.outcome.failure) == "RunTimeout: the run took longer than 1.0 s"


def test_each_cell_has_its_own_time(ear):
    "Each cell ends within an hour, and all of them take three"
    ran = Ran(*["print(1)"] * 3, limits=Limits(cell_timeout=2 * 3600), on_message=ear)
    assert ran.marks == ["completed"] * 3


@pytest.mark.parametrize("state", ["cancelled", "preempted", "pruned"])
def test_a_run_that_is_told_to_stop_ends_as_it_was_told_and_keeps_what_it_has(ear, state):
    ran = Ran("print('done')", SLEEP, "1", on_message=ear, limits=Limits(grace=DAY),
              find_stop=lambda: state if "begins" in ear.said else None)  # fmt: skip
    assert (ran.outcome.state, ran.marks) == (state, ["completed", "failed", "not run"])
    assert ran.cells[0].text + ran.cells[1].text == "done\nbegins\n"


def test_a_stop_that_comes_before_the_kernel_has_begun_is_heard_all_the_same():
    for seconds in (0.0, 0.001, 0.01, 0.02):
        end = time.monotonic() + seconds
        stops = lambda end=end: "cancelled" if time.monotonic() > end else None  # noqa: E731
        ran = Ran(SLEEP, find_stop=stops, limits=Limits(grace=DAY))  # nobody would wait for the kill
        assert (ran.outcome.state, ran.marks) == ("cancelled", ["failed"])


def test_a_stubborn_cell_does_not_survive_a_stop(ear):
    stops = lambda: "cancelled" if "begins" in ear.said else None  # noqa: E731
    ran = Ran(STUBBORN, find_stop=stops, limits=Limits(grace=MINUTE), on_message=ear)
    assert (ran.outcome.state, ran.marks) == ("cancelled", ["failed"])


def test_a_timeout_ends_what_the_cell_has_started(ear):
    cell = "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    ran = Ran(cell, limits=Limits(cell_timeout=MINUTE, grace=DAY), on_message=ear)
    wait_until(lambda: not is_alive(int(ran.cells[0].text)))


# A kernel that dies


@pytest.mark.parametrize(
    "cell, sentence",
    [
        ("import os; os._exit(3)", "the kernel ended with exit code 3"),
        ("import os; os._exit(0)", "the kernel ended with exit code 0"),
        ("import os; os.kill(os.getpid(), 9)", "most often that means the machine ran out of memory"),
        (
            "import ctypes; ctypes.string_at(0)",
            "the kernel ended by SIGSEGV. Fatal Python error: Segmentation fault",
        ),
        ("import os; os.abort()", "the kernel ended by SIGABRT"),
    ],
)
def test_a_kernel_that_dies_takes_no_finished_cell_along_and_no_cell_behind_is_completed(cell, sentence):
    ran = Ran("print('before')", f"print('last words', flush=True); {cell}", "print('behind')", "1")
    assert ran.marks == ["completed", "failed", "not run", "not run"]
    assert ran.outcome.state == "failed"
    assert sentence.lower() in str(ran.outcome.failure).lower()
    assert [cell.text for cell in ran.cells] == ["before\n", "last words\n", "", ""]
    assert [name for name, _ in ran.cells[1].errors] == ["KernelDied"]


def test_a_kernel_that_dies_behind_the_last_cell_changes_nothing_about_the_cells():
    later = "import os, threading; threading.Timer({}, os._exit, [1]).start()"
    for delay in (0.0, 0.001, 0.002, 0.004):
        ran = Ran("1", later.format(delay))
        assert ran.marks[0] == "completed"
        assert (ran.outcome.state, ran.marks[1]) in {("succeeded", "completed"), ("failed", "failed")}


def test_a_stop_that_comes_behind_the_last_cell_comes_too_late():
    cell, ended = "import threading, time; threading.Thread(target=time.sleep, args=[0.5]).start()", []

    def note(event, status="", **fields):
        ended.extend(["cancelled"] * (status == "completed"))

    ran = Ran(cell, on_event=note, find_stop=lambda: ended[0] if ended else None)
    assert (ran.outcome.state, ran.marks) == ("succeeded", ["completed"])


# Cells that are special


def test_cells_with_a_skip_tag_are_not_run():
    cells = ["print(1)", ("print(2)", "plot", "slow"), ("print(3)", "plots")]
    ran = Ran(*cells, limits=Limits(skip_tags=("plot", "x")))
    assert ran.marks == ["completed", "skipped", "completed"]
    assert "".join(cell.text for cell in ran.cells) == "1\n3\n"
    assert (ran.outcome.n_cells, ran.outcome.n_run) == (3, 2)


def test_a_cell_that_may_raise_an_exception_does_not_end_the_run():
    ran = Ran(("1 / 0", "raises-exception"), "print('goes on')")
    assert (ran.outcome.state, ran.marks) == ("succeeded", ["completed", "completed"])
    assert ran.cells[0].errors == [("ZeroDivisionError", "division by zero")]


@pytest.mark.parametrize("leave", ["exit", "quit()", "sys.exit()", "sys.exit(0)", "raise SystemExit"])
def test_a_cell_that_leaves_ends_the_run_early_and_well(leave):
    ran = Ran("import sys; print('done')", leave, "print('never')", "1 / 0")
    assert (ran.outcome.state, ran.outcome.failure) == ("succeeded", None)
    assert ran.marks == ["completed", "completed", "skipped", "skipped"]


@pytest.mark.parametrize("leave", ["import sys; sys.exit(2)", "raise SystemExit('no data')"])
def test_a_cell_that_leaves_with_a_complaint_has_failed(leave):
    ran = Ran(leave, "print('never')")
    assert (ran.outcome.state, ran.marks) == ("failed", ["failed", "not run"])


def test_a_cell_may_await():
    ran = Ran("import asyncio\nawait asyncio.sleep(0.01)\nprint('awake')")
    assert ran.cells[0].text == "awake\n"


def test_a_cell_that_asks_for_input_fails_with_a_reason_and_does_not_wait():
    ran = Ran("input('name?')")
    assert ran.outcome.failure.name == "StdinNotImplementedError"


def test_sources_ids_tags_and_text_cells_stay_as_they_were():
    cells = [("x: int = 1", "parameters"), "print(x)\n", "", "# only a comment"]
    ran, before = Ran(*cells), make_notebook(*cells)
    after = ran.notebook["cells"]
    assert [(c["source"], c["id"], c["metadata"]["tags"]) for c in after] == [
        (c["source"], c["id"], c["metadata"]["tags"]) for c in before["cells"]
    ]
    assert ran.marks == ["completed", "completed", "", "completed"]


def test_each_cell_says_what_it_used():
    ran = Ran("import time; time.sleep(0.3)", "data = b'x' * 80_000_000", "del data")
    marks = [cell["metadata"]["scalekit"] for cell in ran.notebook["cells"]]
    assert marks[0]["seconds"] >= 0.3 and marks[0]["cpu_seconds"] < marks[0]["seconds"]
    assert marks[1]["memory"] - marks[0]["memory"] > 70_000_000
    assert marks[0]["memory"] > 20_000_000


# What cells show


def test_what_a_thread_or_a_task_prints_late_is_not_lost(tmp_path):
    thread = "import asyncio, threading\ngo = threading.Event()\n"
    thread += "t = threading.Thread(target=lambda: (go.wait(), print('late')))\nt.start()"
    task = (
        "async def tell():\n    await asyncio.sleep(0.1); print('later')\nwait = asyncio.create_task(tell())"
    )
    ran = Ran(thread, task, "await wait; go.set(); t.join(); print('third')", path=tmp_path / "a.ipynb")
    assert [cell.text for cell in ran.cells] == ["", "later\n", "late\nthird\n"]  # as a stock kernel has it


def test_twenty_megabytes_of_output_are_kept_whole(tmp_path):
    cell = "for number in range(200):\n    print(f'{number:05}' + 'x' * 100_000)"
    ran = Ran(cell, path=tmp_path / "a.ipynb")
    lines = ran.cells[0].text.splitlines()
    assert [int(line[:5]) for line in lines] == list(range(200))
    assert len(ran.cells[0].text) == 200 * 100_006
    assert len((tmp_path / "a.ipynb").read_text()) > 20_000_000


def test_two_hundred_images_are_kept(tmp_path):
    tools = "from IPython.display import Image, display; import os"
    show = "display(Image(data=b'\\x89PNG\\r\\n\\x1a\\n' + os.urandom(60_000)))"
    ran = Ran(tools, *[show] * 200, path=tmp_path / "a.ipynb")
    images = [output["data"]["image/png"] for cell in ran.notebook["cells"][1:] for output in cell["outputs"]]
    assert len(set(images)) == 200
    nbformat.validate(nbformat.read(tmp_path / "a.ipynb", 4))


def test_a_display_is_updated_in_place():
    ran = Ran(
        "from IPython.display import display\nbar = display('0 %', display_id='bar')",
        "bar.update('50 %')", "bar.update('100 %')",
    )  # fmt: skip
    assert [cell.results for cell in ran.cells] == [["'100 %'"], [], []]


def test_widgets_keep_their_state_if_asked_to():
    show = "import ipywidgets\nbar = ipywidgets.IntProgress(value=3)\nbar"
    ran = Ran(show, "bar.value = 7", limits=Limits(keep_widgets=True))
    (widgets,) = ran.notebook["metadata"]["widgets"].values()
    models = {model["model_name"]: model["state"] for model in widgets["state"].values()}
    assert models["IntProgressModel"]["value"] == 7
    assert "IntProgress(value=3)" in ran.cells[0].results[0]
    assert WIDGET_VIEW in ran.notebook["cells"][0]["outputs"][0]["data"]


def test_five_megabytes_of_a_widget_leave_what_can_be_read(tmp_path):
    figure = (  # plotly's FigureWidget is one of these
        "import anywidget\nclass FigureWidget(anywidget.AnyWidget):\n    _esm = 'x' * 5_000_000\n"
        "FigureWidget()"
    )
    Ran(figure, path=tmp_path / "a.ipynb")
    Ran(figure, path=tmp_path / "kept.ipynb", limits=Limits(keep_widgets=True))
    assert (tmp_path / "kept.ipynb").stat().st_size > 4_000_000
    assert (tmp_path / "a.ipynb").stat().st_size < 50_000
    (output,) = json.loads((tmp_path / "a.ipynb").read_text())["cells"][0]["outputs"]
    assert list(output["data"]) == ["text/plain"]
    assert "FigureWidget" in "".join(output["data"]["text/plain"])


def test_what_an_output_widget_caught_outlives_the_widget():
    box = "import ipywidgets as w\nout = w.Output()\nw.VBox([out])"
    ran = Ran(box, "with out:\n    print('epoch 1')\n    display('table')", "with out:\n    print('epoch 2')")
    shown = [
        output.get("text") or output["data"]["text/plain"] for output in ran.notebook["cells"][0]["outputs"]
    ]
    assert shown[1:] == ["epoch 1\n", "'table'", "epoch 2\n"]
    assert "widgets" not in ran.notebook["metadata"]


@pytest.mark.parametrize("text", [r"half \ud800 a pair", r"nul \x00 and bell \x07", "\\u2028 line", "☃ 雪"])
def test_odd_characters_do_not_end_a_run(tmp_path, text):
    ran = Ran(f"print('{text}')", f"'{text}'", "1", path=tmp_path / "a.ipynb")
    assert (ran.outcome.state, ran.marks) == ("succeeded", ["completed"] * 3)
    assert show_cells(json.loads((tmp_path / "a.ipynb").read_text()))[2].results == ["1"]


# Secrets

PRIVATE_KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----"


@pytest.mark.parametrize("secret", ["hunter-2-hunter", "päss wörd", 'qu"o\\te', PRIVATE_KEY])
def test_a_secret_is_in_no_file_whatever_a_cell_does_with_it(tmp_path, secret):
    give = f"key = {secret!r}"
    shows = "print(key)\nprint(repr(key), [key])\nkey"
    breaks = "raise ValueError(f'login with {key} failed')"
    ran = Ran("pass", shows, breaks, path=tmp_path / "a.ipynb", secrets=[secret], real_sources={0: give})
    assert "failed" in ran.cells[2].errors[0][1]
    text = (tmp_path / "a.ipynb").read_text()
    for part in secret.splitlines():
        assert part not in text
        assert json.dumps(part)[1:-1] not in text
    assert text.count("**********") >= 5


@pytest.mark.parametrize("secret", ["text", "stream", "cells", "1", "n", '"', "{", "source", "code"])
def test_a_secret_that_is_a_common_word_does_not_destroy_the_notebook(tmp_path, secret):
    Ran("pass", "print('ok'); 7", path=tmp_path / "a.ipynb", secrets=[secret])
    saved = json.loads((tmp_path / "a.ipynb").read_text())
    nbformat.validate(saved)
    assert [cell["cell_type"] for cell in saved["cells"]] == ["code", "code"]


# A journal instead of whole saves


def keep_a_journal(monkeypatch):
    "As if saving the whole notebook took very long: after the first time all goes to the journal"
    monkeypatch.setattr(engine, "_LOOK_EVERY", 0.02)
    monkeypatch.setattr(LiveNotebook, "interval", 0.0)
    monkeypatch.setattr(LiveNotebook, "share", 1e-12)
    monkeypatch.setattr(LiveNotebook, "finish", lambda self: self._append())


def test_a_notebook_and_its_journal_say_the_same_as_the_memory_did(tmp_path, monkeypatch):
    keep_a_journal(monkeypatch)
    ran = Ran(
        "import asyncio, time\nasync def later():\n    await asyncio.sleep(0.4); print('late')\nprint('one')",
        "task = asyncio.create_task(later()); print('two')",
        "from IPython.display import display, clear_output\nbar = display('0 %', display_id='bar')",
        "await asyncio.sleep(0.6); bar.update('100 %')",
        "print('gone'); clear_output(); print('stays'); 6 * 7",
        "1 / 0",
        "print('never')",
        path=(path := tmp_path / "a.ipynb"),
    )
    assert path.with_name(".a.ipynb.journal").exists()
    assert len({cell.text for cell in show_cells(json.loads(path.read_text()))}) == 1  # the file lacks it all
    found = show_cells(recover_notebook(path))
    assert found == ran.cells
    assert found[1].text == "two\nlate\n"
    assert show_cells(recover_notebook(path)) == found


def test_a_kill_between_the_notebook_and_the_end_of_its_journal_repeats_nothing(tmp_path, monkeypatch):
    keep_a_journal(monkeypatch)
    ran = Ran("print('one')", "print('two')", path=(path := tmp_path / "a.ipynb"))
    journal = path.with_name(".a.ipynb.journal")
    lines = journal.read_bytes()
    recover_notebook(path)
    journal.write_bytes(lines)  # as if the kill had come before it was removed
    assert show_cells(recover_notebook(path)) == ran.cells
    journal.write_bytes(lines)
    ran.live.save()
    journal.write_bytes(lines)
    assert show_cells(recover_notebook(path)) == ran.cells


def test_a_journal_that_was_cut_off_anywhere_gives_what_came_before(tmp_path, monkeypatch):
    keep_a_journal(monkeypatch)
    Ran(*[f"print({number})" for number in range(5)], path=(path := tmp_path / "a.ipynb"))
    journal, saved = path.with_name(".a.ipynb.journal"), path.read_bytes()
    lines = journal.read_bytes()
    before = -1
    for length in range(0, len(lines) + 1, 97):
        path.write_bytes(saved)
        journal.write_bytes(lines[:length])
        texts = [cell.text for cell in show_cells(recover_notebook(path))]
        n_printed = sum(bool(text) for text in texts)
        assert texts[:n_printed] == [f"{number}\n" for number in range(n_printed)]
        assert n_printed >= before
        before = n_printed
    assert before >= 4


def test_a_journal_that_found_the_disk_full_for_a_while_lacks_and_repeats_nothing(tmp_path, monkeypatch):
    keep_a_journal(monkeypatch)
    write, moments = LiveNotebook._append, iter(range(1000))

    def append(self):
        journal = self.path.with_name(".a.ipynb.journal")
        before = journal.stat().st_size if journal.exists() else 0
        write(news := self) if next(moments) % 3 else write(news := replace_news(self))
        if news is not self:
            os.truncate(journal, max(before, journal.stat().st_size - 20))
            raise OSError(28, "No space left on device")

    def replace_news(self):
        other = LiveNotebook(self.notebook, self.path)
        other._news = list(self._news)
        return other

    monkeypatch.setattr(LiveNotebook, "_append", append)
    monkeypatch.setattr(LiveNotebook, "finish", lambda self: write(self))
    cells = [f"for i in range(3):\n    print({n}, i, flush=True); time.sleep(0.1)" for n in range(4)]
    ran = Ran("import time", *cells, path=(path := tmp_path / "a.ipynb"))
    assert show_cells(recover_notebook(path)) == ran.cells
    assert next(moments) > 3, "the disk was never full"


def test_a_secret_printed_in_two_pieces_is_in_no_file_of_a_run_that_is_killed(tmp_path, monkeypatch):
    keep_a_journal(monkeypatch)
    monkeypatch.setattr(LiveNotebook, "finish", lambda self: None)  # the kill
    prints = "for part in (key[:6], key[6:]):\n    print(part, end='', flush=True); time.sleep(0.3)"
    Ran("import time", "pass", prints, path=(path := tmp_path / "a.ipynb"),
        secrets=["hunter2-and-more"], real_sources={1: "key = 'hunter2-and-more'"})  # fmt: skip
    assert "hunter2-and-more" not in str(show_cells(recover_notebook(path)))
    assert [file.name for file in tmp_path.iterdir()] == ["a.ipynb"], (
        "a journal can't hide what it sees in pieces"
    )


def test_a_run_with_secrets_is_saved_whole_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_LOOK_EVERY", 0.02)
    monkeypatch.setattr(LiveNotebook, "interval", 0.05)
    monkeypatch.setattr(LiveNotebook, "share", 1.0)
    monkeypatch.setattr(LiveNotebook, "finish", lambda self: None)  # the kill
    Ran("pass", "print(key); print({'a': key}, flush=True)", "import time; time.sleep(0.5)",
        path=(path := tmp_path / "a.ipynb"), secrets=[PRIVATE_KEY],
        real_sources={0: f"key = {PRIVATE_KEY!r}"})  # fmt: skip
    assert "MIIEvQIBADANBg" not in path.read_text()
    assert show_cells(recover_notebook(path))[1].text == "**********\n{'a': '**********'}\n"


# The end, and normal kernels


def test_exit_handlers_run_and_may_print_as_much_as_they_like(tmp_path):
    said = tmp_path / "said.txt"
    end = f"def end():\n    print('x' * 3_000_000)\n    pathlib.Path({str(said)!r}).write_text('bye')"
    ran = Ran(f"import atexit, pathlib\n@atexit.register\n{end}")
    assert (ran.outcome.state, said.read_text()) == ("succeeded", "bye")


@pytest.fixture
def no_warm_kernels(monkeypatch):
    def refuse(*_):
        raise NoWarmKernel("because this test says so")

    monkeypatch.setattr(choose, "start_kernel", refuse)


@pytest.mark.parametrize(
    "cell, limits, errors",
    [
        ("print('ok', flush=True)", Limits(), []),
        (
            "print('ok', flush=True); import os, time\nwhile not os.path.exists('heard'): time.sleep(0.02)\n"
            "os._exit(3)",
            Limits(),
            ["KernelDied"],
        ),
        (SLEEP.replace("begins", "ok"), Limits(MINUTE, grace=DAY), ["KeyboardInterrupt", "CellTimeout"]),
        (STUBBORN.replace("begins", "ok"), Limits(MINUTE, grace=MINUTE), ["CellTimeout"]),
    ],
)
def test_where_there_is_no_warm_kernel_a_normal_one_tells_the_same(
    no_warm_kernels, place, ear, cell, limits, errors
):
    def hear(message):
        ear(message)
        (place / "heard").touch() if ear.said else None

    ran = Ran("x = 1", cell, "x", limits=limits, on_message=hear)
    assert ran.marks == ["completed", *(["failed", "not run"] if errors else ["completed", "completed"])]
    assert [name for name, _ in ran.cells[1].errors] == errors
    assert ran.cells[1].text.startswith("ok\n")
