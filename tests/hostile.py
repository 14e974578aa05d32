"""Notebooks that want to do something in the page that shows them, and a check that nothing in a page can.

Each case is a notebook that a stranger may have sent. `HIT` in it stands for the address of a server that counts, `RUN` for a script that
calls there and changes the title of the page. Shown raw, each of them does (see `test_report_browser.py`); in a
report none may.
"""

# ruff: noqa: E501  (what a browser shall read stays on one line)

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from scalekit.bundle import Bundle
from scalekit.events import dump_json
from scalekit.store import Store

RUN = "document.title='RAN';new Image().src='HIT'"
RUN64 = base64.b64encode(b"<script>document.title='RAN'</script>").decode()


@dataclass
class Case:
    "A notebook's cells, and where else hostile text may stand"

    name: str
    html: str = ""  # What a browser would fall for if it were shown raw
    cells: list[dict[str, Any]] = field(default_factory=list)  # Default: `html` as an output and as Markdown
    asked: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)  # Below the run's folder
    is_live: bool = True  # Whether the raw `html` acts by itself, or when it is touched


def code(source="x", *outputs, **metadata):
    return {
        "cell_type": "code",
        "source": source,
        "outputs": list(outputs),
        "metadata": metadata,
        "execution_count": 1,
    }


def say(text, **more):
    return {"cell_type": "markdown", "source": text, "metadata": {}, **more}


def show(mime, content, plain="plain"):
    return {"output_type": "display_data", "data": {mime: content, "text/plain": plain}, "metadata": {}}


