"""A real Jupyter kernel, whose requests say which cell they come from, as JupyterLab's do."""

import time
from collections.abc import Iterator
from typing import Any

from jupyter_client import KernelManager


class Kernel:
    "A kernel as JupyterLab sees it"

    def __enter__(self) -> "Kernel":
        self._manager = KernelManager()
        self._manager.start_kernel()
        self._client = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=120)
        return self

    def __exit__(self, *about: object) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def run(
        self,
        code: str,
        cell: str = "",  # Its id; empty as from a client that has no cells
    ) -> dict[str, Any]:  # Content of its last messages, by kind
        "Run code, which must not fail"
        heard = {}
        for message in self._hear(code, cell):
            heard[message["msg_type"]] = message["content"]
        assert "error" not in heard, "\n".join(heard["error"]["traceback"])
        return heard

    def overhear(
        self,
        code: str,
        kind: str,  # Of message, for example `comm_msg`
    ) -> list[dict[str, Any]]:
        "Content of what the kernel says while it runs code, whoever asked for it"
        return [message["content"] for message in self._hear(code) if message["msg_type"] == kind]

    def _hear(self, code: str, cell: str = "") -> Iterator[dict[str, Any]]:
        session = self._client.session
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
        }
        request = session.msg("execute_request", content, metadata={"cellId": cell} if cell else {})
        self._client.shell_channel.send(request)
        while True:
            message = self._client.get_iopub_msg(timeout=120)
            own = message["parent_header"].get("msg_id") == request["header"]["msg_id"]
            if own or message["msg_type"] == "comm_msg":
                yield message
            if own and message["content"].get("execution_state") == "idle":
                return

    def settles(
        self,
        expression: str,
        value: Any,
        seconds: float = 120,
    ) -> bool:
        "Whether an expression has a value before long"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.run(expression)["execute_result"]["data"]["text/plain"] == repr(value):
                return True
            time.sleep(0.05)
        return False
