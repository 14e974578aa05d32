"""JupyterLab's job form over REST: a real Jupyter server on loopback, the daemon that it starts, real runs.

Each weakness of jupyter-scheduler's own backend has a test here that its name tells, and so has each feature
that it declares. Jobs that a test waits for are asked for early, so that they run while others are looked at.
"""

import email
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode

import psutil
import pytest
from aiosmtpd.controller import Controller
from lab import Lab, find_marked
from notebooks import read_cells
from processes import MARK, free_port, wait_until

from scalekit.jobs.book import JobBook
from scalekit.jobs.leader import find_leader
from scalekit.lab.places import OWN_KERNEL
from scalekit.lab.setup import list_options

SERVER = (sys.executable, "-m", "jupyter_server", *list_options())  # JupyterLab's half is not needed here
ENDED = ("COMPLETED", "FAILED", "STOPPED")
PARAMETERS = "lr: float = 0.1\nmodel: str = 'mlp'"
SLOW = "import time\nprint('begun', flush=True)\ntime.sleep({})\nprint('done')"
HELD = SLOW.replace("time.sleep({})", "import os\nwhile not os.path.exists({!r}): time.sleep(0.05)")


class Jobs:
    "What the form asks of a server"

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.book = JobBook(lab.store)

    def create(self, notebook: str, name: str = "", **fields: Any) -> str:
        "Run once; the job's id"
        return self.lab.ask("/scheduler/jobs", "POST", self._fill(notebook, name, fields))["job_id"]

    def define(self, notebook: str, name: str = "", **fields: Any) -> str:
        "Make a job definition; its id"
        body = self._fill(notebook, name, fields)
        return self.lab.ask("/scheduler/job_definitions", "POST", body)["job_definition_id"]

    def refuse(self, notebook: str, where: str = "jobs", **fields: Any) -> str:
        "What the form shows when it can't be made"
        body = self._fill(notebook, fields.pop("name", ""), fields)
        code, answer = self.lab.refuse(f"/scheduler/{where}", "POST", body)
        assert code == 500, answer
        return answer["message"]

    def get(self, job_id: str) -> dict[str, Any]:
        return self.lab.ask(f"/scheduler/jobs/{job_id}")

    def wait(self, job_id: str, *status: str, seconds: float = 120) -> dict[str, Any]:
        "The job once it has a status; default: once it has ended"
        wait_until(lambda: self.get(job_id)["status"] in (status or ENDED), seconds, every=0.1)
        return self.get(job_id)

    def list(self, what: str = "jobs", **query: Any) -> dict[str, Any]:
        return self.lab.ask(f"/scheduler/{what}?{urlencode(query, doseq=True)}")

    def bring(self, job_id: str, again: bool = False) -> dict[str, Path]:
        "Download, and the files by format"
        word = "true" if again else "false"
        self.lab.ask(f"/scheduler/jobs/{job_id}/download_files?redownload={word}")
        files = self.get(job_id)["job_files"]
        return {one["file_format"]: self.lab.root / one["file_path"] for one in files if one["file_path"]}

    def read(self, job_id: str) -> str:
        "What the notebook has printed"
        return "".join(cell.text for cell in read_cells(self.bring(job_id, again=True)["ipynb"]))

    def _fill(self, notebook: str, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        further = {key: fields.pop(key) for key in ("every", "gpus") if key in fields}
        asked = {"input_uri": notebook, "name": name or Path(notebook).stem, "output_formats": ["ipynb"],
                 "runtime_environment_name": OWN_KERNEL} | fields  # fmt: skip
        return asked | ({"runtime_environment_parameters": further} if further else {})


class Post:
    "A mail server on loopback, and what it got"

    def __init__(self) -> None:
        self.port, self.letters = free_port(), []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.letters.append((envelope.rcpt_tos, email.message_from_bytes(envelope.content)["subject"]))
        return "250 OK"


@pytest.fixture(scope="module")
def post() -> Iterator[Post]:
    post = Post()
    controller = Controller(post, hostname="127.0.0.1", port=post.port)
    controller.start()
    yield post
    controller.stop()


@contextmanager
def short_folder() -> Iterator[Path]:
    "Sockets lie below it, and their paths have to be short"
    with TemporaryDirectory(prefix="sk-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def lab(post: "Post") -> Iterator[Lab]:
    "The server that most tests share"
    with short_folder() as folder:
        lab = Lab(folder, command=SERVER)
        mail = f'[mail]\nhost = "127.0.0.1"\nport = {post.port}\nfrom = "jobs@example.org"\ntls = "none"\n'
        (lab.root / "scalekit.toml").write_text('[profiles.two]\nkind = "cpu"\nworkers = 2\n' + mail)
        lab.write_notebook("quick.ipynb", "print(lr, model)", parameters=PARAMETERS)
        lab.write_notebook("fails.ipynb", "print('so far')", "raise ValueError('no data')")
        lab.write_notebook("slow.ipynb", SLOW.format(600))
        with lab:
            yield lab


@pytest.fixture(scope="module")
def jobs(lab: Lab) -> Jobs:
    return Jobs(lab)


@pytest.fixture(scope="module")
def other_lab() -> Iterator[Lab]:
    "A server for those that kill one"
    with short_folder() as folder, Lab(folder, command=SERVER) as lab:
        lab.write_notebook("quick.ipynb", "1")
        for seconds in (3, 600):
            lab.write_notebook(f"long{seconds}.ipynb", SLOW.format(seconds))
        lab.write_notebook("held.ipynb", HELD.format(str(lab.root / "go")))
        yield lab


@pytest.fixture
def own(other_lab: Lab) -> Lab:
    "A server that a test may kill; it is alive now"
    if other_lab.process is None or other_lab.process.poll() is not None:
        other_lab.start()
    return other_lab


# What is declared


def test_every_feature_is_declared(lab):
    features = lab.ask("/scheduler/config")["supported_features"]
    assert len(features) == 14
    assert all(features.values())


def test_kernels_are_environments_and_profiles_are_compute_types(lab):
    environments = lab.ask("/scheduler/runtime_environments")
    assert [one["name"] for one in environments][:1] == [OWN_KERNEL]
    assert "python3" in [one["name"] for one in environments]
    places = [text.partition(":")[0] for text in environments[0]["compute_types"]]
    assert places == ["here", "auto", "two", "cpu", "gpu"]
    assert {"name": "html", "label": "HTML"} in environments[0]["output_formats"]


def test_a_job_has_its_name_typed_parameters_tags_and_every_output(jobs):
    job_id = jobs.create(
        "quick.ipynb", "a quick one", parameters={"lr": "1e-3", "model": "'cnn'"}, tags=["first", "small"],
        output_formats=["ipynb", "html", "report"],
    )  # fmt: skip
    job = jobs.wait(job_id)
    assert (job["status"], job["name"], job["tags"]) == ("COMPLETED", "a quick one", ["first", "small"])
    assert (job["parameters"], job["downloaded"]) == ({"lr": "0.001", "model": "cnn"}, False)
    files = jobs.bring(job_id)
    assert set(files) == {"ipynb", "html", "report", "input"}
    assert "0.001 cnn" in jobs.read(job_id)
    assert "0.001 cnn" in files["html"].read_text()
    assert files["input"].read_bytes() == (jobs.lab.root / "quick.ipynb").read_bytes()
    assert jobs.get(job_id)["downloaded"] is True
    assert [one["job_id"] for one in jobs.list(tags=["small"])["jobs"]] == [job_id]


def test_output_files_are_called_as_the_template_says(jobs):
    job_id = jobs.create("quick.ipynb", "sized", output_filename_template="../{{name}} {{parameters.lr}}",
                         parameters={"lr": "0.5"})  # fmt: skip
    jobs.wait(job_id)
    assert jobs.bring(job_id)["ipynb"].name == "sized_0.5.ipynb"
    wrong = jobs.refuse("quick.ipynb", output_filename_template="{{nmae}}")
    assert "'nmae' is undefined. It may name: " in wrong


def test_a_token_that_is_sent_twice_makes_one_job(jobs):
    first = jobs.create("quick.ipynb", idempotency_token="abc")
    n_kept = len(list((jobs.lab.store / "jobs" / "inputs").iterdir()))
    assert jobs.create("quick.ipynb", idempotency_token="abc") == first
    assert len(list((jobs.lab.store / "jobs" / "inputs").iterdir())) == n_kept
    other = {"input_uri": "quick.ipynb", "name": "other", "runtime_environment_name": OWN_KERNEL}
    code, answer = jobs.lab.refuse("/scheduler/jobs", "POST", other | {"idempotency_token": "abc"})
    assert (code, "already exists" in answer["message"]) == (409, True)


def test_a_job_is_stopped_and_what_it_has_made_stays(jobs):
    job_id = jobs.create("slow.ipynb", "stopped")
    jobs.wait(job_id, "IN_PROGRESS")
    wait_until(lambda: "begun" in _read_so_far(jobs, job_id))
    jobs.lab.ask(f"/scheduler/jobs/{job_id}", "PATCH", {"status": "STOPPED"})
    job = jobs.wait(job_id)
    assert (job["status"], job["status_message"]) == ("STOPPED", "stopped in JupyterLab")
    assert "begun" in jobs.read(job_id)


def test_a_job_is_deleted_also_while_it_runs(jobs):
    job_id = jobs.create("slow.ipynb", "deleted")
    jobs.wait(job_id, "IN_PROGRESS")
    run_id = jobs.book.get_firing(job_id).last.run_id
    kept = jobs.book.get_firing(job_id).spec.lab["input"]
    jobs.lab.ask(f"/scheduler/jobs/{job_id}", "DELETE")
    code, answer = jobs.lab.refuse(f"/scheduler/jobs/{job_id}")
    assert (code, "no firing" in answer["message"]) == (500, True)
    assert not (jobs.lab.store / "jobs" / "inputs" / kept).exists()
    assert (jobs.lab.store / run_id / "run.json").exists()


def test_a_job_that_takes_too_long_is_ended_and_tried_again_only_if_asked(jobs):
    said = {"timeout_seconds": 1, "max_retries": 1, "min_retry_interval_millis": 10}
    once = jobs.create("slow.ipynb", "once", **said)
    further = {"timeout": "1s", "retries": 1, "backoff": "0.01s", "retry_on_timeout": "yes"}
    twice = jobs.create("slow.ipynb", "twice", runtime_environment_parameters=further)
    assert jobs.wait(once)["status"] == jobs.wait(twice)["status"] == "FAILED"
    assert "took longer" in jobs.get(once)["status_message"]
    assert [len(jobs.book.get_firing(one).attempts) for one in (once, twice)] == [1, 2]


def test_a_job_that_fails_is_tried_again_after_the_interval(jobs):
    jobs.lab.write_notebook(
        "second.ipynb",
        "from pathlib import Path\nbefore = Path('been').exists()\nPath('been').touch()\nassert before",
    )
    job_id = jobs.create("second.ipynb", max_retries=2, min_retry_interval_millis=200)
    assert jobs.wait(job_id)["status"] == "COMPLETED"
    first, second = jobs.book.get_firing(job_id).attempts
    assert (second.created - first.ended).total_seconds() >= 0.2


def test_whoever_is_named_gets_an_e_mail(jobs, post):
    told = {"on_failure": ["bad@example.org"], "on_success": ["good@example.org"]}
    good = jobs.create("quick.ipynb", "good one", email_notifications=told)
    bad = jobs.create("fails.ipynb", "bad one", runtime_environment_parameters={"email": "bad@example.org"})
    jobs.wait(good), jobs.wait(bad)
    wait_until(lambda: len(post.letters) >= 2)
    by_person = {people[0]: subject for people, subject in post.letters}
    assert "good one" in by_person["good@example.org"]
    assert "bad one" in by_person["bad@example.org"]


# What is wrong is said when the job is made


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"parameters": {"lr": "fast"}}, "lr must be float, got 'fast'. Example: lr=0.1"),
        ({"parameters": {"lrr": "1"}}, "quick.ipynb has no parameter 'lrr'. Did you mean 'lr'?"),
        ({"compute_type": "tow"}, "no profile 'tow'. Did you mean 'two'?"),
        ({"compute_type": "cpu: cores of this machine", "gpus": 4}, "compute type cpu has no GPUs"),
        ({"runtime_environment_name": "pyhton3"}, "no kernel 'pyhton3'. Did you mean 'python3'?"),
        ({"runtime_environment_parameters": {"tiemout": 5}}, "Did you mean 'timeout'?"),
        ({"max_retries": -1}, "n must be a whole number of at least 0"),
        ({"email_notifications": {"on_failure": ["nobody"]}}, "email must be an e-mail address"),
        ({"input_uri": "no.ipynb"}, "Input path 'no.ipynb' does not exist."),
        ({"input_uri": "../server.log"}, "Input path '../server.log' does not exist."),
        ({"input_uri": "scalekit.toml"}, "is not a notebook"),
    ],
)
def test_a_mistake_is_one_sentence_in_the_form_and_leaves_nothing(jobs, fields, said):
    before = sorted((jobs.lab.store / "jobs" / "inputs").glob("*"))
    assert said in jobs.refuse("quick.ipynb", **fields)
    assert sorted((jobs.lab.store / "jobs" / "inputs").glob("*")) == before


