"""How long the first word takes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from figures import Figure, pair, seconds

SCALEKIT = str(Path(sys.executable).with_name("scalekit"))


def measure() -> Iterator[Figure]:
    def python(code: str):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    with_it, without = pair(python("import scalekit"), python("pass"), 15)
    extra = sorted(w - o for w, o in zip(with_it, without, strict=True))[7]
    yield Figure("import scalekit, beyond the start of Python", seconds(extra), "", extra, "under 100 ms")
    shown, _ = pair(
        lambda: subprocess.run([SCALEKIT, "--help"], capture_output=True, check=True), python("pass"), 15
    )
    yield Figure(
        "scalekit --help, as a whole process", seconds(sorted(shown)[7]), "", sorted(shown)[7], "under 300 ms"
    )
