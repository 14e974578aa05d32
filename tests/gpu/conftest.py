"""What tests on real GPUs share: a worker for each, and a look at their memory."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from processes import wait_until

import scalekit as sk
from scalekit.cluster import Cluster
from scalekit.devices import gpu_usage


@pytest.fixture(scope="module")
def team() -> Iterator[Cluster]:
    "One worker for each GPU, and CUDA in use in this process as it is in a notebook that has tried something"
    import torch

    torch.ones(1, device="cuda").sum().item()
    with sk.open_cluster("gpu") as cluster:
        yield cluster


def _most_used() -> int:  # [bytes]
    return max(row.memory for row in gpu_usage() if row.memory is not None)


@pytest.fixture
def memory_comes_back() -> Callable[[], AbstractContextManager[None]]:
    "Afterwards no GPU holds 256 MiB more than before; a process that was killed may need a moment"

    @contextmanager
    def watch() -> Iterator[None]:
        before = _most_used()
        yield
        wait_until(lambda: _most_used() < before + 2**28)

    return watch
