"""A W&B server on loopback, as far as the unmodified client can tell.

It proves how this project uses the client: which requests leave this machine, and what becomes of them when a
server answers badly, late or not at all. It says nothing about what W&B's own server does with them.
"""

import gzip
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fake_wandb_topics import DAY, ME, Artifacts, Ids, Sweeps, Views, make_page, make_project
from processes import free_port

Key = tuple[str, str, str]  # Entity, project, name of a run
_HISTORY = "wandb-history.jsonl"


@dataclass
class Faults:
    "What goes wrong; each counts down, so that a server gets well again"

    status: int = 500  # Of the answer to the next `n_bad` requests
    n_bad: int = 0
    n_cut: int = 0  # Requests that are taken in, and whose connection is then cut without an answer
    n_lost: int = 0  # Requests whose connection is cut before they are taken in
    delay: float = 0.0  # Before each answer [s]
    only: str = ""  # Regular expression for the path or operation that is hit; empty is any
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def strike(self, name: str) -> str | int | None:
        "What happens to this request: a status, `cut`, `lost`, or nothing"
        with self._lock:
            if self.only and not re.search(self.only, name):
                return None
            for kind in ("n_bad", "n_cut", "n_lost"):
                if left := getattr(self, kind):
                    setattr(self, kind, left - 1)
                    return self.status if kind == "n_bad" else kind[2:]
        return None