def test_a_parameter_is_a_value_and_never_code(jobs):
    trap = f"__import__('pathlib').Path({str(jobs.lab.root / 'trap')!r}).touch()"
    job_id = jobs.create("quick.ipynb", parameters={"model": trap})
    assert "parameter lr must be" in jobs.refuse("quick.ipynb", parameters={"lr": trap})
    assert jobs.wait(job_id)["status"] == "COMPLETED"
    assert trap in jobs.read(job_id)
    assert not (jobs.lab.root / "trap").exists()


# Where it runs


def test_the_chosen_kernel_runs_it(jobs, tmp_path):
    spec = jobs.lab.folder / "data" / "kernels" / "marked"
    spec.mkdir(parents=True)
    words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    about = {"argv": words, "display_name": "Marked", "language": "python", "env": {"KERNEL_MARK": "mine"}}
    (spec / "kernel.json").write_text(json.dumps(about))
    jobs.lab.write_notebook("which.ipynb", "import os\nprint(os.environ.get('KERNEL_MARK'))")
    chosen = jobs.create("which.ipynb", runtime_environment_name="marked")
    usual = jobs.create("which.ipynb")
    for one in (chosen, usual):
        assert jobs.wait(one)["status"] == "COMPLETED", jobs.get(one)["status_message"]
    assert (jobs.read(chosen).strip(), jobs.read(usual).strip()) == ("mine", "None")


