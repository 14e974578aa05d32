"""The real LocalCUDACluster on simulated GPUs: see gpusim/README.md for what that can show."""

import re

import pytest

pytest_plugins = "gpusim.fixtures"
pytestmark = pytest.mark.timeout(300)

GPU = "GPU-51b0000{}-0000-4000-8000-000000000000".format
GIB = 2**30


# Slots for notebooks: the kernel owns the GPU


@pytest.fixture(scope="module")
def notebooks(run_on_gpus, tmp_path_factory):
    "What a cluster of notebook slots says about itself, on four GPUs in an order of our own"
    trace = tmp_path_factory.mktemp("trace") / "calls"
    facts = run_on_gpus(
        """
        import os, signal, time
        from dataclasses import asdict
        from distributed.diagnostics.nvml import has_cuda_context
        from scalekit.cluster import open_cluster
        from scalekit.profile import Profile
        from scalekit.workers import ClusterError

        def about(dask_worker):
            return {
                "name": dask_worker.name,
                "pid": os.getpid(),
                "visible": os.environ["CUDA_VISIBLE_DEVICES"],
                "order": os.environ["CUDA_DEVICE_ORDER"],
                "cores": sorted(os.sched_getaffinity(0)),
                "context": has_cuda_context().has_context,
                "store": type(dask_worker.data).__module__,
                "listens": dask_worker.address,
                "threads": dask_worker.state.nthreads,
            }

        def look():
            return [asdict(slot) for slot in cluster.slots]

        with open_cluster(Profile("lab", workers=3)) as cluster:
            type_name = type(cluster._local).__mro__[1].__name__
            workers = list(cluster.client.run(about).values())
            three, usage, page = look(), [asdict(row) for row in cluster.usage()], cluster._repr_html_()
            picture = cluster._repr_mimebundle_()["text/plain"]
            cluster.scale(4)
            four = look()
            try:
                cluster.scale(5)
            except ClusterError as error:
                refused = str(error)
            victim = cluster.slots[0]
            pid = cluster.client.run(os.getpid, workers=[victim.worker])[victim.worker]
            os.kill(pid, signal.SIGKILL)
            end = time.monotonic() + 120
            while time.monotonic() < end and (cluster.n_slots < 4 or victim in cluster.slots):
                time.sleep(0.1)
            replaced = look()
            cluster.scale(1)
            one = look()
        report(**{name: globals()[name] for name in
               "type_name workers three usage page picture four refused replaced one".split()})
        """,
        visible=f"3,1,{GPU(0)},2",
        affinity="0;0;0;1",
        utilization="10;20;30;40",
        used_mib="1;2;3;4",
        trace=trace,
    )
    return facts | {"calls": trace.read_text().splitlines()}


def gpus_of(slots):
    return sorted(slot["gpus"][0] for slot in slots)


def test_it_is_the_cluster_of_rapids(notebooks):
    assert notebooks["type_name"] == "LocalCUDACluster"


def test_workers_take_gpus_in_the_order_of_cuda_visible_devices(notebooks):
    assert gpus_of(notebooks["three"]) == sorted(["3", "1", GPU(0)])
    assert gpus_of(notebooks["four"]) == sorted(["3", "1", GPU(0), "2"])
    assert all(slot["worker"].startswith("tcp://127.0.0.1:") for slot in notebooks["four"])


def test_a_slot_names_its_gpu_by_uuid_too(notebooks):
    assert {slot["gpus"][0]: slot["uuids"] for slot in notebooks["four"]} == {
        "3": [GPU(3)],
        "1": [GPU(1)],
        GPU(0): [GPU(0)],
        "2": [GPU(2)],
    }


def test_a_notebook_sees_its_own_gpu_only_counted_as_nvml_does(notebooks):
    assert sorted(worker["visible"] for worker in notebooks["workers"]) == sorted(["3", "1", GPU(0)])
    assert all(worker["visible"] == worker["name"] for worker in notebooks["workers"])
    assert {worker["order"] for worker in notebooks["workers"]} == {"PCI_BUS_ID"}