class Account:
    "Who asks, and what the server can do"

    viewer = {"id": "VXNlcjox", "entity": ME, "username": ME, "email": "me@x", "name": ME,
              "admin": False, "flags": "{}", "teams": {"edges": []}, "apiKeys": {"edges": []},
              "deletedAt": None}  # fmt: skip

    def Viewer(self, v: dict) -> dict:
        return {"viewer": self.viewer}

    GetDefaultEntity = Viewer

    def ServerInfo(self, v: dict) -> dict:
        versions = {"cliVersionInfo": {"max_cli_version": "9.0.0"}, "latestLocalVersionInfo": None}
        return {"viewer": self.viewer, "serverInfo": {**versions, "features": []}}

    def ServerFeaturesQuery(self, v: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def OrganizationCoreWeaveOrganizationID(self, v: dict) -> dict:
        return {"entity": None}


class Runs:
    "Runs, their rows by number, and their last words"

    def __init__(self, server: "FakeWandb") -> None:
        self.server = server
        self.found: dict[Key, dict[str, Any]] = {}
        self.lines: dict[
            tuple[Key, str], list[str]
        ] = {}  # By run and file; an offset replaces what was there

    def make(self, key: Key) -> dict[str, Any]:
        entity, project, name = key
        blank = {
            "id": self.server.ids.new(), "name": name, "displayName": name, "description": "", "config": "{}",
            "summaryMetrics": "{}", "sweepName": None, "state": "running", "tags": [], "group": None,
            "jobType": None, "notes": None, "commit": None, "program": None, "host": None, "repo": None,
            "project": make_project(project, entity), "historyLineCount": 0,
        }  # fmt: skip
        return self.found.setdefault(key, blank)

    def UpsertBucket(self, v: dict) -> dict:
        key = (v.get("entity") or ME, v.get("project") or "uncategorized", v["name"])
        is_new = key not in self.found
        run = self.make(key)
        renamed = {"groupName": "group", "sweep": "sweepName"}
        for asked in ("config", "displayName", "groupName", "tags", "jobType", "notes", "summaryMetrics",
                      "sweep", "commit", "program", "host", "repo", "state"):  # fmt: skip
            if v.get(asked) is not None:
                run[renamed.get(asked, asked)] = v[asked]
        return {"upsertBucket": {"bucket": run, "inserted": is_new}}

    def RunResumeStatus(self, v: dict) -> dict:
        key = (v.get("entity") or ME, v.get("project") or "uncategorized", v["name"])
        bucket = None
        if key in self.found:
            rows = self.lines.get((key, _HISTORY), [])
            run = self.found[key]
            bucket = {**run, "historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0,
                      "historyTail": json.dumps(rows[-1:]), "eventsTail": "[]", "wandbConfig": '{"t": 1}',
                      "summaryMetrics": self.summary_text(key)}  # fmt: skip
        return {"model": {**make_project(key[1], key[0]), "bucket": bucket}}

    def RunStoppedStatus(self, v: dict) -> dict:
        return {"project": {"run": {"stopped": False}}}

    def file_stream(self, key: Key, sent: dict) -> dict:
        for name, part in (sent.get("files") or {}).items():
            lines = self.lines.setdefault((key, name), [])
            offset = part.get("offset", 0)
            if offset > len(lines):
                raise ValueError(f"{name}: rows {len(lines)} to {offset} were never sent")
            lines[offset : offset + len(part["content"])] = part["content"]
        if sent.get("complete"):
            self.make(key)["state"] = "finished" if sent.get("exitcode") == 0 else "failed"
        elif key in self.found:
            self.found[key]["state"] = "running"
        return {"exitcode": None, "limits": {}}

    def summary_text(self, key: Key) -> str:
        return (self.lines.get((key, "wandb-summary.json")) or [self.found[key]["summaryMetrics"]])[-1]

    def _whole(self, key: Key) -> dict:
        run = self.found[key]
        n_rows = len(self.lines.get((key, _HISTORY), []))
        return {**run, "__typename": "Run", "projectId": "1", "readOnly": False, "createdAt": DAY,
                "heartbeatAt": DAY, "systemMetrics": "{}", "summaryMetrics": self.summary_text(key),
                "historyLineCount": n_rows, "user": {"name": ME, "username": ME},
                "files": {"edges": []},
                "historyKeys": {"lastStep": n_rows - 1, "sets": [], "keys": {}}}  # fmt: skip

    def Run(self, v: dict) -> dict:
        key = (v["entity"], v["project"], v["name"])
        return {"project": {"run": self._whole(key) if key in self.found else None}}

    def Runs(self, v: dict) -> dict:
        keys = [key for key in self.found if key[:2] == (v["entity"], v["project"])]
        listed = make_page([self._whole(key) for key in keys])
        return {"project": {"internalId": "1", "runCount": len(keys), "readOnly": False, "runs": listed}}

    LightweightRuns = Runs

    def _history(self, v: dict) -> list[str]:
        return self.lines.get(((v["entity"], v["project"], v.get("run") or v["name"]), _HISTORY), [])

    def RunSampledHistory(self, v: dict) -> dict:
        rows = [json.loads(line) for line in self._history(v)]
        return {"project": {"run": {"sampledHistory": [rows for _ in v.get("specs", [1])]}}}

    def RunHistoryKeys(self, v: dict) -> dict:
        return {"project": {"run": {"historyKeys": {"lastStep": len(self._history(v)) - 1}}}}

    def RunFullHistory(self, v: dict) -> dict:
        return {"project": {"run": {"history": self._history(v)}}}


class Files:
    "What is stored, by path"

    def __init__(self, server: "FakeWandb") -> None:
        self.server = server
        self.stored: dict[str, bytes] = {}

    def address(self, path: str) -> str:
        return f"{self.server.url}/storage/{path}"

    def CreateRunFiles(self, v: dict) -> dict:
        place = f"{v['entity']}/{v['project']}/{v['run']}"
        files = [{"name": name, "uploadUrl": self.address(f"{place}/{name}")} for name in v["files"]]
        return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}


