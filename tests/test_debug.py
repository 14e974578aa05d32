"""A kernel that stays after a failure: reached by its owner, ended by its guard."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from notebooks import make_notebook
from processes import SCALEKIT, wait_until

from scalekit.cli import main
from scalekit.kernels import kept
from scalekit.kernels.choose import KernelOrder, open_kernel
from scalekit.kernels.debug import NoKernel, find_console, find_kernel, open_post_mortem, write_command
from scalekit.kernels.kept import find_way, guard, keep_kernel
from scalekit.lease import find_process, this_process
from scalekit.store import Store

FAILS = "def mean(total, n):\n    secret = total * 3\n    return total / n\n\nmean(7, 0)"


@pytest.fixture
def bundle(place):
    "A run in the store of this folder, whose kernel ends with the test"
    bundle = Store("runs").create_run({"notebook": "a.ipynb"})
    bundle.notebook.write_text(json.dumps(make_notebook("1")))
    yield bundle
    if way := find_way(bundle.path):
        way.end()


def order(bundle):
    return KernelOrder("python3", os.getcwd(), {**os.environ, "SCALEKIT_BUNDLE": str(bundle.path)}, keep=True)


def execute(kernel, code):
    header = {"msg_id": "1", "msg_type": "execute_request", "session": "s", "username": "", "version": "5.4"}
    content = {"code": code, "silent": False, "store_history": True, "stop_on_error": False}
    kernel.send({"header": header, "parent_header": {}, "metadata": {}, "content": content})
    while (message := kernel.receive(120))["msg_type"] != "execute_reply":
        pass
    return message["content"]["status"]


@pytest.fixture
def failed(bundle):
    "The way to a kernel in which a cell has failed, and which was kept"
    with open_kernel(order(bundle)) as (kernel, _):
        assert execute(kernel, FAILS) == "error"
        assert keep_kernel(kernel, bundle.path)
    return find_way(bundle.path)


def is_gone(bundle, way):
    return not way.is_alive and not way.file.exists() and not Path(way.sockets).parent.exists()


def test_a_kept_kernel_is_reached_in_the_frame_that_failed(failed):
    said, lines = [], iter(["p secret", "up", "p __name__", "q"])
    open_post_mortem(failed, lambda prompt: next(lines), said.append)
    assert "21\n" in "".join(said) and "'__main__'\n" in "".join(said)
    assert failed.is_alive
    again = []
    open_post_mortem(failed, lambda prompt: (_ for _ in ()).throw(EOFError), again.append)
    assert "return" in "".join(again) and failed.is_alive


def test_the_prompt_ends_with_its_kernel(failed):
    def kill(prompt):
        os.kill(failed.process.pid, signal.SIGKILL)
        return "p secret"

    with pytest.raises(NoKernel, match="the kernel has ended. Run the notebook again"):
        open_post_mortem(failed, kill, lambda text: None)


def test_a_kernel_whose_run_succeeds_or_is_not_kept_ends_with_it(bundle):
    with open_kernel(order(bundle)) as (kernel, _):
        way = find_way(bundle.path)
        assert (way.is_alive, way.is_kept, kernel.kind) == (True, False, "stock")
        with pytest.raises(NoKernel, match="is still going on. To end it: scalekit stop"):
            find_kernel(bundle.path)
    wait_until(lambda: is_gone(bundle, way))
    with pytest.raises(NoKernel, match="has left no kernel behind. Run the notebook with --keep-kernel"):
        find_kernel(bundle.path)


def test_only_its_owner_reaches_it(failed):
    assert failed.file.stat().st_mode & 0o777 == 0o600
    assert Path(failed.sockets).parent.stat().st_mode & 0o777 == 0o700
    found = json.loads(failed.file.read_text())
    assert (found["transport"], len(found["key"]) > 20) == ("ipc", True)
    own = set()
    for link in Path(f"/proc/{failed.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            own.add(os.readlink(link))
    rows = [line.split() for line in Path(f"/proc/{failed.process.pid}/net/tcp").read_text().splitlines()[1:]]
    open_to = [row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]
    assert set(open_to) <= {"0100007F"}  # ipykernel's own, for what forks print; Jupyter's five are files


def test_the_seal_does_not_cover_the_way_to_it(failed, bundle):
    bundle.set_state("running")
    bundle.set_state("failed")
    bundle.seal()
    failed.end()
    assert bundle.verify() == [] and not failed.file.exists()


def test_a_kernel_that_is_dead_can_not_be_kept(bundle):
    with open_kernel(order(bundle)) as (kernel, _):
        os.kill(kernel.pid, signal.SIGKILL)
        wait_until(lambda: kernel.dead)
        assert not keep_kernel(kernel, bundle.path)
    wait_until(lambda: find_way(bundle.path) is None)


def start_run(bundle, then):
    "A process that opens a kernel which may be kept, does `then` with it and says so"
    code = "import os, pathlib, sys, time\nfrom scalekit.kernels.choose import KernelOrder, open_kernel\n"
    code += "from scalekit.kernels.kept import keep_kernel\n"
    code += "bundle = pathlib.Path(os.environ['SCALEKIT_BUNDLE'])\n"
    code += "order = KernelOrder('python3', '/', dict(os.environ), keep=True)\n"
    code += f"with open_kernel(order) as (kernel, _):\n    print('open', flush=True)\n    {then}"
    environment = {**os.environ, "SCALEKIT_BUNDLE": str(bundle.path)}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


def test_a_run_that_is_killed_takes_its_kernel_along(bundle):
    run = start_run(bundle, "time.sleep(60)")
    try:
        assert run.stdout.readline() == "open\n"
        way = find_way(bundle.path)
        assert way.is_alive
    finally:
        run.kill()
        run.communicate()
    wait_until(lambda: is_gone(bundle, way))


def test_a_kept_kernel_outlives_the_process_of_its_run(bundle):
    run = start_run(bundle, "keep_kernel(kernel, bundle)")
    assert (run.communicate()[0], run.returncode) == ("open\n", 0)
    time.sleep(1.5)
    assert find_kernel(bundle.path).is_alive


@pytest.fixture
def watched(failed, bundle):
    "Function that starts a second guard, with less patience"
    threads = []

    def watch(idle):
        threads.append(thread := threading.Thread(target=guard, args=(bundle.path, this_process(), idle)))
        thread.start()
        return thread

    yield watch
    failed.end()
    for thread in threads:
        thread.join(120)


def test_a_kernel_that_nobody_uses_is_ended(failed, bundle, watched):
    watched(0.3).join(120)
    assert is_gone(bundle, failed)


HOUR = 3600.0


def test_a_kernel_that_is_used_stays(failed, bundle, watched, monkeypatch):
    ahead, heard, is_busy, lines = [0.0], [], kept._is_busy, iter(["p 1", "q"])
    monkeypatch.setattr(kept, "monotonic", lambda: time.monotonic() + ahead[0])
    monkeypatch.setattr(kept, "_is_busy", lambda *words: heard.append(is_busy(*words)) or heard[-1])
    thread = watched(HOUR)
    while not heard:  # the guard doesn't listen yet
        open_post_mortem(failed, lambda prompt: (_ for _ in ()).throw(EOFError), [].append)
    wait_until(lambda: not heard[-1])

    def answer(prompt):
        wait_until(lambda: heard[-1])
        ahead[0] += 2 * HOUR
        time.sleep(1.2)  # the guard looks twice a second
        return next(lines)

    open_post_mortem(failed, answer, [].append)
    assert failed.is_alive
    wait_until(lambda: not heard[-1])
    ahead[0] += 2 * HOUR
    thread.join(120)
    assert is_gone(bundle, failed)


def test_what_the_kernel_has_started_ends_with_it(bundle):
    with open_kernel(order(bundle)) as (kernel, _):
        execute(kernel, "import subprocess; child = subprocess.Popen(['sleep', '300'])")
        children = Path(f"/proc/{kernel.pid}/task").glob("*/children")
        pids = [int(pid) for file in children for pid in file.read_text().split()]
        keep_kernel(kernel, bundle.path)
    assert pids
    find_way(bundle.path).end()
    wait_until(lambda: not any(map(find_process, pids)))


def test_a_process_that_merely_has_its_number_is_left_alone(bundle, place):
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        file = bundle.path / "kernel.json"
        (place / "sockets").mkdir()
        process = replace(find_process(other.pid), born="1")
        way = kept.Way(file, process, True, str(place / "sockets" / "k"), 2)
        file.write_text("{}")
        assert not way.is_alive
        way.end()
        assert other.poll() is None and not file.exists()
    finally:
        other.kill()
        other.wait()


def test_an_interrupt_leaves_the_prompt_and_the_kernel_can_be_asked_again(failed):
    def interrupt(prompt):
        raise KeyboardInterrupt

    open_post_mortem(failed, interrupt, [].append)
    said, lines = [], iter(["p secret", "q"])
    open_post_mortem(failed, lambda prompt: next(lines), said.append)
    assert "21\n" in said


def test_the_command_shows_the_line_and_ends_the_kernel(failed, bundle, capsys):
    assert main(["debug", bundle.run_id]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"jupyter console --existing {bundle.path / 'kernel.json'}\n") and "%debug" in said
    assert write_command(failed) in said
    assert main(["debug", "latest", "--end"]) == 0
    assert not failed.is_alive
    assert main(["debug", "latest"]) == 2
    assert "has left no kernel behind" in capsys.readouterr().err


@pytest.mark.skipif(find_console() is not None, reason="jupyter-console takes the terminal")
def test_a_terminal_without_jupyter_s_console_gets_python_s_debugger(failed, bundle):
    controller, terminal = pty.openpty()
    command = subprocess.Popen(
        [SCALEKIT, "debug", "latest"], stdin=terminal, stdout=subprocess.PIPE, text=True
    )
    os.close(terminal)
    os.write(controller, b"p secret\nq\n")
    said, _ = command.communicate(timeout=120)
    os.close(controller)
    assert command.returncode == 0 and "\n21\n" in said.replace("ipdb> ", "")
    assert failed.is_alive