def test_workers_run_on_the_cores_next_to_their_gpu(notebooks):
    near = {worker["visible"]: worker["cores"] for worker in notebooks["workers"]}
    assert near == {"3": [1], "1": [0], GPU(0): [0]}


def test_notebook_workers_keep_off_the_gpu(notebooks):
    assert not any(worker["context"] for worker in notebooks["workers"])
    assert not [call for call in notebooks["calls"] if " cuda " in call]
    assert {worker["threads"] for worker in notebooks["workers"]} == {1}
    assert not any("dask_cuda" in worker["store"] for worker in notebooks["workers"])


def test_gpu_use_is_shown(notebooks):
    shown = {row["gpus"][0]: (row["gpu_utilization"], row["gpu_memory"]) for row in notebooks["usage"]}
    assert shown == {"3": (40, 4 << 20), "1": (20, 2 << 20), GPU(0): (10, 1 << 20)}
    assert {row["gpu_memory_total"] for row in notebooks["usage"]} == {80 * GIB}
    assert "<td>40 %</td><td>4 MiB</td>" in notebooks["page"]
    heads, *rows = notebooks["picture"].splitlines()[3:]
    assert "GPU memory" in heads
    assert sorted(re.search(r"(\d+ %)\s+(\d MiB of 80 GiB)", row).groups() for row in rows) == [
        ("10 %", "1 MiB of 80 GiB"), ("20 %", "2 MiB of 80 GiB"), ("40 %", "4 MiB of 80 GiB"),
    ]  # fmt: skip


def test_scaling_beyond_the_gpus_is_one_sentence(notebooks):
    assert notebooks["refused"].endswith(
        f"each worker owns a GPU and there are 4, got n_workers = 5. There are: 3, 1, {GPU(0)}, 2"
    )


def test_a_killed_worker_comes_back_on_its_gpu(notebooks):
    assert gpus_of(notebooks["replaced"]) == gpus_of(notebooks["four"])
    assert {slot["worker"] for slot in notebooks["replaced"]} != {
        slot["worker"] for slot in notebooks["four"]
    }


def test_scaling_down_keeps_the_rest(notebooks):
    assert len(notebooks["one"]) == 1


# Slots for data: Dask tasks own the GPU


@pytest.fixture(scope="module")
def data(run_on_gpus, tmp_path_factory):
    "What a cluster of data slots says about itself, after its tasks have filled a GPU"
    stand_in = tmp_path_factory.mktemp("rmm")
    (stand_in / "rmm.py").write_text(RMM)
    sys_path = f"import sys; sys.path.insert(0, {str(stand_in)!r})"
    return run_on_gpus(
        f"""
        import os
        os.environ["PYTHONPATH"] = {str(stand_in)!r} + ":" + os.environ["PYTHONPATH"]  # for the workers
        {sys_path}
        import numpy as np
        from dask_cuda.utils import get_cluster_configuration
        from distributed import wait
        from distributed.diagnostics.nvml import has_cuda_context
        from gpusim.device_array import DeviceArray
        from scalekit.cluster import open_cluster
        from scalekit.devices import gpu_usage
        from scalekit.profile import Profile

        def about(dask_worker):
            import rmm
            context = has_cuda_context()
            return {{
                "visible": os.environ["CUDA_VISIBLE_DEVICES"],
                "context": context.has_context and context.device_info.uuid,
                "limit": dask_worker.data.device_buffer.n,
                "pool": rmm.told,
            }}

        def fill(i):
            return DeviceArray(np.full(2**20, i % 256))

        def where(dask_worker):
            store = dask_worker.data
            return [len(store.device), len(store.host)]

        profile = Profile("etl", kind="gpu", slots="data", workers=2, threads=2,
                          device_memory_limit="4 MiB", rmm_pool_size=0.25)
        with open_cluster(profile) as cluster:
            workers = list(cluster.client.run(about).values())
            slots = [[slot.gpus, slot.uuids] for slot in cluster.slots]
            mine = cluster.slots[0].worker
            before = [row.memory for row in gpu_usage()]
            arrays = cluster.client.map(fill, range(10), workers=[mine])
            wait(arrays)
            kept = cluster.client.run(where, workers=[mine])[mine]
            held = [row.memory for row in gpu_usage()]
            sums = cluster.client.gather([cluster.client.submit(lambda a: int(a.to_host().sum()), a)
                                          for a in arrays])
        report(workers=workers, slots=slots, before=before, kept=kept, held=held, sums=sums)
        """,
        visible="1,0",
        memory_mib=1024,
    )


