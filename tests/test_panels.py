"""Panels without a browser: what they say, that they end, and what they leave behind."""

import gc
import json
import subprocess
import sys
import threading
import time

import pytest
from notebooks import make_notebook
from panel_kernel import Kernel
from processes import wait_until as wait_for

from scalekit.cluster import Cluster, open_cluster
from scalekit.panels.cells import close_panels
from scalekit.panels.cluster import ClusterPanel
from scalekit.panels.frame import Ended, Panel
from scalekit.panels.runs import RunsPanel
from scalekit.panels.workers import make_body, write_body
from scalekit.runner import run
from scalekit.store import Store
from scalekit.workers import ClusterError


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("scalekit-panel")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    close_panels()
    wait_for(lambda: threads() == [])


class Counter(Panel):
    kind, period = "counter", 0.02

    def __init__(self):
        super().__init__("Counter")
        self.answers = []  # What `read` gives or raises, the last one for ever
        self.n_reads = 0

    def read(self):
        self.n_reads += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def still(self, body):
        return [str(body["n"])]


def open_counter(*answers):
    panel = Counter()
    panel.answers = list(answers)
    panel.open()
    wait_for(lambda: panel.n_reads >= len(answers))
    return panel


def says(panel):
    head = panel.view.head
    return head["state"], (head["trouble"] or {}).get("line")


# Frame


def test_a_panel_that_fails_says_so_in_a_line_and_keeps_its_numbers():
    panel = open_counter({"n": 1}, KeyError("worker"))
    wait_for(lambda: says(panel) == ("retrying", "KeyError: 'worker'"))
    assert panel.view.body == {"n": 1}
    assert "Traceback" in panel.view.head["trouble"]["details"]


def test_a_panel_that_fails_tries_less_and_less_often():
    panel = Counter()
    panel.answers = [OSError("gone")]
    assert [panel._tick() / panel.period for _ in range(6)] == [2, 4, 8, 16, 30, 30]
    panel.answers = [{"n": 2}]
    assert panel._tick() == panel.period


def test_a_panel_with_nothing_to_show_is_empty_and_one_that_is_over_is_no_thread():
    panel = open_counter(None)
    wait_for(lambda: says(panel)[0] == "empty")
    panel.answers = [Ended("it was closed")]
    wait_for(lambda: not panel.is_open)
    assert says(panel) == ("ended", "it was closed")
    assert threads() == []


def test_a_paused_panel_reads_nothing():
    panel = open_counter({"n": 1})
    panel._take(None, {"do": "pause"}, [])
    wait_for(lambda: says(panel)[0] == "paused")
    n_reads = panel.n_reads
    time.sleep(0.2)
    assert panel.n_reads == n_reads


def test_a_panel_that_nobody_sees_reads_seldom_until_somebody_looks():
    panel = open_counter({"n": 1})
    panel._take(None, {"do": "unseen"}, [])
    time.sleep(0.1)
    n_reads = panel.n_reads
    time.sleep(0.3)
    assert panel.n_reads <= n_reads + 1
    panel._take(None, {"do": "seen"}, [])
    wait_for(lambda: panel.n_reads > n_reads + 5)


def test_numbers_that_did_not_change_are_not_sent_again():
    panel = Counter()
    panel.answers = [{"n": 1}]
    panel.open()
    bodies = []
    panel.view.observe(lambda change: bodies.append(change["new"]), "body")
    wait_for(lambda: panel.n_reads > 5)
    assert len(bodies) <= 1


def test_of_many_orders_the_newest_is_carried_out_and_none_at_a_time_with_another():
    panel, done, at_once, go_on = open_counter({"n": 1}), [], [], threading.Event()

    def work(n):
        at_once.append(len(at_once) - len(done))
        assert go_on.wait(120)
        done.append(n)

    for n in range(50):
        panel.work("scale", work, n, wait=0.02)
        time.sleep(0.002)
    go_on.set()
    wait_for(lambda: not panel.is_busy("scale"))
    assert done[-1] == 49
    assert len(done) <= 2  # the newest, and the one that had begun
    assert set(at_once) == {0}


