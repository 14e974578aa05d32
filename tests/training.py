"""A training that is killed again and again: python training.py FOLDER SEED N_KILLS"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}  # a process with threads must not be forked

import numpy as np
import torch

from scalekit.checkpoints import checkpoint
from scalekit.snapshot import take_random
from scalekit.store import Store

N_STEPS = 40


def train(report: Path) -> None:
    "Dropout, shuffling and noise draw from every stream of random numbers"
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), torch.nn.BatchNorm1d(16),
                                torch.nn.Linear(16, 1))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, N_STEPS)
    data = torch.utils.data.TensorDataset(torch.rand(64, 8))
    loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    rng, history = np.random.default_rng(4), []
    slot = checkpoint(model=model, optimizer=optimizer, schedule=schedule, rng=rng, history=history,
                      goal="minimize loss")  # fmt: skip
    with open(report.with_suffix(".steps"), "a") as file:
        file.write(f"{slot.step}\n")
    for step in range(slot.step, N_STEPS):
        for (x,) in loader:
            y = x.sum(1, keepdim=True) * random.random() + float(np.random.normal()) + rng.random()
            loss = ((model(x) - y) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        history.append(loss.item())
        with open(report.with_suffix(".beats"), "a") as file:
            file.write(".")
        slot.save(step + 1, loss=loss)
    content = [model.state_dict(), optimizer.state_dict(), history, rng.random(), take_random()]
    torch.set_printoptions(precision=20, threshold=10**9)
    np.set_printoptions(threshold=10**9)
    report.write_text(hashlib.sha256(repr(content).encode()).hexdigest())


def wait_for_beats(report: Path, n_before: int, n_more: int, pid: int) -> None:
    "Wait for a training to come some steps further, or to its end, however slow the machine is"
    beats = report.with_suffix(".beats")
    while _count(beats) < n_before + n_more and not os.waitid(
        os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
    ):
        time.sleep(0.001)


def _count(beats: Path) -> int:
    return beats.stat().st_size if beats.exists() else 0


def train_until_done(folder: Path, chance: random.Random, n_kills: int) -> dict:
    "Kill the training `n_kills` times, at any moment of any step; then let it end"
    os.environ["SCALEKIT_BUNDLE"] = str(Store(folder / "runs").create_run({"notebook": "train.ipynb"}).path)
    report, killed = folder / f"report-{n_kills}", 0
    assert len(os.listdir("/proc/self/task")) == 1
    while True:
        n_before = _count(report.with_suffix(".beats"))
        if (pid := os.fork()) == 0:
            train(report)
            os._exit(0)
        if killed < n_kills:
            wait_for_beats(report, n_before, chance.choice([0, 1, 2, 3, 4]), pid)
            time.sleep(chance.uniform(0, 0.01))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
        if os.WIFEXITED(status):
            starts = list(map(int, report.with_suffix(".steps").read_text().split()))
            return {"killed": killed, "starts": starts, "digest": report.read_text(), "exit": status}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    place, seed = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    print(json.dumps([train_until_done(place, seed, n) for n in (0, int(sys.argv[3]))]))