def test_the_chosen_profile_runs_it(jobs):
    job_id = jobs.create("quick.ipynb", compute_type="cpu: cores of this machine")
    assert jobs.wait(job_id)["status"] == "COMPLETED"
    run_id = jobs.book.get_firing(job_id).last.run_id
    assert json.loads((jobs.lab.store / run_id / "run.json").read_text())["profile"] == "cpu"


def test_modules_beside_the_notebook_are_found_and_a_folder_travels_if_asked(jobs):
    source = "import helper\nprint(helper.word)\nopen('made.txt', 'w').write('x')"
    jobs.lab.write_notebook("kit/uses.ipynb", source)
    (jobs.lab.root / "kit" / "helper.py").write_text("word = 'as it was'")
    travels = jobs.define("kit/uses.ipynb", "travels", package_input_folder=True)
    stays = jobs.create("kit/uses.ipynb", "stays")
    jobs.wait(stays)
    (jobs.lab.root / "kit" / "helper.py").write_text("word = 'as it is'")
    (jobs.lab.root / "kit" / "made.txt").unlink()
    job_id = jobs.lab.ask(f"/scheduler/job_definitions/{travels}/jobs", "POST", {})["job_id"]
    job = jobs.wait(job_id)
    assert job["status"] == "COMPLETED", job
    assert (jobs.read(stays).strip(), jobs.read(job_id).strip()) == ("as it was", "as it was")
    assert not (jobs.lab.root / "kit" / "made.txt").exists()
    files = jobs.bring(job_id)["files"]
    assert ((files / "made.txt").read_text(), (files / "helper.py").exists()) == ("x", True)


