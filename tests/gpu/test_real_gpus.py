"""What only a real GPU can show. Run by `pytest -m gpu` where there is one, with an extra gpu12 or gpu13."""

import subprocess
import sys

import numpy as np
import pytest

from scalekit.arrays import array_module
from scalekit.cluster import open_cluster
from scalekit.devices import cuda_version, gpu_usage, list_gpus
from scalekit.profile import Profile

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


def test_gpus_are_those_of_nvidia_smi(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    query = ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [f"{gpu.index}, {gpu.uuid}, {gpu.name}" for gpu in list_gpus({})] == listed
    assert cuda_version() >= (12, 0)
    assert all(0 <= row.memory <= row.gpu.memory for row in gpu_usage())


def test_a_notebook_slot_leaves_its_whole_gpu_to_a_child():
    child = "import cupy; print(cupy.cuda.runtime.getDeviceCount(), float(cupy.arange(10).sum()))"

    def run_child():
        return subprocess.run(
            [sys.executable, "-c", child], capture_output=True, text=True, check=True
        ).stdout

    def has_context():
        from distributed.diagnostics.nvml import has_cuda_context

        return has_cuda_context().has_context

    with open_cluster("gpu", n_workers=1) as cluster:
        assert cluster.client.submit(run_child).result().split() == ["1", "45.0"]
        assert list(cluster.client.run(has_context).values()) == [False]


def test_data_slots_spill_and_come_back_whole():
    def fill(i):
        import cupy

        return cupy.full(2**20, i, dtype="uint8")

    profile = Profile("etl", kind="gpu", slots="data", workers=1, device_memory_limit="4 MiB")
    with open_cluster(profile) as cluster:
        arrays = cluster.client.map(fill, range(16))
        sums = cluster.client.gather([cluster.client.submit(lambda a: int(a.sum()), a) for a in arrays])
        (held,) = cluster.client.run(lambda dask_worker: len(dask_worker.data.device)).values()
    assert sums == [i * 2**20 for i in range(16)]
    assert held <= 4


def test_the_memory_pool_takes_its_share():
    pytest.importorskip("rmm")
    (total,) = {gpu.memory for gpu in list_gpus()[:1]}
    profile = Profile("etl", kind="gpu", slots="data", workers=1, rmm_pool_size=0.25)
    with open_cluster(profile) as cluster:
        assert cluster.usage()[0].gpu_memory >= total // 4


def test_the_best_array_module_is_cupy_and_computes_there():
    xp = array_module()
    x = xp.asarray(np.arange(10.0))
    assert xp.__name__ == "array_api_compat.cupy" and array_module(x) is xp
    assert float(xp.sum(x)) == 45.0