class FakeWandb:
    "The server; `with FakeWandb() as server: ...` listens on loopback"

    def __init__(self, port: int | None = None) -> None:
        self.ids, self.faults, self.lock = Ids(), Faults(), threading.RLock()
        self.runs, self.files, self.artifacts = Runs(self), Files(self), Artifacts(self)
        self.views, self.sweeps = Views(self), Sweeps(self)
        self.topics = (Account(), self.runs, self.files, self.artifacts, self.views, self.sweeps)
        self.asked: list[str] = []  # Operations and paths, in order
        self.unknown: list[str] = []  # What the client wanted and this server has not
        self.odd: list[str] = []  # Requests that could not be carried out
        self._http: _Listener | None = None
        self.port = free_port() if port is None else port  # which stays free after a `die`
        self.start()

    def __enter__(self) -> "FakeWandb":
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    @property
    def environment(self) -> dict[str, str]:
        "What leads the client here"
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}

    def start(self) -> None:
        "Listen, after a `die` at the same address as before"
        self._http = _Listener(("127.0.0.1", self.port), _Handler)
        self._http.fake = self
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def die(self) -> None:
        "Be gone: connections are refused"
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http.cut_all()
            self._http = None

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        "What a run has in the server's history, without what the client adds"
        lines = [
            lines for (key, name), lines in self.runs.lines.items() if (key[2], name) == (run_id, _HISTORY)
        ]
        added = ("_step", "_runtime", "_timestamp")
        return [{name: value for name, value in json.loads(line).items() if name not in added}
                for line in (lines[0] if lines else [])]  # fmt: skip

    def run(self, run_id: str) -> dict[str, Any]:
        "A run as the server knows it, config and summary as dicts"
        (key,) = [key for key in self.runs.found if key[2] == run_id]
        run = self.runs.found[key]
        config = {name: said["value"] for name, said in json.loads(run["config"]).items() if name != "_wandb"}
        return {**run, "config": config, "summary": json.loads(self.runs.summary_text(key)),
                "entity": key[0], "project": key[1]}  # fmt: skip

    def answer(self, body: dict) -> tuple[dict, int]:
        "To one GraphQL request"
        name = (
            body.get("operationName")
            or (re.search(r"(?:query|mutation)\s+(\w+)", body["query"]) or [0, "?"])[1]
        )
        values = body.get("variables") or {}
        if isinstance(values.get("input"), dict):
            values = values | values["input"]
        answer = next((found for topic in self.topics if (found := getattr(topic, name, None))), None)
        if answer is None:
            self.unknown.append(f"{name}: {body['query'][:500]} {json.dumps(values)[:500]}")
            return {"errors": [{"message": f"there is no {name} here"}]}, 200
        return {"data": answer(values)}, 200


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    fake: FakeWandb

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.open: set[socket.socket] = set()

    def process_request(self, request: Any, address: Any) -> None:
        self.open.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        for one in list(self.open):
            _cut(one)

    def handle_error(self, request: Any, address: Any) -> None:
        "A client that was cut off, or is gone, is no news"


def _cut(connection: socket.socket) -> None:
    "Reset the connection, as a broken network does"
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is gone already


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        "Tests have enough to say"

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding"):
            body = b"".join(iter(self._read_chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _read_chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline().split(b";")[0], 16))
        self.rfile.readline()
        return chunk

    def _reply(self, said: Any, status: int = 200) -> None:
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _carry_out(self) -> None:
        fake: FakeWandb = self.server.fake  # type: ignore[attr-defined]
        body = self._read()
        asked = json.loads(body) if self.path == "/graphql" else {}
        name = asked.get("operationName") or self.path
        fake.asked.append(f"{self.command} {name}")
        struck = fake.faults.strike(f"{self.command} {name}")
        if fake.faults.delay:
            time.sleep(fake.faults.delay)
        if isinstance(struck, int):
            return self._reply({"error": "as the test wants it"}, struck)
        if struck == "lost":
            self.close_connection = True
            return _cut(self.connection)
        with fake.lock:
            said, status = self._answer(fake, body, asked)
        if struck == "cut":
            self.close_connection = True
            return _cut(self.connection)
        self._reply(said, status)

    do_GET = do_POST = do_PUT = do_HEAD = _carry_out

    def _answer(self, fake: FakeWandb, body: bytes, asked: dict) -> tuple[Any, int]:
        stream = re.match(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", self.path)
        try:
            if stream:
                return fake.runs.file_stream(stream.groups(), json.loads(body)), 200  # type: ignore[arg-type]
            if asked:
                return fake.answer(asked)
        except Exception as error:
            fake.odd.append(f"{self.path} {asked.get('operationName')}: {error!r}")
            return {"errors": [{"message": repr(error)}]}, 400
        path = re.sub(r"^/(storage|files)/", "", self.path)
        if self.command == "PUT":
            fake.files.stored[path] = body
        if self.command == "GET" and path != self.path:
            return fake.files.stored.get(path, b""), 200 if path in fake.files.stored else 404
        return {}, 200