def test_more_jobs_than_the_machine_has_room_for_wait_in_line(jobs):
    jobs.lab.write_notebook("nap.ipynb", HELD.format(str(jobs.lab.root / "enough")))
    ids = [jobs.create("nap.ipynb") for _ in range(psutil.cpu_count() + 2)]

    def is_full():
        found = [jobs.get(one) for one in ids]
        wait = [one for one in found if "waits for its turn" in str(one["status_message"])]
        return wait and len(wait) + sum(one["status"] == "IN_PROGRESS" for one in found) == len(ids)

    wait_until(is_full, every=0.1)
    (jobs.lab.root / "enough").touch()
    assert {jobs.wait(one)["status"] for one in ids} == {"COMPLETED"}


# What it shows


def _read_so_far(jobs: Jobs, job_id: str) -> str:
    files = jobs.bring(job_id, again=True)
    return "".join(cell.text for cell in read_cells(files["ipynb"])) if "ipynb" in files else ""


def test_a_failed_job_tells_the_cells_error_and_has_its_output(jobs):
    job_id = jobs.create("fails.ipynb", output_formats=["ipynb", "html"])
    job = jobs.wait(job_id)
    assert (job["status"], job["status_message"]) == ("FAILED", "ValueError: no data")
    assert "so far" in jobs.read(job_id)
    assert "no data" in jobs.bring(job_id)["html"].read_text()


