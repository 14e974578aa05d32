"""Warm kernels under jupyter_client, which takes them for processes that it has started."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fidelity_cases import make_notebook
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from nbclient import NotebookClient
from processes import free_port, wait_until

from scalekit.kernels import provisioner
from scalekit.kernels.client import PlainKernel, describe_server, hold_server
from scalekit.kernels.connection import find_runtime_folder

PRELOAD, LINGER = "json", 5.0
MODULES = (PRELOAD, "scalekit.journal.keeper")  # as `Settings.warm_modules` has them


@pytest.fixture(autouse=True, scope="module")
def server() -> Iterator[None]:
    "A server of these tests alone, and jupyter_client told to use it"
    factory = KernelProvisionerFactory.instance()
    with TemporaryDirectory(prefix="sk-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        patch.setenv("SCALEKIT_PRELOAD", PRELOAD)
        patch.setenv("SCALEKIT_LINGER", str(LINGER))
        patch.setattr(factory, "default_provisioner_name", "scalekit")
        with hold_server(MODULES, LINGER):
            yield


class Session:
    "A manager with its kernel and a client"

    def __init__(self, manager: KernelManager | None = None, **how) -> None:
        self.manager = manager or KernelManager()
        self.manager.start_kernel(**how)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()

    @property
    def kernel(self) -> PlainKernel | subprocess.Popen:
        return self.manager.provisioner.process

    @property
    def is_warm(self) -> bool:
        return isinstance(self.kernel, PlainKernel)

    def run(self, code: str) -> object:
        "Result of a cell, or the name of its error"
        seen = []
        self.client.execute_interactive(code, output_hook=seen.append, timeout=120)
        for message in seen:
            if message["msg_type"] == "execute_result":
                return json.loads(message["content"]["data"]["text/plain"].strip("'"))
            if message["msg_type"] == "error":
                return message["content"]["ename"]
        return None


def list_sockets() -> list[str]:
    return [path.name for path in find_runtime_folder().glob("kernel-*")]


# As any other kernel


def test_nbclient_gets_a_fork_of_the_server(tmp_path):
    notebook = make_notebook(["import os; print(os.getppid(), os.getcwd(), end='')"])
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    server = describe_server(MODULES, LINGER)["pid"]
    assert notebook.cells[0].outputs[0].text == f"{server} {tmp_path}"


def test_a_kernel_says_of_itself_what_a_stock_kernel_says(tmp_path):
    code = """
import json, os, signal, sys
main = sorted(name for name in vars(sys.modules["__main__"]) if name.startswith("__"))
launched = sys.argv[0].split("/")[-1], sys.argv[1], sys.orig_argv[:3]
shell = get_ipython()
variables = [os.environ[name] for name in ("MPLBACKEND", "JPY_PARENT_PID", "PYDEVD_USE_FRAME_EVAL", "PAGER")]
json.dumps([sys.path, launched, main, variables, str(signal.getsignal(signal.SIGTERM)),
            str(shell.history_manager.hist_file), type(shell.kernel).__name__, sys.stdin.read(), os.getcwd()])
