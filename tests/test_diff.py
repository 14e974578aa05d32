"""Two runs side by side: what was changed is found, and what they printed can do no harm."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from notebooks import make_notebook, write_notebook

import scalekit as sk
from scalekit.cli import main
from scalekit.difference import ABSENT, compare_runs
from scalekit.difference_page import draw_difference
from scalekit.store import Store, UnknownRun

HOSTILE = (
    "\"><script>alert(1)</script><img src=x onerror=alert(2)></style></iframe>'`\x1b[2J\x00\ud800\u202e&"
)
PIXEL = base64.b64encode(b"\x89PNG one").decode()
OTHER = base64.b64encode(b"\x89PNG two").decode()


def stream(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


def image(data, mime="image/png"):
    return {"output_type": "display_data", "data": {"text/plain": "<Figure>", mime: data}, "metadata": {}}


@pytest.fixture
def make_run(tmp_path):
    "Function that makes a bundle as a run of these cells would leave it"
    store = Store(tmp_path / "runs")

    def make(*cells, parameters=None, metrics=None, packages=None, **asked):
        bundle = store.create_run({"notebook": "a.ipynb", "parameters": parameters or {}, **asked})
        notebook = make_notebook(*(source for source, *_ in cells))
        for number, (cell, (_, *outputs)) in enumerate(zip(notebook["cells"], cells, strict=True)):
            cell["outputs"] = outputs
            cell["metadata"]["scalekit"] = {"status": "completed", "seconds": number + 0.5}
        bundle.notebook.write_text(json.dumps(notebook))
        if packages is not None:
            lines = "\n".join(["# Python 3.11.2 on Linux x86_64", *packages])
            (bundle.path / "environment.txt").write_text(lines, errors="replace")
        bundle.set_state("running")
        bundle.append("record", values=metrics or {}, files={})
        bundle.set_state("succeeded")
        return bundle

    return make


def changed(pairs):
    return {pair.name: (pair.a, pair.b) for pair in pairs if not pair.same}


def test_values_and_packages_are_told_where_they_differ(make_run):
    a = make_run(
        parameters={"lr": 0.1, "seed": 0},
        metrics={"loss": 0.5, "best": float("nan")},
        packages=["numpy==2.1"],
    )
    b = make_run(parameters={"lr": 0.2, "seed": 0}, metrics={"loss": 0.4, "best": float("nan"), "acc": 1},
                 packages=["numpy==2.2", "new==1"])  # fmt: skip
    found = compare_runs(a, b)
    assert changed(found.parameters) == {"lr": (0.1, 0.2)}
    assert changed(found.metrics) == {"loss": (0.5, 0.4), "acc": (ABSENT, 1)}
    assert changed(found.packages) == {"numpy": ("2.1", "2.2"), "new": (ABSENT, "1")}
    assert [pair.change for pair in found.metrics if pair.name == "loss"] == ["-0.1 (-20.0%)"]


def test_a_parameter_that_was_not_given_had_the_notebook_s_default(make_run):
    a = make_run((("lr: float = 0.1\nseed: int = 0", "parameters"),))
    b = make_run((("lr: float = 0.3\nseed: int = 0", "parameters"),), parameters={"seed": 1})
    assert changed(compare_runs(a, b).parameters) == {"lr": (0.1, 0.3), "seed": (0, 1)}


def test_the_cell_that_holds_the_parameters_is_no_code(make_run):
    a = make_run(("x = 1",))
    b = make_run(("x = 1",))
    notebook = json.loads(b.notebook.read_text())
    notebook["cells"].insert(0, make_notebook(("lr = 2", "injected-parameters"))["cells"][0])
    b.notebook.write_text(json.dumps(notebook))
    assert [cell.numbers for cell in compare_runs(a, b).cells] == [(1, 1)]


def test_a_cell_is_known_by_its_id_or_else_by_its_source(make_run):
    a, b = (
        make_run(("a = 1",), ("b = 2",), ("c = 3",)),
        make_run(("a = 1",), ("b = 22",), ("new()",), ("c = 3",)),
    )
    notebook = json.loads(b.notebook.read_text())
    for cell, id in zip(notebook["cells"], ("other", "cell-1", "more", "cell-2"), strict=True):
        cell["id"] = id
    b.notebook.write_text(json.dumps(notebook))
    cells = compare_runs(a, b).cells
    assert [cell.numbers for cell in cells] == [(1, 1), (2, 2), (None, 3), (3, 4)]
    assert [cell.source_lines()[1:] for cell in cells if cell.source_differs] == [
        ["-b = 2", "+b = 22"],
        ["+new()"],
    ]


def test_cells_of_a_notebook_that_was_written_anew_are_not_taken_for_edits(make_run):
    a, b = make_run(("import torch\ntrain(10)",)), make_run(("df",), ("plot(df)",))
    b.notebook.write_text(b.notebook.read_text().replace("cell-", "other-"))
    assert [cell.numbers for cell in compare_runs(a, b).cells] == [(1, None), (None, 1), (None, 2)]


def test_outputs_are_compared_as_a_reader_sees_them(make_run):
    same = [
        stream("\x1b[31mred\x1b[0m <object at 0x7f3df9ab8310>\n"),
        stream(" 10%\r100%\n"),
        image(f"{PIXEL}\n"),
    ]
    again = [stream("red <object at 0x7f3df9abffff>\n100%"), image([PIXEL[:4], PIXEL[4:]])]
    (cell,) = compare_runs(make_run(("x", *same)), make_run(("x", *again))).cells
    assert not cell.outputs_differ
    (cell,) = compare_runs(make_run(("x", *same)), make_run(("x", stream("red"), image(OTHER)))).cells
    assert cell.outputs_differ and cell.outputs[1].images == (("image/png", OTHER),)


class Reader(HTMLParser):
    "What a browser would find"

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_data(self, text):
        self.texts.append(text)


def test_the_page_is_whole_and_shows_both_sides(make_run):
    a = make_run(
        ("x = 1\n", stream("loss 0.5\nend"), image(PIXEL)), parameters={"lr": 0.1}, metrics={"loss": 0.5}
    )
    b = make_run(
        ("x = 2\n", stream("loss 0.4\nend"), image(OTHER)), parameters={"lr": 0.2}, metrics={"loss": 0.4}
    )
    page = Reader(draw_difference(compare_runs(a, b)))
    sources = [about["src"] for name, about in page.elements if name == "img"]
    assert sources == [f"data:image/png;base64,{data}" for data in (PIXEL, OTHER)]
    classes = [about.get("class") for name, about in page.elements if name == "td"]
    assert classes.count("removed") == classes.count("added") == 1
    assert {"-x = 1\n", "+x = 2\n", "loss 0.5", "loss 0.4", "-0.1 (-20.0%)"} <= set(page.texts)
    outside = [
        about
        for _, about in page.elements
        for key in ("src", "href")
        if not about.get(key, "data:").startswith("data:")
    ]
    assert outside == []


def test_equal_runs_say_so(make_run):
    runs = [make_run(("x = 1", stream("done"), image(PIXEL)), metrics={"loss": 0.5}) for _ in range(2)]
    found = sk.diff(*(run.run_id for run in runs), store=runs[0].path.parent)
    assert repr(found).endswith(": nothing changed)")
    texts = Reader(draw_difference(found.difference)).texts
    assert {"The code is the same.", "The outputs are the same.", "The packages are the same."} <= set(texts)


def test_nothing_that_a_run_has_said_becomes_markup(make_run):
    outputs = [
        stream(HOSTILE), image(f"{HOSTILE}{PIXEL}"), image(PIXEL, f"image/png{HOSTILE}"),
        image(HOSTILE, "image/svg+xml"),
        {"output_type": "error", "ename": HOSTILE, "evalue": HOSTILE, "traceback": [HOSTILE]},
    ]  # fmt: skip
    cell = (HOSTILE, *outputs)
    bad = make_run(
        cell, parameters={HOSTILE: HOSTILE}, metrics={HOSTILE: HOSTILE}, packages=[f"{HOSTILE}=={HOSTILE}"]
    )
    found = sk.diff(make_run(("x",)).run_id, bad.run_id, store=bad.path.parent)
    text = draw_difference(found.difference)
    page = Reader(text)
    assert not {"script", "iframe"} & {name for name, _ in page.elements}
    assert not [about for _, about in page.elements if any(key.startswith("on") for key in about)]
    assert all(about["src"].startswith("data:image/") for name, about in page.elements if name == "img")
    assert not re.search("[\x00\x1b\ud800\u202e]", text)
    frame = Reader(found._repr_html_())
    assert [name for name, _ in frame.elements] == ["iframe"]
    assert (frame.elements[0][1]["srcdoc"], frame.elements[0][1]["sandbox"]) == (text, "")


def test_long_outputs_make_no_endless_page(make_run):
    runs = [make_run(("x", stream("".join(f"{side} {i}\n" for i in range(20_000))))) for side in "ab"]
    assert len(draw_difference(compare_runs(*runs))) < 200_000


def test_a_terminal_shows_the_same_and_obeys_nothing(make_run, capsys, monkeypatch):
    a = make_run(("x = 1\n", stream("loss 0.5")), parameters={"lr": 0.1}, metrics={"loss": 0.5})
    b = make_run(
        (f"x = 2{HOSTILE}\n", stream("loss 0.4\n" * 30), image(PIXEL)),
        parameters={"lr": 0.2},
        metrics={"loss": 0.4},
    )
    store = str(a.path.parent)
    assert main(["diff", a.run_id, b.run_id, "--store", store]) == 0
    said = capsys.readouterr().out
    for line in (
        "-x = 1",
        "+x = 2",
        "-0.1 (-20.0%)",
        "loss 0.5  loss 0.4",
        "lines more: see --html",
        "images differ (0 and 1)",
    ):
        assert line in said
    assert not re.search("[\x00\x1b\u202e]", said)


def test_the_command_gives_a_page_or_json(make_run, capsys, tmp_path):
    a, b = make_run(("x = 1",), metrics={"loss": float("nan")}), make_run(("x = 2",), metrics={"loss": 0.5})
    where = ["--store", str(a.path.parent)]
    assert main(["diff", a.run_id, b.run_id, *where, "--html", str(tmp_path / "d.html")]) == 0
    assert "x = 2" in (tmp_path / "d.html").read_text()
    capsys.readouterr()
    assert main(["diff", a.run_id, b.run_id, *where, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["metrics"]["loss"]["b"] == 0.5 and told["cells"][0]["source_differs"]
    assert main(["diff", a.run_id, "nothing", *where]) == 2
    assert "nothing" in capsys.readouterr().err
    with pytest.raises(UnknownRun):
        sk.diff("nothing", a.run_id, store=a.path.parent)


def test_a_run_whose_notebook_is_gone_is_one_sentence(make_run, capsys):
    a = make_run(("x",))
    a.notebook.unlink()
    assert main(["diff", a.run_id, a.run_id, "--store", str(a.path.parent)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_real_runs_can_be_compared(place):
    write_notebook(
        Path("a.ipynb"),
        ("lr: float = 0.1", "parameters"),
        "import scalekit as sk\nsk.record(loss=lr)\nprint(lr)",
    )
    a, b = sk.run("a.ipynb"), sk.run("a.ipynb", lr=0.5)
    found = sk.diff(a, b)
    assert repr(found) == f"Diff({a.run_id}, {b.run_id}: 1 parameter, 1 metric changed)"
    assert [
        (cell.outputs[0].text, cell.outputs[1].text) for cell in found.difference.cells if cell.outputs_differ
    ] == [("0.1", "0.5")]
    assert found.to_dict()["facts"]["state"] == {"a": "succeeded", "b": "succeeded"}