def stream(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


EVERYWHERE = (
    f'"><script>{RUN}</script><img src=x onerror="{RUN}"></title></style></script>\x00\x1b[31m\u202e&'
)
SVG = (
    f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" onload="{RUN}" width="9" height="9">'
    f"<script>{RUN}</script><image href='HIT' xlink:href='HIT' width='9' height='9'/><use href='HIT#a'/>"
    f"<foreignObject><iframe xmlns='http://www.w3.org/1999/xhtml' src='HIT'></iframe></foreignObject>"
    f"<style>@import url(HIT);</style><a href='javascript:{RUN}'><rect width='9' height='9'/></a>"
    f'<animate attributeName="x" onbegin="{RUN}" dur="1s"/></svg>'
)

CASES = [
    Case("script tags", f"<script>{RUN}</script><SCRIPT SRC=HIT></SCRIPT><script type=module>{RUN}</script>"),
    Case("broken tags", f"<scr<script>ipt>{RUN}</scr</script>ipt><img src=x onerror={RUN}><<script>{RUN}//<</script>"),
    Case("an image that fails", f'<img src=x onerror="{RUN}"><img src="HIT"><img srcset="HIT 1x"><input type=image src=HIT>'),
    Case("events of elements", f'<details open ontoggle="{RUN}"><summary>a</summary></details><p onmouseover="{RUN}" onclick="{RUN}">b'
         f'<video src=x onerror="{RUN}"></video><audio src=HIT></audio><marquee onstart="{RUN}">c</marquee><body onload="{RUN}">'),
    Case("events of focus", f'<input autofocus onfocus="{RUN}"><select autofocus onfocus="{RUN}"></select><a href=# onfocus="{RUN}" tabindex=1>a</a>'),
    Case("a drawing in HTML", SVG + f"<svg/onload={RUN}><svg><p><style><img title='</style><img src=x onerror=\"{RUN}\">'></svg>"),
    Case("a drawing as an image", SVG, [code("draw()", show("image/svg+xml", SVG)), say(f"![a](data:image/svg+xml,{SVG})")]),
    Case("javascript in links", f'<a href="javascript:{RUN}">a</a><a href=" java&#9;script:{RUN}">b</a><a href="&#x1;JaVaScRiPt:{RUN}">c</a>'
         f'<a href="vbscript:x">d</a><a href="data:text/html;base64,{RUN64}">e</a><area href="javascript:{RUN}">',
         [say(f"[a](javascript:{RUN}) [b](<java\tscript:{RUN}>) <javascript:{RUN}> [c](data:text/html;base64,{RUN64})"),
          code("a", show("text/html", f'<a href="javascript:{RUN}">a</a><a href="\x01java\nscript:{RUN}">b</a><p>seen'))]),
    Case("styles", '<style>@import url(HIT);body{background:url(HIT)}</style><link rel=stylesheet href=HIT>'
         '<link rel=prefetch href=HIT><link rel=dns-prefetch href=//evil.example><div class=zoom style="position:fixed;inset:0;'
         'background:url(HIT);z-index:9999">over</div><table background=HIT><tr><td style="width:expression(x)">a</table>'),
    Case("frames", f'<iframe src=HIT></iframe><iframe srcdoc="<script>parent.{RUN}</script>"></iframe><object data=HIT></object>'
         f'<embed src=HIT><frameset><frame src=HIT></frameset><iframe src="javascript:parent.{RUN}"></iframe><portal src=HIT></portal>'),
    Case("going elsewhere", '<meta http-equiv=refresh content="0;url=HIT"><meta http-equiv="Content-Security-Policy" content="">'),
    Case("forms", f'<form action=HIT><input name=a><button formaction="javascript:{RUN}">b</button></form>'
         f'<form action="javascript:{RUN}"><input type=submit></form><isindex action=HIT><keygen onfocus="{RUN}" autofocus>'),
    Case("another base", '<base href="HIT/"><img src="picture.png"><a href="page">a</a><link rel=icon href=icon.ico>'),
    Case("parsers that disagree", f'<noscript><p title="</noscript><img src=x onerror={RUN}>"></noscript>'
         f'<template><img src=x onerror="{RUN}"></template><math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror={RUN}&gt;">'
         f'<svg></p><style><a id="</style><img src=1 onerror={RUN}>"></svg><form><math><mtext></form><form><mglyph><style></math><img src onerror={RUN}>'
         f'<xmp><p title="</xmp><img src=x onerror={RUN}>"><textarea></textarea><img src=x onerror={RUN}><plaintext>'),
    Case("comments", f'<!--><img src=x onerror="{RUN}">--><!--[if true]><script>{RUN}</script><![endif]--><![CDATA[<img src=x onerror="{RUN}">]]>'
         f"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY y SYSTEM 'HIT'>]>"),
    Case("names of the page's own", f'<a id=Chart name=document></a><img name=querySelectorAll src="HIT"><form id=body></form><figure class=zoom '
         f'data-frame="1 2 3 4" data-view="0 1 0 1" data-units="x y"><b onclick="{RUN}">c</b><svg class=axes></svg></figure><p id=c1 class=tools>d'),
    Case("what is printed", EVERYWHERE, [code("print()", stream(f"</pre>{EVERYWHERE}\n\x1b]8;;javascript:{RUN}\x07a\x1b]8;;\x07 10%\r20%\n\x1b[31;1m{EVERYWHERE}\x1b[0m"),
         {"output_type": "error", "ename": EVERYWHERE, "evalue": EVERYWHERE, "traceback": [f"\x1b[0;31m{EVERYWHERE}\x1b[0m", 3]}, scalekit={"status": "failed"})]),
    Case("code and marks", EVERYWHERE, [code(f"'''{EVERYWHERE}'''\n# </script><script>{RUN}</script>", stream("a"), tags=["report", EVERYWHERE],
         scalekit={"status": EVERYWHERE, "seconds": "<b>", "memory": [1]}), code(EVERYWHERE, tags=["parameters"])]),
    Case("names and values", EVERYWHERE, [say("a")],
         {"notebook": EVERYWHERE, "parameters": {EVERYWHERE: EVERYWHERE, "lr": {"$enum": EVERYWHERE}}, "profile": EVERYWHERE, "tags": [EVERYWHERE],
          "notebook_sha256": EVERYWHERE, "code": {"commit": EVERYWHERE, "changed": EVERYWHERE}, "scalekit": EVERYWHERE, "attempt": EVERYWHERE},
         [{"event": "log", "step": step, "values": {EVERYWHERE: step, "loss": EVERYWHERE}} for step in range(3)]
         + [{"event": "record", "values": {EVERYWHERE: EVERYWHERE, "data_version": EVERYWHERE, "metrics_by_slice": {EVERYWHERE: {EVERYWHERE: EVERYWHERE}}}}]
         + [{"event": "system", "values": {EVERYWHERE: step, "gpu0/memory": step, f"gpu{EVERYWHERE}/utilization": 1}} for step in range(3)]
         + [{"event": "note", "text": EVERYWHERE}, {"event": "notes", "text": EVERYWHERE}, {"event": "tags", "add": [EVERYWHERE]}],
         {"artifacts/<script>alert(1)<\\script>\"'.txt": b"1", "environment.txt": f"# {EVERYWHERE}\n{EVERYWHERE}=={EVERYWHERE}\n".encode()}),
    Case("pictures that are none", f'"><script>{RUN}</script>', [code("a", show("image/png", f'"><script>{RUN}</script>')),
         code("b", show("image/jpeg", base64.b64encode(f"<script>{RUN}</script>".encode()).decode())), code("c", show("image/png", [1, None, "x"])),
         code("d", show("text/html", f'<img src="data:text/html;base64,{RUN64}"><img src="data:image/svg+xml,{SVG}"><picture><source srcset=HIT></picture>e')),
         say("![a](attachment:a) ![b](attachment:b)", attachments={"a": {"text/html": f"<script>{RUN}</script>"}, "b": {'image/png" onerror="x': "AA=="}})]),
    Case("a card", f"<script>{RUN}</script>", [say(f'# <script>{RUN}</script>\nOwner: <img src=x onerror="{RUN}">\n## <b onclick="{RUN}">Limits</b>\n'
         f'- [a](javascript:{RUN})\n\n<iframe src=HIT></iframe>\n{EVERYWHERE}: {EVERYWHERE}') | {"metadata": {"tags": ["card"]}}]),
    Case("other kinds of output", f"<script>{RUN}</script>", [code("a", show("application/javascript", RUN), show("text/latex", rf"\href{{javascript:{RUN}}}{{a}}"),
         show("text/markdown", f"<script>{RUN}</script> [a](javascript:{RUN}) ![b](HIT)"), show("application/vnd.jupyter.widget-view+json", {"model_id": EVERYWHERE}),
         show("text/html", f"<div id=plot></div><script>{RUN}</script>"), {"output_type": EVERYWHERE}, {"output_type": "display_data", "data": None}, "x", 3)]),
    Case("text of other readings", f"<img src=x onerror=\"{RUN}\">", [code("a", show("text/html", f"+ADw-script+AD4-{RUN}+ADw-/script+AD4-<scr\x00ipt>{RUN}</scr\x00ipt>"
         f"\u202e&#8238;<img src=x on\x00error={RUN}>\ud800<a href='java\u2028script:{RUN}'>\uff1cscript\uff1e{RUN}"))]),
    Case("far too much", "<b>", [code("a", stream("x" * 10_000_000)), code("b", show("text/html", "<div>" * 50_000)),
         code("c", show("text/html", "<table>" + "<tr><td>&amp;<td>y" * 100_000)), code("d", *[stream("z")] * 5_000), code("e", show("text/html", "<b><i>" * 50_000)),
         code("f = '" + "&" * 1_000_000 + "'", tags=["report"]), say("<" * 200_000), say("*" * 60_000), say("[" * 100_000 + "](" * 1000),
         code("g", *[show("image/png", base64.b64encode(b"\x89PNG" + b"0" * 2_000_000).decode())] * 5)], is_live=False),
]  # fmt: skip


def make_run(store: Path, case: Case, hit: str = "HIT") -> Bundle:
    "A run whose notebook is the case's"
    cells = case.cells or [
        code("x", show("text/html", f"{case.html}<p>seen")),
        say(f"seen\n\n{case.html}"),
        code("y", show("text/markdown", case.html)),
    ]
    real = json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).replace(
        "HIT", hit
    )
    asked = Store(store).create_run({"notebook": "hostile.ipynb", "parameters": {}}).asked
    bundle = Bundle(store / asked["run_id"])
    (bundle.path / "run.json").write_text(dump_json({**asked, **_real(case.asked, hit)}))
    bundle.notebook.write_text(real)
    for name, content in case.files.items():
        (bundle.path / name).write_bytes(content)
    bundle.set_state("running")
    for event in _real(case.events, hit):
        bundle.append(**event)
    failed = any(cell.get("metadata", {}).get("scalekit", {}).get("status") == "failed" for cell in cells)
    bundle.set_state(
        "failed" if failed else "succeeded", **({"error": EVERYWHERE.replace("HIT", hit)} if failed else {})
    )
    Store(store).index(bundle)
    return bundle