def test_a_handler_returns_at_once_while_its_work_goes_on():
    panel, release = open_counter({"n": 1}), threading.Event()
    start = time.monotonic()
    panel.work("slow", release.wait, 120)
    took = time.monotonic() - start
    assert panel.is_busy("slow")
    release.set()
    print(f"the handler took {took * 1000:.2f} ms")  # bench_panels.py measures it


def test_a_panel_ends_with_its_process():
    code = (
        "from scalekit.panels.frame import Panel\n"
        "class P(Panel):\n    def read(self): return {}\n"
        "P('p').open(); print('opened')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert (done.stdout, done.stderr, done.returncode) == ("opened\n", "", 0)


# In a kernel


@pytest.fixture(scope="module")
def kernel():
    with Kernel() as kernel:
        kernel.run(
            "from scalekit.panels.frame import Panel\n"
            "import threading\n"
            "def threads(): return sum(one.name == 'scalekit-panel-p' for one in threading.enumerate())\n"
            "class P(Panel):\n"
            "    kind, period = 'p', 0.05\n"
            "    def read(self): return {'html': 'seven'}\n"
            "    def still(self, body): return ['seven']\n"
        )
        yield kernel


def test_a_cell_leaves_html_and_text_beside_its_widget(kernel):
    shown = kernel.run("P('A title')", cell="a")["execute_result"]["data"]
    assert sorted(shown) == ["application/vnd.jupyter.widget-view+json", "text/html", "text/plain"]
    assert "seven" in shown["text/html"]
    assert shown["text/plain"].startswith("A title ▣ static")


def test_a_cell_that_is_run_twice_has_one_panel(kernel):
    for _ in range(3):
        kernel.run("P('again')", cell="b")
    kernel.run("from IPython.display import display\ndisplay(P('one'), P('two'))", cell="c")
    kernel.run("'no panel any more'", cell="a")
    assert kernel.settles("threads()", 3)
    kernel.run("import scalekit.panels.cells as c; c.close_panels()")
    assert kernel.settles("threads()", 0)


def test_a_job_shows_a_picture_and_starts_nothing(kernel):
    shown = kernel.run("import os; os.environ['SCALEKIT_BUNDLE'] = '/tmp'; P('job')")["execute_result"][
        "data"
    ]
    kernel.run("del os.environ['SCALEKIT_BUNDLE']")
    assert sorted(shown) == ["text/html", "text/plain"]


# Cluster


@pytest.fixture(scope="module")
def cluster():
    with open_cluster("cpu", n_workers=1) as cluster:
        yield cluster


def test_a_panel_does_not_keep_a_cluster_alive_and_says_that_it_is_gone(cluster):
    other = Cluster(cluster.profile, cluster.client)
    panel = ClusterPanel(other)
    panel.period = 0.05
    panel.open()
    wait_for(lambda: says(panel)[0] == "live")
    del other
    gc.collect()
    wait_for(lambda: says(panel) == ("ended", "The cluster is gone: no variable named it any more."))


def test_workers_follow_the_work_within_a_range(cluster):
    cluster.adapt(1, 2)
    futures = cluster.client.map(lambda n: time.sleep(0.4), range(300), pure=False)
    wait_for(lambda: len(cluster.usage()) == 2)
    cluster.client.cancel(futures)
    wait_for(lambda: len(cluster.usage()) == 1)
    cluster.scale(1)
    assert cluster.adaptation is None


@pytest.mark.parametrize("wrong", [(2, 1), (-1, 2), (0, 0)])
def test_a_range_that_is_none_is_refused(cluster, wrong):
    with pytest.raises(
        ClusterError, match=r"0 <= minimum <= maximum must hold, got .* cluster.adapt\(1, 4\)"
    ):
        cluster.adapt(*wrong)


def make_answer(n_workers, n_hosts=1, **facts):
    usual = {"status": "running", "running": 1, "waiting": 2, "cpu": 98.5, "threads": 1, "memory": 2**30,
             "memory_limit": 2**32, "gpu": None, "gpu_memory": None, "gpu_memory_total": None,
             "network": 1e6, "spilled": 0} | facts  # fmt: skip
    workers = [{**usual, "name": str(n), "host": f"10.0.0.{n % n_hosts}"} for n in range(n_workers)]
    return {"workers": workers, "unassigned": 0}


def test_many_workers_are_a_row_for_each_machine_until_somebody_unfolds_one():
    answer = make_answer(100, n_hosts=4)
    assert [row[-1] for row in make_body(answer)["rows"]] == ["folded"] * 4
    assert len(make_body(answer, {"10.0.0.1"})["rows"]) == 4 + 25
    assert len(make_body(make_answer(10))["rows"]) == 10


def test_gpus_have_columns_only_where_there_are_some():
    gpu = {"gpu": 80, "gpu_memory": 2**33, "gpu_memory_total": 2**34}
    with_gpus, without = write_body(make_body(make_answer(1, **gpu))), write_body(make_body(make_answer(1)))
    assert [list(part.heads[4:6]) for part in (with_gpus[1], without[1])] == [
        ["GPU", "GPU memory"],
        ["network", "spilled"],
    ]
    assert "8 GiB of 16 GiB" in with_gpus[1].text()


# Runs


@pytest.fixture
def runs(tmp_path):
    store = Store(tmp_path / "runs")
    for number in range(30):
        bundle = store.create_run({"notebook": "train.ipynb", "parameters": {"lr": number}})
        bundle.set_state("running")
        bundle.set_state("failed", error="x")
        store.index(bundle)
    return RunsPanel(store, tmp_path, limit=25)


def test_a_wrong_filter_changes_nothing_and_says_why(runs):
    runs.find("parameters.lr >= 10")
    with pytest.raises(Exception, match="parameters.lrr"):
        runs.find("parameters.lrr > 3")
    runs.read()
    assert (runs.where, len(runs.rows)) == ("parameters.lr >= 10", 20)


def test_more_runs_are_shown_when_asked_for(runs):
    assert "Show more" in runs.read()["table"]
    runs.handle({"do": "more"})
    assert ("Show more" in runs.read()["table"], len(runs.rows)) == (False, 30)


def test_a_third_choice_takes_the_place_of_the_first(runs):
    runs.read()
    ids = [row["run_id"] for row in runs.rows[:3]]
    for run_id in ids:
        runs.handle({"do": "choose", "run": run_id})
    assert runs.chosen == ids[1:]


def test_orders_that_mean_nothing_are_passed_over(runs):
    runs.read()
    for order in ({}, {"do": "resume"}, {"do": "compare"}, {"do": "sort"}, {"do": "__init__"}, {"do": ["x"]}):
        runs.handle(order)
    assert runs._work.names == []


def test_a_run_whose_notebook_was_moved_says_where_it_was_looked_for(runs):
    runs.read()
    with pytest.raises(Exception, match=r"its notebook must be there to run again, and .*train.ipynb is not"):
        runs._resume(runs.rows[0]["run_id"])


def test_a_run_that_is_resumed_goes_on_in_a_process_of_its_own(tmp_path):
    notebook = tmp_path / "train.ipynb"
    notebook.write_text(json.dumps(make_notebook("import os", "assert os.path.exists('ready')")))
    failed = run(notebook, store=tmp_path / "runs", check=False)
    (tmp_path / "ready").touch()
    panel = RunsPanel(Store(tmp_path / "runs"), tmp_path)
    panel.read()
    panel._resume(failed.run_id)
    wait_for(lambda: panel.read() and panel.rows[0]["state"] == "succeeded")
    assert panel.rows[0]["resumed"] == failed.run_id