"""
    said = []
    for name in ("scalekit", "local-provisioner"):
        KernelProvisionerFactory.instance().default_provisioner_name = name
        try:
            with Session(cwd=str(tmp_path)) as session:
                assert session.is_warm == (name == "scalekit")
                said.append(session.run(code))
        finally:
            KernelProvisionerFactory.instance().default_provisioner_name = "scalekit"
    assert said[0] == said[1]


def test_a_restarted_kernel_is_a_new_one_at_the_same_place():
    with Session() as session:
        session.run("x = 1")
        before = session.kernel.pid
        session.manager.restart_kernel()
        session.client.wait_for_ready(timeout=120)
        assert session.run("x") == "NameError"
        assert session.is_warm and session.kernel.pid != before


def test_an_interrupt_ends_the_cell_and_not_the_kernel():
    with Session() as session:
        request = session.client.execute("import time; print('begins', flush=True); time.sleep(600)")
        while session.client.get_iopub_msg(timeout=120)["msg_type"] != "stream":
            pass
        session.manager.interrupt_kernel()
        reply = session.client.get_shell_msg(timeout=120)
        assert (reply["parent_header"]["msg_id"], reply["content"]["ename"]) == (request, "KeyboardInterrupt")
        assert session.run("1 + 1") == 2


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("import os; os._exit(3)", 3), ("import os; os.kill(os.getpid(), 11)", -signal.SIGSEGV)],
)
def test_a_kernel_that_dies_tells_how(code, exit_code):
    with Session() as session:
        session.client.execute(code)
        assert session.kernel.wait(120) == exit_code
        assert not session.manager.is_alive()


def test_a_clean_end_is_noticed_without_looking_again(monkeypatch):
    naps = []
    sleep = asyncio.sleep

    async def nap(seconds, *more):
        naps.append(seconds)
        await sleep(seconds, *more)

    with Session() as session:
        kernel = session.kernel
        monkeypatch.setattr(asyncio, "sleep", nap)
        session.manager.shutdown_kernel()
        assert kernel.returncode == 0
        assert 0.1 not in naps  # the manager's pause between two looks


def test_a_stepping_debugger_stops_at_a_breakpoint():
    code = "def f(a):\n    b = a + 1\n    return b\nf(41)"
    with Session() as session:
        client, number = session.client, iter(range(1, 100))

        def ask(command, **arguments):
            content = {"type": "request", "seq": next(number), "command": command, "arguments": arguments}
            message = client.session.msg("debug_request", content)
            client.control_channel.send(message)
            while True:
                reply = client.control_channel.get_msg(timeout=120)
                if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                    assert reply["content"]["success"], reply["content"]
                    return reply["content"].get("body")

        def wait_for_stop():
            while True:
                content = client.get_iopub_msg(timeout=120)["content"]
                if content.get("event") == "stopped":
                    return content["body"]["threadId"]

        ask("initialize", clientID="test", adapterID="", linesStartAt1=True, pathFormat="path")
        ask("attach")
        source = {"path": ask("dumpCell", code=code)["sourcePath"]}
        assert ask("setBreakpoints", breakpoints=[{"line": 3}], source=source)["breakpoints"][0]["verified"]
        ask("configurationDone")
        client.execute(code)
        thread = wait_for_stop()
        frame = ask("stackTrace", threadId=thread)["stackFrames"][0]
        assert (frame["name"], frame["line"]) == ("f", 3)
        ask("continue", threadId=thread)
        assert client.get_shell_msg(timeout=120)["content"]["status"] == "ok"


def test_output_below_the_kernel_goes_where_the_caller_said(tmp_path):
    with open(tmp_path / "out.txt", "wb") as out, Session(stdout=out) as session:
        session.run("import os; os.system('echo from below')")
    assert (tmp_path / "out.txt").read_text() == "from below\n"


def test_settings_are_those_of_the_notebook_s_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SCALEKIT_PRELOAD")
    (tmp_path / "scalekit.toml").write_text('preload = ["colorsys"]\n')
    with Session(cwd=str(tmp_path)) as session:
        assert session.run("import sys; int('colorsys' in sys.modules)") == 1


def test_other_tasks_go_on_while_the_first_kernel_waits_for_the_server(monkeypatch):
    began, went_on, start_plain_kernel = threading.Event(), threading.Event(), provisioner.start_plain_kernel

    def wait_for_the_others(*words):
        began.set()
        assert went_on.wait(120), "nothing else was done"
        return start_plain_kernel(*words)

    monkeypatch.setattr(provisioner, "start_plain_kernel", wait_for_the_others)

    async def start():
        manager = AsyncKernelManager()
        task = asyncio.create_task(manager.start_kernel())
        while not began.is_set():
            await asyncio.sleep(0.005)
        went_on.set()
        await task
        await manager.shutdown_kernel(now=True)

    asyncio.run(start())


# Nothing is left


def test_parallel_kernels_have_sockets_of_their_own_and_leave_none():
    sessions = [Session() for _ in range(8)]
    try:
        places = {(session.manager.transport, session.manager.ip) for session in sessions}
        assert len(places) == 8 and {transport for transport, _ in places} == {"ipc"}
        assert [session.run(f"{n} + 1") for n, session in enumerate(sessions)] == list(range(1, 9))
    finally:
        for session in sessions:
            session.__exit__()
    assert list_sockets() == []


def test_a_manager_that_was_told_an_address_keeps_it():
    port = free_port()
    with Session(KernelManager(hb_port=port, cache_ports=False)) as session:
        assert (session.manager.transport, session.manager.hb_port) == ("tcp", port)
        assert (session.is_warm, session.run("1 + 1")) == (True, 2)


def test_nothing_outlives_a_manager_that_is_killed(tmp_path):
    code = (
        "import json, sys, time; sys.path.insert(0, sys.argv[1]); from test_provisioner import *\n"
        "session = Session()\n"
        "sleeper = session.run(\"import subprocess; subprocess.Popen(['sleep', '600']).pid\")\n"
        "print(json.dumps([session.kernel.pid, sleeper, list_sockets()]), flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "JUPYTER_DEFAULT_PROVISIONER_NAME": "scalekit"}
    command = [sys.executable, "-c", code, Path(__file__).parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        kernel, sleeper, sockets = json.loads(process.stdout.readline())
        assert len(sockets) == 5
        process.kill()
    wait_until(lambda: not Path(f"/proc/{kernel}").exists() and not Path(f"/proc/{sleeper}").exists())
    wait_until(lambda: list_sockets() == [])


# The normal kernel, and why


def start_by(command: list[str], tmp_path: Path) -> KernelManager:
    "A manager for a kernel that is started otherwise"
    (folder := tmp_path / "kernels" / "other").mkdir(parents=True)
    spec = KernelSpec(argv=command, display_name="other", language="python")
    (folder / "kernel.json").write_text(spec.to_json())
    manager = KernelManager(kernel_name="other")
    manager.kernel_spec_manager.kernel_dirs = [str(tmp_path / "kernels")]
    return manager


def test_another_command_starts_a_normal_kernel(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    command = [sys.executable, "-O", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    with Session(start_by(command, tmp_path)) as session:
        assert (session.is_warm, session.manager.transport) == (False, "tcp")
        assert session.run("int(__debug__)") == 0
    reasons = [record.getMessage() for record in caplog.records if "scalekit" in record.getMessage()]
    assert reasons == [f"scalekit starts a normal kernel: {sys.executable} is not this interpreter's kernel"]


def test_a_pipe_for_the_output_starts_a_normal_kernel(caplog):
    caplog.set_level(logging.INFO)
    with Session(stdout=subprocess.PIPE) as session:
        assert (session.is_warm, session.run("1 + 1")) == (False, 2)
    assert "scalekit starts a normal kernel: it is started with stdout" in caplog.text


def test_a_runtime_folder_that_can_t_be_used_starts_a_normal_kernel(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    with Session() as session:
        assert (session.is_warm, session.run("1 + 1")) == (False, 2)
    assert "too long for the name of a socket" in caplog.text


def test_a_mistake_in_the_settings_starts_a_normal_kernel(tmp_path, caplog):
    (tmp_path / "scalekit.toml").write_text("lingr = 3\n")
    with Session(cwd=str(tmp_path)) as session:
        assert (session.is_warm, session.run("1 + 1")) == (False, 2)
    assert "Did you mean 'linger'?" in caplog.text


def test_a_folder_that_is_not_there_is_the_error_of_any_kernel(tmp_path):
    with pytest.raises(FileNotFoundError):
        KernelManager().start_kernel(cwd=str(tmp_path / "nowhere"))
