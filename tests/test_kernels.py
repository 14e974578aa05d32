"""Warm kernels: forks that are as good as fresh processes, and that nothing outlives."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from processes import is_alive, wait_until

from scalekit.kernels.client import WarmKernel, describe_server, hold_server, start_kernel
from scalekit.kernels.connection import NoWarmKernel, find_runtime_folder

LIGHT, HEAVY = ("json",), ("numpy", "torch")  # What servers of the tests import
LINGER = 5.0
_SILENCE = 120.0  # Of a kernel that must say something [s]


@pytest.fixture(autouse=True, scope="module")
def servers() -> Iterator[None]:
    "Servers of these tests alone, warm from the first to the last"
    with (
        pytest.MonkeyPatch.context() as patch,
        _runtime_folder(patch),
        hold_server(LIGHT, LINGER),
        hold_server(HEAVY, LINGER),
    ):
        yield


@pytest.fixture
def own_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    "No server yet, and none that another test would miss"
    with _runtime_folder(monkeypatch):
        yield


@contextmanager
def _runtime_folder(patch: pytest.MonkeyPatch) -> Iterator[None]:
    with TemporaryDirectory(prefix="sk-") as folder:  # a short path, for sockets
        patch.setenv("XDG_RUNTIME_DIR", folder)
        yield


# Talking to a kernel


class Said:
    "What a kernel said to one request"

    def __init__(self, messages: list[dict]) -> None:
        self.messages = messages

    def _contents(self, kind: str) -> list[dict]:
        return [message["content"] for message in self.messages if message["msg_type"] == kind]

    @property
    def text(self) -> str:
        return "".join(content["text"] for content in self._contents("stream"))

    @property
    def value(self) -> object:
        "The result, which must be a literal that JSON knows too"
        return json.loads(self._contents("execute_result")[0]["data"]["text/plain"].strip("'"))

    @property
    def errors(self) -> list[str]:
        return [content["ename"] for content in self._contents("error")]


class Notebook:
    "A warm kernel, cell by cell"

    def __init__(self, modules=LIGHT, linger=LINGER, folder="/", environment=None, **more) -> None:
        environment = environment or dict(os.environ)
        self.kernel: WarmKernel = start_kernel(modules, linger, folder, environment, **more)

    def __enter__(self) -> "Notebook":
        return self

    def __exit__(self, *_: object) -> None:
        self.kernel.close()

    def begin(self, code: str) -> str:
        "Start a cell"
        content = {"code": code, "silent": False, "store_history": True, "stop_on_error": False}
        return self.send("execute_request", content)

    def send(self, kind: str, content: dict, buffers: list[bytes] | None = None) -> str:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": "s", "version": "5.4"}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        self.kernel.send(message | {"buffers": buffers or []})
        return header["msg_id"]

    def end(self, request: str) -> Said:
        "Everything that a request has made the kernel say"
        messages = []
        while (message := self.kernel.receive(_SILENCE)) is not None:
            if message["parent_header"].get("msg_id") == request:
                messages.append(message)
                if message["content"].get("execution_state") == "idle":
                    return Said(messages)
        assert self.kernel.dead, "the kernel fell silent"
        return Said(messages)

    def run(self, code: str) -> Said:
        return self.end(self.begin(textwrap.dedent(code)))

    def wait_for_text(self, text: str) -> None:
        "Read until a running cell has printed something"
        while (message := self.kernel.receive(_SILENCE)) is not None:
            if text in message["content"].get("text", ""):
                return
        raise AssertionError(f"the kernel has not printed {text!r}")


@contextmanager
def driver(code: str) -> Iterator[tuple[subprocess.Popen, Callable[[], list]]]:
    "Another process that drives a kernel, and what reads a line of JSON from it"
    prelude = "import json, os, sys, time; sys.path.insert(0, sys.argv[1]); from test_kernels import *\n"
    command = [sys.executable, "-c", prelude + textwrap.dedent(code), Path(__file__).parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, lambda: json.loads(process.stdout.readline())
        finally:
            process.kill()


# A fork is a fresh process


DRAW = "import random, numpy, torch\n"
DRAWN = "[random.random(), float(numpy.random.rand()), float(torch.rand(1))]"


def test_two_kernels_draw_different_random_numbers():
    with Notebook(HEAVY) as one, Notebook(HEAVY) as other:
        drawn = zip(one.run(DRAW + DRAWN).value, other.run(DRAW + DRAWN).value, strict=True)
        assert all(mine != yours for mine, yours in drawn)


def test_a_seed_gives_every_kernel_the_same_random_numbers():
    seeded = DRAW + "random.seed(1); numpy.random.seed(1); torch.manual_seed(1)\n" + DRAWN
    with Notebook(HEAVY) as one, Notebook(HEAVY) as other:
        drawn = one.run(seeded).value
        assert drawn == other.run(seeded).value
        assert drawn[:2] == [0.13436424411240122, 0.417022004702574]  # as in any other Python


@pytest.mark.parametrize("n", [1, 3])
def test_libraries_use_as_many_threads_as_the_kernel_was_given(n):
    code = """
    import os, subprocess, threadpoolctl, torch
    child = subprocess.run(["sh", "-c", "echo $OMP_NUM_THREADS"], capture_output=True)
    pools = threadpoolctl.threadpool_info()
    [torch.get_num_threads(), int(child.stdout), *{pool["num_threads"] for pool in pools}]
    """
    with Notebook(HEAVY, threads=n) as notebook:
        assert notebook.run(code).value == [n, n, n]


def test_environment_folder_and_file_mode_are_the_run_s(tmp_path):
    own = {"GREETING": "hello", "TZ": "Asia/Tokyo", "TMPDIR": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if name != "PATH"} | own
    code = """
    import json, os, tempfile, time
    mask = os.umask(0o77); os.umask(mask)
    has_path = "PATH" in os.environ
    json.dumps([os.getcwd(), os.environ["GREETING"], has_path, time.tzname[0], tempfile.gettempdir(), mask])
    """
    mask = os.umask(0o27)
    try:
        with Notebook(folder=tmp_path, environment=environment) as notebook:
            assert notebook.run(code).value == [str(tmp_path), "hello", False, "JST", str(tmp_path), 0o27]
    finally:
        os.umask(mask)


def test_a_kernel_runs_on_the_cores_of_the_one_who_asked():
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        with Notebook() as notebook:
            assert notebook.run("import os; sorted(os.sched_getaffinity(0))").value == [min(cores)]
    finally:
        os.sched_setaffinity(0, cores)


def test_a_kernel_leads_a_process_group_of_its_own():
    with Notebook() as notebook:
        pid, group, session = notebook.run("import os; [os.getpid(), os.getpgrp(), os.getsid(0)]").value
        assert pid == group == session == notebook.kernel.pid != os.getpgrp()


def test_a_kernel_holds_no_file_of_another():
    def list_files(notebook):
        folder = Path(f"/proc/{notebook.kernel.pid}/fd")
        links = {os.readlink(file) for file in folder.iterdir()}
        return {link for link in links if link.startswith(("socket", "pipe"))}

    with Notebook() as one, Notebook() as other:
        assert (one.run("1").value, other.run("1").value) == (1, 1)  # both have opened what they need
        assert len(list_files(one)) == len(list_files(other)) > 0
        assert not list_files(one) & list_files(other)


def test_a_file_that_nobody_closed_is_whole_when_the_kernel_has_ended(tmp_path):
    late = """
    import threading, time
    def write():
        time.sleep(0.3)
        open('thread.txt', 'w').write('late')
    threading.Thread(target=write).start()
    """
    with Notebook(folder=tmp_path) as notebook:
        notebook.run("file = open('open.txt', 'w'); file.write('last words'); file")
        notebook.run("knot = [open('knot.txt', 'w')]; knot.append(knot); knot[0].write('tied')")
        notebook.run("import atexit; atexit.register(lambda: open('atexit.txt', 'w').write('done'))")
        notebook.run(late)
        assert notebook.kernel.close(grace=120) == 0
    texts = [(tmp_path / name).read_text() for name in ("open.txt", "knot.txt", "atexit.txt", "thread.txt")]
    assert texts == ["last words", "tied", "done", "late"]


# What cells do


def test_processes_and_threads_that_cells_start_print_into_the_notebook():
    code = """
    import multiprocessing, subprocess, threading
    def tell(n):
        print(f"fork {n}")
    pool = multiprocessing.get_context("fork").Pool(2)
    pool.map(tell, range(3)); pool.close(); pool.join()
    thread = threading.Thread(target=print, args=["thread"]); thread.start(); thread.join()
    subprocess.run(["echo", "subprocess"])
    print(multiprocessing.get_context("spawn").Pool(1).map(abs, [-7]))
    """
    with Notebook() as notebook:
        words = re.findall(r"fork \d|thread|subprocess|\[7\]", notebook.run(code).text)
    assert sorted(words) == ["[7]", "fork 0", "fork 1", "fork 2", "subprocess", "thread"]


def test_a_spawned_process_finds_the_modules_beside_the_notebook(tmp_path):
    (tmp_path / "beside.py").write_text("def double(x):\n    return 2 * x\n")
    code = "import beside, multiprocessing as mp; mp.get_context('spawn').Pool(1).map(beside.double, [21])"
    with Notebook(HEAVY, folder=tmp_path) as notebook:  # whose server has imported multiprocessing elsewhere
        assert notebook.run(code).value == [42]


def test_data_loader_workers_run_and_print():
    code = """
    import torch
    class Data(torch.utils.data.Dataset):
        def __len__(self): return 8
        def __getitem__(self, i):
            print(f"item {i}")
            return torch.tensor(i)
    sum(int(batch.sum()) for batch in torch.utils.data.DataLoader(Data(), batch_size=2, num_workers=2))
    """
    with Notebook(HEAVY) as notebook:
        said = notebook.run(code)
    assert said.value == 28
    assert sorted(re.findall(r"item \d", said.text)) == [f"item {i}" for i in range(8)]


def test_the_last_words_of_native_code_come_before_the_end_of_the_cell():
    with Notebook() as notebook:
        for n in range(100):
            said = notebook.run(f"import os; os.system('echo {n} é; echo error >&2')\nNone")
            assert sorted(said.text.splitlines()) == [f"{n} é", "error"]


def test_output_of_native_code_is_captured():
    code = """
    import ctypes, os
    libc = ctypes.CDLL(None); libc.puts(b"from C"); libc.fflush(None)
    os.system("echo from a shell; echo an error >&2")
    """
    with Notebook() as notebook:
        assert sorted(notebook.run(code).text.split("\n"))[1:] == ["an error", "from C", "from a shell"]


def test_twenty_megabytes_of_text_arrive_whole():
    with Notebook() as notebook:
        text = notebook.run("print('0123456789abcde\\n' * 1_250_000, end='')").text
    assert text == "0123456789abcde\n" * 1_250_000


def test_an_interrupt_in_the_middle_of_a_long_text_harms_only_the_text():
    with Notebook() as notebook:
        cell = notebook.begin("print('begins')\nwhile True: print('x' * 1_000_000, flush=True)")
        notebook.wait_for_text("begins")  # before, it would not hear an interrupt
        time.sleep(0.5)  # the wire is full: the cell waits to be read
        notebook.kernel.interrupt()
        assert notebook.end(cell).errors == ["KeyboardInterrupt"]
        assert notebook.run("1 + 1").value == 2


def test_a_child_that_is_killed_while_it_prints_harms_nobody():
    code = """
    import multiprocessing, time
    def shout():
        while True: print("x" * 1_000_000, flush=True)
    children = [multiprocessing.get_context("fork").Process(target=shout) for _ in range(4)]
    for child in children: child.start()
    time.sleep(0.5)
    for child in children: child.kill()
    for child in children: child.join()
    print("over")
    """
    with Notebook() as notebook:
        cell = notebook.begin(textwrap.dedent(code))
        time.sleep(1.5)
        assert notebook.end(cell).text.endswith("over\n")
        assert notebook.run("1 + 1").value == 2


def test_comms_carry_binary_buffers_both_ways():
    code = """
    from comm import create_comm
    def echo(message):
        comm.send({"n": len(message["buffers"])}, buffers=[bytes(message["buffers"][0])[::-1]])
    comm = create_comm(target_name="test", buffers=[b"\\x00\\xff" * 3])
    comm.on_msg(echo)
    print(comm.comm_id)
    """
    with Notebook() as notebook:
        opened = notebook.run(code)
        assert [m["buffers"] for m in opened.messages if m["msg_type"] == "comm_open"] == [[b"\x00\xff" * 3]]
        comm = {"comm_id": opened.text.strip(), "data": {}}
        answer = notebook.end(notebook.send("comm_msg", comm, [b"abc"]))
    assert [m["buffers"] for m in answer.messages if m["msg_type"] == "comm_msg"] == [[b"cba"]]


def test_input_is_refused():
    with Notebook() as notebook:
        assert notebook.run("input('name? ')").errors == ["StdinNotImplementedError"]


@pytest.mark.parametrize(
    "sleep", ["import time; time.sleep(600)", "import asyncio; await asyncio.sleep(600)"]
)
@pytest.mark.parametrize("pause", [0, 0.5])  # the loop is just about to sleep, or sleeps
def test_an_interrupt_ends_a_cell_and_not_the_kernel(sleep, pause):
    with Notebook() as notebook:
        cell = notebook.begin(f"print('begins', flush=True); {sleep}")
        notebook.wait_for_text("begins")
        time.sleep(pause)
        notebook.kernel.interrupt()
        assert notebook.end(cell).errors[0] in ("KeyboardInterrupt", "CancelledError")
        assert notebook.run("1 + 1").value == 2


def test_an_interrupt_reaches_what_a_cell_has_started():
    code = "import subprocess; print('begins', flush=True); subprocess.run(['sleep', '600'])"
    with Notebook() as notebook:
        cell = notebook.begin(code)
        notebook.wait_for_text("begins")
        notebook.kernel.interrupt()
        assert notebook.end(cell).errors == ["KeyboardInterrupt"]


def test_a_crash_of_native_code_leaves_last_words():
    log = os.memfd_create("crash")
    with Notebook(crash_log=log) as notebook:
        notebook.run("import ctypes; ctypes.string_at(0)")
        assert (notebook.kernel.dead, notebook.kernel.wait(120)) == (True, -signal.SIGSEGV)
    words = os.pread(log, 4096, 0).decode()
    os.close(log)
    assert "Segmentation fault" in words and "ctypes" in words


def test_twenty_kernels_at_once():
    notebooks = [Notebook() for _ in range(20)]
    try:
        cells = [notebook.begin("import os, time; time.sleep(0.1); os.getpid()") for notebook in notebooks]
        pids = [notebook.end(cell).value for notebook, cell in zip(notebooks, cells, strict=True)]
        assert pids == [notebook.kernel.pid for notebook in notebooks]
        assert len(set(pids)) == 20
    finally:
        for notebook in notebooks:
            notebook.kernel.close()


# Who dies with whom


START_SLEEPER = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid)"


def test_nothing_outlives_a_kernel_that_is_closed():
    with Notebook() as notebook:
        sleeper = int(notebook.run(START_SLEEPER).text)
        assert is_alive(sleeper)
    wait_until(lambda: not is_alive(sleeper) and not is_alive(notebook.kernel.pid))


def test_nothing_outlives_a_driver_that_is_killed():
    code = f"""
    notebook = Notebook()
    print([notebook.kernel.pid, int(notebook.run({START_SLEEPER!r}).text)], flush=True)
    notebook.run("import time; time.sleep(600)")  # too busy to see that the driver is gone
    """
    with driver(code) as (process, read):
        kernel, sleeper = read()
        assert is_alive(kernel) and is_alive(sleeper)
        time.sleep(0.2)
        process.kill()
        wait_until(lambda: not is_alive(kernel) and not is_alive(sleeper))


def test_a_child_of_a_killed_driver_keeps_no_kernel_alive():
    code = """
    notebook = Notebook()
    if (child := os.fork()) == 0:
        time.sleep(600)
    print([notebook.kernel.pid, child], flush=True)
    notebook.run("import time; time.sleep(600)")
    """
    with driver(code) as (process, read):
        kernel, child = read()
        try:
            time.sleep(0.2)
            process.kill()
            wait_until(lambda: not is_alive(kernel))
            assert is_alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_nothing_outlives_a_server_that_is_killed(own_servers):
    with Notebook() as notebook:
        sleeper = int(notebook.run(START_SLEEPER).text)
        os.kill(describe_server(LIGHT, LINGER)["pid"], signal.SIGKILL)
        assert notebook.kernel.receive(_SILENCE) is None
        assert (notebook.kernel.dead, notebook.kernel.wait(_SILENCE)) == (True, -signal.SIGKILL)
        wait_until(lambda: not is_alive(sleeper) and not is_alive(notebook.kernel.pid))
    with Notebook() as after:
        assert after.run("1 + 1").value == 2


def test_a_server_ends_when_nobody_has_needed_it_for_a_while(own_servers):
    server = describe_server(LIGHT, 0.5)["pid"]
    wait_until(lambda: not is_alive(server))
    assert list(find_runtime_folder().glob("*.sock")) == []


def test_a_server_stays_as_long_as_somebody_holds_it(own_servers):
    with hold_server(LIGHT, 0.2) as server:
        time.sleep(1.5)
        assert describe_server(LIGHT, 0.2)["pid"] == server["pid"]


def test_a_spare_kernel_that_was_killed_is_not_given_to_anybody():
    with Notebook() as first:
        assert first.run("1").value == 1
        wait_until(lambda: describe_server(LIGHT, LINGER)["spare"])
        os.kill(spare := describe_server(LIGHT, LINGER)["spare"], signal.SIGKILL)
        wait_until(lambda: not is_alive(spare))
        with Notebook() as second:
            assert second.run("1 + 1").value == 2


# One server for all who want the same


def test_processes_that_begin_together_share_a_server(own_servers):
    with get_context("fork").Pool(4) as pool:
        servers = pool.starmap(describe_server, [(LIGHT, LINGER)] * 4)
    assert len({server["pid"] for server in servers}) == 1


def test_a_local_module_that_changes_on_disk_is_imported_anew(own_servers, tmp_path):
    source = tmp_path / "my_local_module.py"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    source.write_text("value = 1")
    code = "import my_local_module, os; [my_local_module.value, os.getppid()]"
    with Notebook(("my_local_module",), environment=environment) as before:
        source.write_text("value = 22")
        with Notebook(("my_local_module",), environment=environment) as after:
            (old, its_server), (new, another_server) = before.run(code).value, after.run(code).value
    assert (old, new) == (1, 22)
    assert its_server != another_server


def test_a_package_that_is_installed_makes_a_new_server(own_servers, tmp_path):
    packages = tmp_path / "site-packages"
    (packages / "some_package").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    pid = "import os; os.getppid()"
    with Notebook(environment=environment) as before, Notebook(environment=environment) as same:
        (packages / "another_package").mkdir()
        with Notebook(environment=environment) as after:
            servers = [notebook.run(pid).value for notebook in (before, same, after)]
    assert servers[0] == servers[1] != servers[2]


def test_another_start_environment_is_another_server(own_servers):
    with Notebook() as one, Notebook(environment={**os.environ, "PYTHONHASHSEED": "7"}) as other:
        assert other.run("import sys; int(sys.flags.hash_randomization)").value == 1
        assert one.run("import os; os.getppid()").value != other.run("import os; os.getppid()").value


# When a fork would not do


HAZARDS = {
    "threads run in the kernel server": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=[600], daemon=True).start()",
    "has initialised CUDA": "import os\nos.makedirs('{0}/dev/nvidia', exist_ok=True)\n"
    "device = open('{0}/dev/nvidia/0', 'w')",
    "has opened a ZeroMQ context": "import zmq; zmq.Context.instance()",
}


@pytest.mark.parametrize("reason", HAZARDS)
def test_a_module_that_makes_a_fork_unsafe_is_a_reason_not_to_fork(own_servers, tmp_path, reason):
    (tmp_path / "hazard.py").write_text(HAZARDS[reason].format(tmp_path))
    with pytest.raises(NoWarmKernel, match=reason):
        Notebook(("hazard",), 2.0, environment={**os.environ, "PYTHONPATH": str(tmp_path)})


def test_a_module_that_can_t_be_imported_is_named_and_left_out(own_servers, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise SystemExit('not today')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    failed = describe_server(("broken", "json", "no_such_module"), 2.0)["failed"]
    assert failed["broken"] == "SystemExit: not today"
    assert failed["no_such_module"].startswith("ModuleNotFoundError")
    assert "json" not in failed


def test_a_server_that_can_t_start_says_why(own_servers, tmp_path):
    (tmp_path / "fatal.py").write_text("import os, sys; sys.stderr.write('out of luck\\n'); os._exit(3)")
    with pytest.raises(NoWarmKernel, match="did not start: out of luck"):
        Notebook(("fatal",), environment={**os.environ, "PYTHONPATH": str(tmp_path)})


@pytest.mark.parametrize(
    "spoil", [lambda folder: folder.chmod(0o755), lambda folder: os.chown(folder, 12345, -1)]
)
def test_a_runtime_folder_that_others_may_enter_is_refused(own_servers, spoil):
    folder = find_runtime_folder()
    try:
        spoil(folder)
    except PermissionError:
        pytest.skip("only root can give a folder away")
    with pytest.raises(NoWarmKernel, match="must be yours, with mode 700"):
        Notebook()


def test_a_runtime_folder_with_a_long_name_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(NoWarmKernel, match="too long for the name of a socket"):
        Notebook()


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Notebook(folder=tmp_path / "nowhere")
