"""What a machine says it has: control groups, GPUs by NVML, and the array library that fits."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from scalekit.arrays import NotAnArray, array_module
from scalekit.devices import (
    NoGpu,
    _memory_limits,
    _quotas,
    list_cores,
    list_gpus,
    n_cores,
    require_gpus,
    total_memory,
)

pytest_plugins = "gpusim.fixtures"


@pytest.fixture
def machine(tmp_path):
    "Function that lays out files of a machine: path -> text"

    def lay_out(**files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return tmp_path

    return lay_out


# Cores and memory


def run(code, **environ):
    "What `code` prints in a Python of its own"
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=os.environ | environ, capture_output=True, text=True, check=True
    ).stdout


def test_affinity_limits_the_cores():
    one = list_cores()[:1]
    pinned = f"import os; os.sched_setaffinity(0, {one});"
    assert run(f"{pinned} from scalekit.devices import *; print(n_cores(), list_cores())") == f"1 {one}\n"


def test_what_this_machine_has_is_within_its_hardware():
    assert 1 <= n_cores() <= len(list_cores()) <= os.cpu_count()
    assert 2**26 < total_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_tightest_control_group_above_counts(machine):
    system = machine(
        **{
            "proc/self/cgroup": "0::/jobs/7/step\n",
            "sys/fs/cgroup/jobs/7/step/cpu.max": "max 100000\n",
            "sys/fs/cgroup/jobs/7/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/jobs/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/jobs/7/memory.max": "max\n",
            "sys/fs/cgroup/jobs/memory.max": "4096\n",
        }
    )
    assert list(_quotas(system)) == [3, 4]  # 2.5 cores are worth three workers
    assert list(_memory_limits(system)) == [4096]


def test_control_groups_of_version_1_count_too(machine):
    system = machine(
        **{
            "proc/self/cgroup": "7:memory:/box\n3:cpu,cpuacct:/box\n1:name=systemd:/\n0::/\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "4096\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        }
    )
    assert list(_quotas(system)) == [1]
    assert min(_memory_limits(system)) == 4096


def test_a_container_that_reads_its_hosts_path_finds_its_own_root(machine):
    system = machine(
        **{
            "proc/self/cgroup": "0::/docker/3f2a\n",
            "sys/fs/cgroup/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/memory.max": "8192\n",
        }
    )
    assert (list(_quotas(system)), list(_memory_limits(system))) == ([2], [8192])


def test_without_control_groups_nothing_limits(tmp_path):
    assert (list(_quotas(tmp_path)), list(_memory_limits(tmp_path))) == ([], [])


# GPUs

LIST = """
    from dataclasses import asdict
    from scalekit.devices import list_gpus
    report(gpus=[asdict(gpu) for gpu in list_gpus()])
"""
REQUIRE = """
    from scalekit.core import ScaleKitError
    from scalekit.devices import list_gpus, require_gpus
    found = {}
    for function in (require_gpus, list_gpus):
        try:
            found[function.__name__] = [gpu.entry for gpu in function()]
        except ScaleKitError as error:
            found[function.__name__] = f"{type(error).__name__}: {error}"
    report(**found)
