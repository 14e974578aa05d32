"""The server's half of JupyterLab's part: a real Jupyter server, asked over HTTP as the browser asks."""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from lab import Lab
from processes import wait_until

from scalekit import __version__
from scalekit.jobs.ledger import Ledger
from scalekit.jobs.spec import JobSpec
from scalekit.lab.extension import find_labextensions
from scalekit.store import Store

API = "/scalekit/api/"

PARAMETERS = """from typing import Annotated, Literal
from pydantic import Field
lr: Annotated[float, Field(gt=0, le=1)] = 0.01  # step of the optimizer
epochs: int = 3
optimizer: Literal["adam", "sgd"] = "adam"
"""

AUTHORIZER = """
from jupyter_server.auth import Authorizer
class OneReader(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        is_reader = handler.get_query_argument("as", "") == "reader"
        return not (is_reader and resource == "scalekit" and action == "write")
c.ServerApp.authorizer_class = OneReader
"""


@pytest.fixture(scope="module")
def lab():
    "A Jupyter server without JupyterLab, which starts in half the time"
    command = (sys.executable, "-m", "jupyter", "server")
    extension = '--ServerApp.jpserver_extensions={"scalekit.lab.extension": True}'
    with TemporaryDirectory(prefix="sk-") as folder:
        server = Lab(Path(folder), extension, command=command)
        (server.folder / "config" / "jupyter_server_config.py").write_text(AUTHORIZER)
        with server as lab:
            yield lab


@pytest.fixture(scope="module")
def book(lab):
    return Ledger(lab.store)


@pytest.fixture
def running(lab, book):
    "A firing whose run is in its second cell"
    spec = JobSpec(name="train", notebook=str(lab.root / "train.ipynb"), parameters={"lr": 0.5})
    firing = book.submit(spec, source="lab")
    store = Store(lab.store, lab.root)
    bundle = store.create_run({"notebook": "train.ipynb", "notebook_sha256": "ab", "parameters": {"lr": 0.5}})
    book.begin_attempt(firing, bundle.run_id)
    (lab.root / lab.write_notebook("train.ipynb", "print(1)", "print(2)")).replace(bundle.notebook)
    bundle.set_state("running")
    bundle.append("cell", index=0, status="completed", seconds=1.0)
    bundle.append("cell", index=1, status="running")
    bundle.append("log", values={"loss": 0.5})
    return firing, bundle


def pick(told, firing):
    return next((one for one in told["firings"] if one["id"] == firing), None)


def test_who_has_no_token_learns_nothing(lab):
    for path in ("templates", "form?path=train.ipynb", "profiles", "live", "firings/1", "firings/1/report"):
        assert lab.refuse(API + path, token="wrong")[0] == 403
    for path in ("templates", "form", "firings/1/stop"):
        assert lab.refuse(API + path, "POST", {}, token="wrong")[0] == 403


def test_a_template_becomes_a_notebook_under_a_free_name(lab):
    assert "train" in [template["name"] for template in lab.ask(API + "templates")]
    (lab.root / "deep").mkdir()
    asked = {"template": "train", "folder": "deep"}
    paths = [lab.ask(API + "templates", "POST", asked)["path"] for _ in range(2)]
    assert paths == ["deep/train.ipynb", "deep/train-1.ipynb"]
    assert json.loads((lab.root / paths[1]).read_text())["nbformat"] == 4


@pytest.mark.parametrize(
    ("template", "folder", "status", "says"),
    [
        ("trian", "", 400, "Did you mean 'train'?"),
        ("train", "nowhere", 404, "there is no folder 'nowhere'"),
        ("train", "../home", 404, "home"),
        ("../../etc/passwd", "", 400, "no template"),
        (7, "", 400, "template must be a text, got 7"),
    ],
)
def test_a_template_that_can_t_be_made_says_why(lab, template, folder, status, says):
    refused = lab.refuse(API + "templates", "POST", {"template": template, "folder": folder})
    assert refused[0] == status and says in refused[1]["message"]


def test_the_form_knows_types_bounds_and_choices(lab):
    path = lab.write_notebook("typed.ipynb", parameters=PARAMETERS)
    form = lab.ask(f"{API}form?path={path}")
    kinds = {field["name"]: (field["kind"], field["start"], field["hint"]) for field in form["fields"]}
    assert kinds["lr"] == ("number", "0.01", "float, 0 < lr <= 1")
    assert kinds["optimizer"][0] == "choice"
    assert form["fields"][0]["help"] == "step of the optimizer"


def test_what_was_typed_is_judged_before_anything_is_made(lab):
    path = lab.write_notebook("typed.ipynb", parameters=PARAMETERS)
    texts, options = {"lr": "7", "epochs": "5"}, {"timeout": "soon", "gpus": "2"}
    told = lab.ask(API + "form", "POST", {"path": path, "texts": texts, "options": options})
    assert told["values"] == {"epochs": "5"}
    assert told["mistakes"] == {"lr": "lr must be <= 1, got 7. Allowed: 0 < lr <= 1; for example 0.01"}
    assert list(told["wrong_options"]) == ["timeout"] and "a duration" in told["wrong_options"]["timeout"]