def test_output_is_there_while_it_runs(jobs):
    job_id = jobs.create("slow.ipynb", "live")
    jobs.wait(job_id, "IN_PROGRESS")
    wait_until(lambda: "begun" in _read_so_far(jobs, job_id))
    assert jobs.get(job_id)["downloaded"] is False
    jobs.lab.ask(f"/scheduler/jobs/{job_id}", "PATCH", {"status": "STOPPED"})
    jobs.wait(job_id)


def test_pages_of_jobs_follow_each_other(jobs):
    ids = [jobs.create("quick.ipynb", f"page {n}") for n in range(5)]
    found, token = [], None
    while token or not found:
        more = {"next_token": token} if token else {}
        page = jobs.list(name="page ", max_items=2, sort_by="asc(name)", **more)
        assert page["total_count"] == 5
        found += [one["job_id"] for one in page["jobs"]]
        token = page.get("next_token")
    assert found == ids
    n = jobs.lab.ask("/scheduler/jobs/count?status=COMPLETED")["count"]
    assert n == len(jobs.list(status="COMPLETED")["jobs"]) > 0
    for one in ids:
        jobs.wait(one)


# Schedules


def test_a_definition_fires_is_paused_changed_run_by_hand_and_removed(jobs):
    job_id = jobs.define("quick.ipynb", "often", every="1s", parameters={"lr": "0.25"})
    place = f"/scheduler/job_definitions/{job_id}"

    def fired():
        return jobs.list(job_definition_id=job_id)["jobs"]

    wait_until(fired)
    jobs.lab.ask(place, "PATCH", {"active": False})
    assert jobs.lab.ask(place)["active"] is False
    done = jobs.wait(fired()[-1]["job_id"])
    assert (done["status"], done["parameters"]) == ("COMPLETED", {"lr": "0.25"})
    code, answer = jobs.lab.refuse(place, "PATCH", {"schedule": "0 2 * * *"})
    assert (code, "one trigger, got" in answer["message"]) == (500, True)
    changed = {"schedule": "0 2 * * *", "timezone": "Europe/Berlin", "runtime_environment_parameters": {}}
    jobs.lab.ask(place, "PATCH", changed)
    assert jobs.lab.ask(place)["schedule"] == "0 2 * * *"
    by_hand = jobs.lab.ask(f"{place}/jobs", "POST", {"parameters": {"lr": "0.75"}})["job_id"]
    assert jobs.wait(by_hand)["parameters"] == {"lr": "0.75"}
    jobs.lab.ask(place, "DELETE")
    assert job_id not in [one["job_definition_id"] for one in jobs.list("job_definitions")["job_definitions"]]
    assert by_hand in [one["job_id"] for one in jobs.list()["jobs"]]


def test_a_definition_runs_the_bytes_of_its_making_until_the_file_is_dropped_on_it(jobs):
    jobs.lab.write_notebook("typed.ipynb", "print('before')")
    job_id = jobs.define("typed.ipynb", "typed")
    place = f"/scheduler/job_definitions/{job_id}"
    jobs.lab.write_notebook("typed.ipynb", "print('after')")
    first = jobs.lab.ask(f"{place}/jobs", "POST", {})["job_id"]
    shown = jobs.lab.ask(place)["input_filename"]
    jobs.lab.ask(place, "PATCH", {"schedule": "0 2 * * *", "input_uri": shown})  # as the form's edit page
    second = jobs.lab.ask(f"{place}/jobs", "POST", {})["job_id"]
    jobs.lab.ask(place, "PATCH", {"schedule": "0 2 * * *", "input_uri": "typed.ipynb"})
    third = jobs.lab.ask(f"{place}/jobs", "POST", {})["job_id"]
    told = [jobs.wait(one)["status"] and jobs.read(one).strip() for one in (first, second, third)]
    assert told == ["before", "before", "after"]