"""


def test_gpus_tell_what_they_are(run_on_gpus):
    gpus = run_on_gpus(LIST, n_gpus=2, memory_mib=1024, name="H100", affinity="0-2,5;3")["gpus"]
    assert gpus[0] == {
        "index": 0,
        "uuid": "GPU-51b00000-0000-4000-8000-000000000000",
        "name": "H100",
        "memory": 2**30,
        "cores": [0, 1, 2, 5],
        "entry": "0",
    }
    assert (gpus[1]["entry"], gpus[1]["cores"]) == ("1", [3])


@pytest.mark.parametrize(
    "visible, entries",
    [
        ("2,0", ["2", "0"]),
        (" 3 , 1 ", ["3", "1"]),
        ("1,", ["1"]),
        ("GPU-51b00002-0000-4000-8000-000000000000,1", ["GPU-51b00002-0000-4000-8000-000000000000", "1"]),
        ("GPU-51b00003", ["GPU-51b00003-0000-4000-8000-000000000000"]),
    ],
)
def test_cuda_visible_devices_chooses_in_its_order(run_on_gpus, visible, entries):
    assert [gpu["entry"] for gpu in run_on_gpus(LIST, visible=visible)["gpus"]] == entries


def test_each_mig_instance_is_a_gpu_with_its_own_memory(run_on_gpus):
    gpus = run_on_gpus(LIST, n_gpus=2, mig=2, memory_mib=1024)["gpus"]
    assert [(gpu["index"], gpu["memory"]) for gpu in gpus] == [(0, 2**29), (0, 2**29), (1, 2**29), (1, 2**29)]
    assert all(gpu["entry"] == gpu["uuid"] and gpu["uuid"].startswith("MIG-") for gpu in gpus)
    uuid = gpus[2]["uuid"]
    assert [gpu["uuid"] for gpu in run_on_gpus(LIST, n_gpus=2, mig=2, visible=uuid)["gpus"]] == [uuid]
    assert len(run_on_gpus(LIST, n_gpus=2, mig=2, visible="1")["gpus"]) == 2


def test_a_card_with_mig_switched_off_is_whole(run_on_gpus):
    assert [gpu["entry"] for gpu in run_on_gpus(LIST, n_gpus=2, mig=0)["gpus"]] == ["0", "1"]


def test_what_a_gpu_does_not_support_stays_unknown(run_on_gpus):
    (gpu,) = run_on_gpus(LIST, n_gpus=1, no_memory_info=1, no_affinity=1)["gpus"]
    assert (gpu["memory"], gpu["cores"]) == (None, [])


@pytest.mark.parametrize(
    "knobs, sentence",
    [
        ({"n_gpus": 0}, "NoGpu: .*the NVIDIA driver answers and has no GPU to give. In a container"),
        ({"init_error": 9}, "NoGpu: .*the NVIDIA driver does not answer: Driver Not Loaded. nvidia-smi"),
        ({"init_error": 999}, "NoGpu: .*the NVIDIA driver does not answer: Unknown Error"),
        ({"visible": ""}, "NoGpu: .*CUDA_VISIBLE_DEVICES='' hides 4 GPUs. Unset it, or use profile 'cpu'"),
        ({"visible": "-1"}, "NoGpu: .*CUDA_VISIBLE_DEVICES='-1' hides 4 GPUs"),
        ({"visible": "0,7"}, "UnknownGpu: .*='0,7' must name GPUs .* got '7'. There are: 0, 1, 2, 3"),
        ({"visible": "1,1"}, "UnknownGpu: .*each once, got '1'"),
        ({"visible": "GPU-51b"}, "UnknownGpu: .*got 'GPU-51b'"),
        ({"visible": "gpu0"}, "UnknownGpu: .*got 'gpu0'"),
    ],
)
def test_why_there_is_no_gpu_is_one_sentence(run_on_gpus, knobs, sentence):
    found = run_on_gpus(REQUIRE, **knobs)
    assert "\n" not in found["require_gpus"]
    assert re.match(sentence, found["require_gpus"])
    assert found["list_gpus"] == ([] if sentence.startswith("NoGpu") else found["require_gpus"])


def test_without_a_driver_the_sentence_says_so(tmp_path):
    (tmp_path / "libnvidia-ml.so.1").touch()  # hides a real one, and is none
    code = "from scalekit.devices import *\ntry: require_gpus()\nexcept NoGpu as error: print(error)"
    sentence = "no NVIDIA driver (libnvidia-ml.so.1) was found. nvidia-smi must list a GPU first"
    assert sentence in run(code, LD_LIBRARY_PATH=str(tmp_path))


def test_without_pynvml_the_sentence_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert list_gpus() == []
    with pytest.raises(NoGpu, match="nvidia-ml-py, which finds GPUs, is missing: pip install nvidia-ml-py"):
        require_gpus()


def test_usage_is_read_for_visible_gpus_only_and_in_order(run_on_gpus):
    facts = run_on_gpus(
        """
        from scalekit.devices import gpu_usage
        report(rows=[(row.gpu.entry, row.utilization, row.memory) for row in gpu_usage()])
    """,
        visible="3,1",
        utilization="10;20;30;40",
        used_mib="1;2;3;4",
    )
    assert facts["rows"] == [["3", 40, 4 << 20], ["1", 20, 2 << 20]]


def test_looking_for_gpus_makes_no_cuda_call_and_leaves_nvml(run_on_gpus, tmp_path):
    trace = tmp_path / "trace"
    run_on_gpus(
        """
        from scalekit.devices import cuda_version, gpu_usage, list_gpus
        report(n=len(list_gpus()), usage=len(gpu_usage()), cuda=cuda_version())
    """,
        trace=trace,
    )
    calls = [line.split()[1:] for line in trace.read_text().splitlines()]
    assert {library for library, _ in calls} == {"nvml"}
    assert calls[-1] == ["nvml", "nvmlShutdown"]


def test_devices_load_no_heavy_library():
    code = "import sys, scalekit.devices; print({'dask', 'numpy', 'torch', 'pynvml'} & {*sys.modules})"
    assert run(code).strip() == "set()"


# Arrays


def test_an_array_leads_to_its_library():
    import dask.array as da

    assert array_module(np.ones(2)).__name__ == "array_api_compat.numpy"
    assert array_module(torch.ones(2), torch.ones(3)).__name__ == "array_api_compat.torch"
    assert array_module(da.ones(2)).__name__ == "array_api_compat.dask.array"


def test_without_an_array_and_a_gpu_numpy_serves(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert array_module().__name__ == "array_api_compat.numpy"


@pytest.mark.parametrize(
    "arrays, kinds",
    [
        (([1, 2],), "builtins.list"),
        ((np.ones(2), torch.ones(2)), "numpy.ndarray, torch.Tensor"),
    ],
)
def test_what_is_no_array_is_refused_in_one_sentence(arrays, kinds):
    with pytest.raises(NotAnArray, match=f"must get arrays of one library .* got {kinds}. Wrap numbers"):
        array_module(*arrays)
