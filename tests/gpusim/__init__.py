"""GPUs for tests, without any: see README.md in this folder."""

import os
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent
LIBRARIES = {"libnvidia-ml.so.1": "nvml.c", "libcuda.so.1": "cuda.c"}


def build_gpusim(folder: Path) -> Path:
    "Compile both libraries into `folder`, which goes into LD_LIBRARY_PATH"
    for library, source in LIBRARIES.items():
        flags = ["-O1", "-shared", "-fPIC", "-fvisibility=hidden", f"-Wl,-soname,{library}"]
        subprocess.run(["cc", *flags, "-o", folder / library, SOURCES / source], check=True)
    return folder


def simulate_gpus(libraries: Path, state: Path, n_gpus: int = 4, **knobs: object) -> dict[str, str]:
    "Environment for a Python that finds `n_gpus` GPUs; `knobs` are variables of the README, without GPUSIM_"
    said = {"GPUS": n_gpus, "STATE": state} | {knob.upper(): value for knob, value in knobs.items()}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CUDA_", "GPUSIM_"))}
    return (
        kept
        | {f"GPUSIM_{key}": str(value) for key, value in said.items()}
        | {
            "LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":"),
            "PYTHONPATH": f"{SOURCES.parent}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
        }
    )