@pytest.mark.parametrize(
    "said",
    [
        {"path": 7, "texts": {}, "options": {}}, {"path": "typed.ipynb", "texts": {"lr": 7}, "options": {}},
        {"path": "typed.ipynb", "texts": {}}, [], "form", 0,
    ],
)  # fmt: skip
def test_a_request_that_means_nothing_is_refused_in_a_sentence(lab, said):
    lab.write_notebook("typed.ipynb", parameters=PARAMETERS)
    status, told = lab.refuse(API + "form", "POST", said)
    assert status == 400 and "Traceback" not in str(told) and "\n" not in told["message"]


@pytest.mark.parametrize(
    "path", ["../home/secret.ipynb", "/etc/passwd", "%2e%2e/home/secret.ipynb", "gone.ipynb"]
)
def test_a_path_leads_nowhere_else(lab, path):
    (lab.folder / "home" / "secret.ipynb").write_text('{"cells": [], "metadata": {}}')
    status, told = lab.refuse(f"{API}form?path={path}")
    assert status in (400, 404) and "Traceback" not in str(told)


def test_a_broken_notebook_is_one_sentence(lab):
    (lab.root / "broken.ipynb").write_text("{")
    status, told = lab.refuse(f"{API}form?path=broken.ipynb")
    assert status == 400 and told["message"].count("\n") == 0


def test_a_look_tells_only_what_changed_since_the_last_one(lab, running):
    firing, bundle = running
    first = lab.ask(API + "live")
    shown = pick(first, firing)
    assert first["all"] and shown["state"] == "running" and not first["daemon"]
    assert (shown["progress"]["cell"], shown["progress"]["n_cells"]) == (2, 2)
    assert shown["progress"]["metrics"] == {"loss": "0.5"}
    bundle.append("log", values={"loss": 0.25})
    news = wait_for_news(lab, first["cursor"])
    assert [one["id"] for one in news["firings"]] == [firing]
    assert news["firings"][0]["progress"]["metrics"] == {"loss": "0.25"}
    assert lab.ask(f"{API}live?cursor={news['cursor']}")["firings"] == []


def wait_for_news(lab, cursor):
    news = {}
    wait_until(lambda: news.update(lab.ask(f"{API}live?cursor={cursor}")) or news["firings"])
    return news


def test_a_cursor_of_an_earlier_server_is_told_everything(lab, running):
    assert pick(lab.ask(API + "live?cursor=0badc0de.7"), running[0])


def test_the_executed_notebook_is_readable_while_it_runs(lab, running):
    firing, bundle = running
    written = json.loads(bundle.notebook.read_text())
    lines = {"output_type": "stream", "name": "stdout", "text": ["1\n", "2\n"]}
    written["cells"][0]["outputs"] = [lines]
    bundle.notebook.write_text(json.dumps(written))
    notebook = lab.ask(f"{API}firings/{firing}/notebook")
    assert notebook["cells"][0]["outputs"][0]["text"] == "1\n2\n"  # one text, as JupyterLab is used to
    assert [cell["source"] for cell in notebook["cells"]] == ["print(1)", "print(2)"]
    page = lab.ask(f"{API}firings/{firing}/report").decode()
    assert bundle.run_id in page
    assert lab.ask(f"{API}firings/{firing}")["parameters"] == {"lr": "0.5"}


def test_a_report_has_no_origin(lab, running):
    import urllib.request

    address = f"{lab.url}{API}firings/{running[0]}/report?token={lab.token}"
    with urllib.request.urlopen(address) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert "sandbox allow-scripts" in policy and "allow-same-origin" not in policy


def test_a_firing_is_stopped_and_the_book_knows_by_whom(lab, book, running):
    firing, _ = running
    assert lab.ask(f"{API}firings/{firing}/stop", "POST", {}) == {}
    found = book.get_firing(firing)
    assert found.state == "stopping" and "in JupyterLab" in found.stop


def test_what_has_not_run_has_no_output(lab, book):
    firing = book.submit(JobSpec(name="later", notebook="/kit/later.ipynb"))
    status, told = lab.refuse(f"{API}firings/{firing}/notebook")
    assert (status, told["message"]) == (
        404,
        "job 'later' has no executed notebook: waiting, and nothing has run",
    )
    status, told = lab.refuse(f"{API}firings/20990101-000000-000-abcdef")
    assert status == 404 and "has no firing" in told["message"]


def test_a_wrong_scalekit_toml_is_said_and_not_fatal(lab):
    file = lab.root / "scalekit.toml"
    file.write_text('stroe = "runs"')
    try:
        status, told = lab.refuse(API + "profiles")
    finally:
        file.unlink()
    assert status == 400 and "Did you mean 'store'?" in told["message"]
    assert [one["name"] for one in lab.ask(API + "profiles")][:3] == ["auto", "cpu", "gpu"]


def test_who_may_only_read_can_t_stop_anything(lab, running):
    "Jupyter's authorizer is asked for the resource `scalekit`; the one of this server knows a reader"
    assert lab.ask(API + "live?as=reader")["firings"]
    assert lab.refuse(f"{API}firings/{running[0]}/stop?as=reader", "POST", {})[0] == 403
    assert lab.refuse(API + "templates?as=reader", "POST", {"template": "train", "folder": ""})[0] == 403


def test_the_browser_s_half_is_of_this_release():
    told = json.loads((find_labextensions() / "scalekit-lab" / "package.json").read_text())
    assert told["version"] == __version__