RMM = """
told = {}
def reinitialize(**words):
    told.update(words)
"""


def test_data_workers_own_the_first_and_see_their_neighbours(data):
    assert sorted(worker["visible"] for worker in data["workers"]) == ["0,1", "1,0"]
    assert sorted(data["slots"]) == sorted(2 * [[["0"], [GPU(0)]], [["1"], [GPU(1)]]])


def test_each_data_worker_has_a_context_on_its_own_gpu(data):
    contexts = {worker["visible"]: worker["context"] for worker in data["workers"]}
    assert contexts == {"0,1": GPU(0), "1,0": GPU(1)}


def test_the_memory_pool_is_the_share_that_the_profile_names(data):
    pools = [worker["pool"] for worker in data["workers"]]
    assert [(pool["pool_allocator"], pool["initial_pool_size"]) for pool in pools] == 2 * [(True, 2**28)]


def test_what_exceeds_the_limit_spills_to_the_host_and_comes_back_whole(data):
    assert [worker["limit"] for worker in data["workers"]] == [2**22, 2**22]
    on_device, on_host = data["kept"]
    assert (on_device, on_host) == (4, 6)
    assert data["sums"] == [i * 2**20 for i in range(10)]


def test_what_a_task_holds_shows_in_nvml(data):
    assert sum(data["held"]) - sum(data["before"]) == 4 * 2**20


# Machines that are special


DESCRIBE = """
    from dataclasses import asdict
    from scalekit.cluster import open_cluster
    from scalekit.profile import Profile
    def limit(dask_worker):
        return getattr(getattr(dask_worker.data, "device_buffer", None), "n", None)
    with open_cluster(Profile("p", kind="gpu", slots={slots!r}, workers=2)) as cluster:
        limits = cluster.client.run(limit)
        report(slots=[asdict(slot) for slot in cluster.slots], limits=list(limits.values()))
"""


def test_a_mig_instance_passes_by_its_uuid_with_limits_of_its_own(run_on_gpus):
    facts = run_on_gpus(DESCRIBE.format(slots="data"), n_gpus=1, mig=2, memory_mib=1000, no_affinity=1)
    uuids = [slot["uuids"] for slot in facts["slots"]]
    assert [slot["gpus"] for slot in facts["slots"]] == uuids
    assert sorted(uuids) == [["MIG-51b00000-0000-4000-8000-" + f"{i:012x}"] for i in range(2)]
    assert facts["limits"] == 2 * [int(0.8 * 500 * 2**20)]


def test_chips_that_share_their_hosts_memory_have_no_limit(run_on_gpus):
    facts = run_on_gpus(DESCRIBE.format(slots="data"), n_gpus=2, no_memory_info=1)
    assert len(facts["slots"]) == 2 and facts["limits"] == [None, None]


def test_beyond_loopback_gpu_workers_talk_by_tls_and_their_pages_stay(run_on_gpus):
    facts = run_on_gpus("""
        from scalekit.cluster import open_cluster
        from scalekit.profile import Profile
        with open_cluster(Profile("team", kind="gpu", host="0.0.0.0", workers=1)) as cluster:
            pages = cluster.client.run(lambda dask_worker: dask_worker.http_server.address)
            report(addresses=[cluster.address, *pages], pages=list(pages.values()))
    """)
    assert {address[:6] for address in facts["addresses"]} == {"tls://"}
    assert facts["pages"] == ["127.0.0.1"]