def test_a_schedule_that_means_nothing_is_refused_and_stops_no_other(jobs):
    wrong = jobs.refuse("quick.ipynb", "job_definitions", name="never", schedule="0 25 * * *")
    assert "cron" in wrong
    fields = {"schedule": "@daily", "timezone": "Europe/Belrin"}
    assert "Europe/Berlin" in jobs.refuse("quick.ipynb", "job_definitions", **fields)
    with closing(sqlite3.connect(jobs.book.path)) as db:  # as if an older version had let it in
        job_id = jobs.define("quick.ipynb", "damaged", schedule="0 2 * * *")
        with db:
            db.execute("UPDATE jobs SET spec = replace(spec, '0 2 * * *', '0 25 * * *'), version ="
                       " (SELECT version FROM counter) + 1 WHERE job_id = ?", (job_id,))  # fmt: skip
            db.execute("UPDATE counter SET version = version + 1")
    assert jobs.wait(jobs.create("quick.ipynb"))["status"] == "COMPLETED"
    other = jobs.define("quick.ipynb", "healthy", every="1s")
    wait_until(lambda: jobs.list(job_definition_id=other)["jobs"])
    for one in (other, job_id):
        jobs.lab.ask(f"/scheduler/job_definitions/{one}", "DELETE")


# Servers come and go


def test_a_server_that_is_told_to_end_does_not_wait_for_a_job_and_the_next_one_sees_it_end(own):
    jobs = Jobs(own)
    job_id = jobs.create("held.ipynb")
    jobs.wait(job_id, "IN_PROGRESS")
    wait_until(lambda: "begun" in _read_so_far(jobs, job_id))
    assert own.stop(), "the server waited for the job"
    assert jobs.book.get_firing(job_id).state == "running"
    own.start()
    (own.root / "go").touch()
    assert jobs.wait(job_id)["status"] == "COMPLETED"
    assert "done" in jobs.read(job_id)


def test_a_killed_server_loses_no_job_and_no_due_time(own):
    jobs = Jobs(own)
    job_id, often = jobs.create("long3.ipynb"), jobs.define("quick.ipynb", "often", every="1s")
    jobs.wait(job_id, "IN_PROGRESS")
    own.kill()
    before = len(jobs.book.list_firings(often))
    wait_until(lambda: len(jobs.book.list_firings(often)) >= before + 3)  # while no server is there
    own.start()
    assert jobs.get(job_id)["status"] in ("IN_PROGRESS", "COMPLETED")
    assert jobs.wait(job_id)["status"] == "COMPLETED"
    own.ask(f"/scheduler/job_definitions/{often}", "DELETE")


def test_two_servers_on_one_folder_fire_each_due_time_once(own):
    variables = {"SCALEKIT_STORE": str(own.store), MARK: own.mark}
    with short_folder() as folder, Lab(folder, command=SERVER, **variables) as second:
        first, other = Jobs(own), Jobs(second)
        job_id = first.define("quick.ipynb", "for both", every="1s")
        wait_until(lambda: len(other.list(job_definition_id=job_id)["jobs"]) >= 4)
        ids = [
            {one["job_id"] for one in face.list(job_definition_id=job_id)["jobs"]} for face in (first, other)
        ]
        due = [firing.due for firing in first.book.list_firings(job_id)]
        serving = [process for process in find_marked(own.mark) if "serve" in process.cmdline()]
        own.ask(f"/scheduler/job_definitions/{job_id}", "DELETE")
    assert ids[0] <= ids[1]
    assert len(due) == len(set(due))
    assert len(serving) == 1


def test_after_a_power_cut_nothing_runs_for_ever(own):
    jobs = Jobs(own)
    job_id = jobs.create("long600.ipynb")
    jobs.wait(job_id, "IN_PROGRESS")
    wait_until(lambda: "begun" in _read_so_far(jobs, job_id))
    own.kill()
    for process in find_marked(own.mark):
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: find_leader(own.store) is None)
    own.start()
    job = jobs.wait(job_id)
    assert (job["status"], "lost" in job["status_message"]) == ("FAILED", True)
    assert "begun" in jobs.read(job_id)
