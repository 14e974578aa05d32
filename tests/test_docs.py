"""Pages show what a reader needs, and every link on them leads somewhere."""

import json
import os
import subprocess
import sys

import docs
import pytest


def _markdown(text):
    return {"cell_type": "markdown", "source": text}


def _code(source, *outputs):
    return {"cell_type": "code", "id": "a1", "source": source, "outputs": outputs}


function = """#| export
@cache
def f(
    x: int,  # Size [bytes]
) -> int:  # Twice
    "Double"
    return 2 * x
"""

class_ = """#| export
class Run:
    "One run"
    path: Path  # Its folder

    def wait(self):
        "Until it ended"
        _secret()

    def _poll(self):
        pass
"""


@pytest.fixture
def page(tmp_path):
    "Write a notebook of `cells`, return its page"

    def make(*cells, **how):
        notebook = tmp_path / "room.ipynb"
        notebook.write_text(json.dumps({"cells": cells}))
        return docs.make_page(notebook, **how)

    return make


def test_an_exported_cell_shows_how_to_call_it_and_not_how_it_works(page):
    text = page(_code(function)).text
    assert text.startswith("### f { #f }")
    assert "@cache" in text and "# Size [bytes]" in text and '"Double"' in text
    assert "return 2" not in text


def test_a_class_shows_its_fields_and_public_methods(page):
    text = page(_code(class_)).text
    assert all(shown in text for shown in ("path: Path  # Its folder", "def wait(self):", "Until it ended"))
    assert "_secret" not in text and "_poll" not in text


@pytest.mark.parametrize("source", ["#| hide\nx = 1", "#| default_exp room", "#| exporti\ndef f(): pass"])
def test_what_is_for_the_module_alone_stays_out(page, source):
    assert page(_code(source)).text.strip() == ""


def test_echo_false_leaves_the_output(page):
    out = {"output_type": "stream", "text": ["\x1b[31m10 %\r", "100 %\x1b[0m\n"]}
    assert page(_code("#| echo: false\nx", out)).text == "```\n100 %\n```\n"


def test_a_picture_is_a_file_beside_the_page(page):
    out = {"output_type": "display_data", "data": {"image/png": "aGk=", "text/plain": "<Figure>"}}
    shown = page(_code("plot()", out))
    assert "![](room_files/a1-0.png)" in shown.text
    assert shown.pictures == {"room_files/a1-0.png": b"hi"}


def test_a_table_is_html_on_the_site_and_text_in_the_readme(page):
    out = {"output_type": "execute_result", "data": {"text/html": "<table>", "text/plain": "a  b"}}
    cell = _code("df", out)
    assert "<table>" in page(cell).text
    assert "a  b" in page(cell, html=False).text


def test_links_follow_their_notebooks():
    text = "[c](../11a_cluster.ipynb#x), [web](https://a.b/1_c.ipynb)\n```\n[c](11_c.ipynb)\n```"
    changed = "[c](../11a_cluster.md#x), [web](https://a.b/1_c.ipynb)\n```\n[c](11_c.ipynb)\n```"
    assert docs.relink(text, docs.page_name) == changed


def test_a_name_in_prose_leads_to_its_reference():
    text = "# `run`\nCall `run()` or `walk`; [see `run`](x.md)\n```\n`run`\n```"
    linked = "# `run`\nCall [`run()`](run.md#run) or `walk`; [see `run`](x.md)\n```\n`run`\n```"
    assert docs.link_names(text, {"run": "run.md#run"}) == linked


def test_the_site_builds_without_a_warning(root, tmp_path):
    # Not --quiet: MkDocs then doesn't count its warnings.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "copy_template" in (tmp_path / "12_template" / "index.html").read_text()