def test_auto_takes_gpus_where_there_are_any_and_cores_where_they_are_hidden(run_on_gpus):
    script = """
        from scalekit.cluster import open_cluster
        with open_cluster("auto", n_workers=1) as cluster:
            report(gpus=[slot.gpus for slot in cluster.slots])
    """
    assert run_on_gpus(script)["gpus"] == [["0"]]
    assert run_on_gpus(script, visible="")["gpus"] == [[]]


# Mistakes, found before dask_cuda is imported


REFUSED = """
    import sys
    {before}
    from scalekit.core import ScaleKitError
    from scalekit.cluster import open_cluster
    from scalekit.profile import Profile
    try:
        open_cluster(Profile("lab", **{profile})).close()
        sentence = None
    except ScaleKitError as error:
        sentence = f"{{type(error).__name__}}: {{error}}"
    report(sentence=sentence, dask_cuda="dask_cuda" in sys.modules and sys.modules["dask_cuda"] is not None)
"""
DATA = {"kind": "gpu", "slots": "data", "workers": 1}


@pytest.mark.parametrize(
    "profile, machine, before, sentence",
    [
        ({"kind": "gpu"}, {"n_gpus": 0}, "", "NoGpu: .*has no GPU to give"),
        ({"kind": "gpu"}, {"init_error": 9}, "", "NoGpu: .*the NVIDIA driver does not answer"),
        ({"kind": "gpu"}, {"visible": ""}, "", "NoGpu: .*hides 4 GPUs"),
        ({"kind": "gpu"}, {"visible": "9"}, "", "UnknownGpu: .*got '9'. There are: 0, 1, 2, 3"),
        ({"kind": "auto"}, {"visible": "9"}, "", "UnknownGpu: .*got '9'"),
        ({"kind": "gpu", "workers": 5}, {}, "", "ClusterError: .*there are 4, got n_workers = 5"),
        (
            {"kind": "gpu"},
            {},
            'sys.modules["dask_cuda"] = None',
            r"ClusterError: profile 'lab': dask_cuda must be installed for workers on GPUs, and is not: "
            r"pip install 'scalekit\[gpu13\]'. Or use profile 'cpu'",
        ),
        (
            {"kind": "gpu"},
            {"cuda_version": 12040},
            'sys.modules["dask_cuda"] = None',
            r".*'scalekit\[gpu12\]'",
        ),
        (
            DATA | {"rmm_pool_size": 0.5},
            {},
            'sys.modules["rmm"] = None',
            ".*rmm must be .* pip install 'rmm-cu13'",
        ),
        (
            DATA | {"protocol": "ucx"},
            {},
            'sys.modules["distributed_ucxx"] = None',
            ".*'distributed-ucxx-cu13'",
        ),
        (
            DATA | {"device_memory_limit": 0.5},
            {"no_memory_info": 1},
            "",
            "ClusterError: profile 'lab': Simulated GPU shares the memory of its host: 0.5 is a share",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_starts_nothing(run_on_gpus, profile, machine, before, sentence):
    facts = run_on_gpus(REFUSED.format(profile=profile, before=before), **machine)
    assert re.match(sentence, facts["sentence"])
    assert "\n" not in facts["sentence"] and not facts["dask_cuda"]


# Ranks of a training


def test_each_rank_gets_the_gpu_of_its_own_worker(run_on_gpus):
    facts = run_on_gpus(
        """
        import os
        os.environ["SCALEKIT_PRELOAD"] = "torch"
        import scalekit as sk

        def train():
            world = sk.current_world()
            own = os.environ["CUDA_VISIBLE_DEVICES"].encode()
            return [text.decode() for text in world.control.gather("gpus", own)], os.environ["LOCAL_RANK"]

        if __name__ == "__main__":
            with sk.open_cluster("gpu", n_workers=2) as cluster:
                owned = {slot.gpus[0] for slot in cluster.slots}
                seen, local = sk.launch(train, n_ranks="all", cluster=cluster, quiet=True)
            report(owned=sorted(owned), seen=sorted(seen), local=local)
        """
    )
    assert facts["seen"] == facts["owned"] and len(set(facts["seen"])) == 2
    assert facts["local"] == "0"  # the only device that it sees
