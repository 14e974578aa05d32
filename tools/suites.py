"""Run the test suites of nbclient and papermill on stock kernels and on warm ones, and compare.

The tests come from the source releases of the versions that are installed here, so this needs the network
once. They run in an environment of their own that sees this one's packages; everything stays in build/suites.
A test that ends otherwise than on stock kernels is tried once more, for some are timed.
`python tools/suites.py` fails if a difference remains.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

folder = Path(__file__).resolve().parents[1] / "build" / "suites"
python = folder / "env" / "bin" / "python"

suites = {"nbclient": "tests", "papermill": "papermill/tests"}  # Project -> where its tests are
needs = ["nbclient[test]", "papermill[all]", "boto3", "moto", "pytest-env", "pytest-mock"]  # by these tests
provisioners = {"stock": "local-provisioner", "warm": "scalekit"}
settings = ["addopts=", "filterwarnings=", "asyncio_default_fixture_loop_scope=function"]
options = ["-q", "-p", "no:cacheprovider", "-p", "count_kernels", *(f"--override-ini={s}" for s in settings)]

# A kernel that could not be forked would be a stock one, and the comparison worth nothing: so we count.
counter = """
from scalekit.kernels import provisioner

n, start = 0, provisioner.start_plain_kernel


def count(*args):
    global n
    kernel = start(*args)
    n += 1
    return kernel


def pytest_configure(config):
    provisioner.start_plain_kernel = count


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{n} warm kernels")
"""


def make_environment() -> None:
    "An environment on top of this one, with what the suites need"
    here = sysconfig.get_path("purelib")
    packages = folder / "env" / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    if not python.exists():
        venv.create(folder / "env")
        (packages / "_base.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    (packages / "count_kernels.py").write_text(counter)
    pins = [f"{name}=={version(name)}" for name in suites]
    subprocess.run([python, "-m", "pip", "install", "-q", *needs, *pins], check=True)


def fetch(
    project: str,  # On PyPI; as installed here
) -> Path:  # Its source, unpacked
    "Download a source release, unless it is here already"
    source = folder / f"{project}-{version(project)}"
    if not source.exists():
        which = ["--no-deps", "--no-binary", ":all:", f"{project}=={version(project)}"]
        subprocess.run([python, "-m", "pip", "download", "-q", "-d", folder, *which], check=True)
        with tarfile.open(folder / f"{source.name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return source


def run(
    project: str,  # Name of the suite
    kind: str,  # "stock" or "warm"
    tests: list[str],  # Files, folders or test ids
) -> dict[str, str]:  # Test id -> "passed", "skipped" or "failed"
    "Run tests of one suite on one kind of kernel, and print pytest's last lines"
    report = folder / f"{project}-{kind}.xml"
    with tempfile.TemporaryDirectory() as runtime:  # servers of its own, and a short path for sockets
        environment = os.environ | {
            "JUPYTER_DEFAULT_PROVISIONER_NAME": provisioners[kind],
            "XDG_RUNTIME_DIR": runtime,
            "PATH": f"{python.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        command = [python, "-m", "pytest", *options, f"--junitxml={report}", *tests]
        ended = subprocess.run(command, cwd=fetch(project), env=environment, capture_output=True, text=True)
    told = [line for line in ended.stdout.splitlines() if re.match(r"FAILED|\d+ (warm|passed|failed)", line)]
    print(f"{project}, {kind}:", *told, sep="\n    ", flush=True)
    return dict(read(report))


def read(
    report: Path,  # Written by `pytest --junitxml`
) -> list[tuple[str, str]]:
    "Tests and how they ended"
    ends = {"failure": "failed", "error": "failed", "skipped": "skipped"}  # By element inside the test's own
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        end = next((ends[inner.tag] for inner in case if inner.tag in ends), "passed")
        found.append((f"{case.get('classname')}::{case.get('name')}", end))
    return found


def compare(
    project: str,  # Name of the suite
) -> list[str]:  # Tests that end otherwise on warm kernels, twice
    "Run a suite on both kinds of kernels"
    tests = [suites[project]]
    stock, warm = run(project, "stock", tests), run(project, "warm", tests)
    different = [test for test in stock if warm.get(test) != stock[test]]
    if different:
        names = {test.rpartition("::")[2].partition("[")[0] for test in different}
        warm |= run(project, "warm", [*tests, "-k", " or ".join(sorted(names))])
    different = [test for test in different if warm.get(test) != stock[test]]
    return [f"{test}: {stock[test]}, warm: {warm.get(test)}" for test in different]


def main() -> None:
    folder.mkdir(parents=True, exist_ok=True)
    make_environment()
    different = [line for project in suites for line in compare(project)]
    print(*different or ["Every test ends on warm kernels as on stock ones."], sep="\n")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