def _real(value: Any, hit: str) -> Any:
    if isinstance(value, str):
        return value.replace("HIT", hit)
    if isinstance(value, dict):
        return {_real(key, hit): _real(item, hit) for key, item in value.items()}
    return [_real(item, hit) for item in value] if isinstance(value, list) else value


# --- What may be in a page -----------------------------------------------------------------------------------

_ELEMENTS = (
    "html head meta title style body header main footer nav section div p pre span code a b i em strong s u q sub sup small abbr br hr "
    "blockquote del ins kbd mark samp var h1 h2 h3 h4 h5 h6 ul ol li dl dt dd details summary figure figcaption img table caption colgroup col "
    "thead tbody tfoot tr th td svg g path line text rect circle script"
)
_NAMES = (
    "charset http-equiv content name lang class id href src alt width height colspan rowspan scope start title rel style role tabindex aria-label "
    "d x y x1 x2 y1 y2 cx cy r rx viewbox data-p data-name data-frame data-view data-units"
)
ELEMENTS, ATTRIBUTES = set(_ELEMENTS.split()), set(_NAMES.split())
METAS = {"Content-Security-Policy", "x-dns-prefetch-control"}
LINK = re.compile(r"#[\w-]*|https?://\S+|mailto:\S+|[\w./%-]*notebook\.ipynb")
PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=]+")
STYLE = re.compile(r"width:\d+(\.\d+)?%")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.scripts: list[str] = []
        self.counts = {"script": 0, "style": 0, "body": 0}
        self.policy = ""
        self._in_script = False

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        if name not in ELEMENTS:
            self.faults.append(f"<{name}>")
        if name in self.counts:
            self.counts[name] += 1
        self._in_script = name == "script"
        for key, value in attributes:
            if not self._is_allowed(key, value or ""):
                self.faults.append(f"<{name} {key}={(value or '')[:80]!r}>")
        about = dict(attributes)
        if about.get("http-equiv") == "Content-Security-Policy":
            self.policy = about["content"] or ""

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)
        if re.search("[\x00\x1b\ud800-\udfff\u202e]", data):
            self.faults.append(f"a sign that can't be shown: {data[:40]!r}")

    def handle_endtag(self, name: str) -> None:
        self._in_script = False

    def _is_allowed(self, key: str, value: str) -> bool:
        if key not in ATTRIBUTES:
            return False
        rules = {"href": LINK, "src": PICTURE, "style": STYLE}
        if key == "http-equiv":
            return value in METAS
        return key not in rules or bool(rules[key].fullmatch(value))


def find_faults(page: str) -> list[str]:
    "What is in a page that may not be there; nothing of it is run"
    reader = _Reader()
    reader.feed(page)
    reader.close()
    digest = base64.b64encode(hashlib.sha256("".join(reader.scripts).encode()).digest()).decode()
    if f"script-src 'sha256-{digest}'" not in reader.policy or "default-src 'none'" not in reader.policy:
        reader.faults.append("the policy does not name the script")
    if reader.counts != {"script": 1, "style": 1, "body": 1}:
        reader.faults.append(f"elements that are there once: {reader.counts}")
    return reader.faults
