"""Fixtures that every test may use, and the rule that a skip needs a known reason."""

import os
import re
from pathlib import Path

import pytest

# Threads that wait for work sleep instead of spinning: with several processes on few cores, spinning costs tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "agg")

ROOT = Path(__file__).resolve().parent.parent

# A test may be skipped for these reasons only; any other skip fails the run, so that nothing falls silent unnoticed.
KNOWN_REASONS = (
    r"real data set \S+ is not on this machine",
    r"sentence encoder \S+ is not installed",
    r"chromium is not installed",
    r"needs a small file system",
    r"needs CUDA",
    r"ipykernel \S+ cannot be installed",
    r"left out of the fast tier",
    r"notebook with skip_exec",
)


def pytest_addoption(parser: pytest.Parser):
    parser.addoption("--data-dir", help="folder of real data sets (default: the setting data_dir)")
    parser.addoption("--fast", action="store_true", help="leave out tests marked slow or browser")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]):
    if config.getoption("--fast"):
        left_out = pytest.mark.skip(reason="left out of the fast tier")
        for item in items:
            if item.get_closest_marker("slow") or item.get_closest_marker("browser"):
                item.add_marker(left_out)


@pytest.fixture(scope="session")
def data_folder(request) -> Path | None:
    "The folder of real data sets: `--data-dir`, or the setting data_dir."
    from tljupyter.settings import load_settings

    given = request.config.getoption("--data-dir")
    folder = Path(given).resolve() if given else (request.config.rootpath / load_settings().data_dir)
    return folder if folder.is_dir() else None


class RealData:
    "`data_dir / name` is the folder of a real data set; the test is skipped where it is absent."

    def __init__(self, folder: Path | None):
        self.folder = folder

    def __truediv__(self, name: str) -> Path:
        if self.folder is None or not (self.folder / name).exists():
            pytest.skip(f"real data set {name.split('/')[0]} is not on this machine")
        return self.folder / name


@pytest.fixture(scope="session")
def data_dir(data_folder) -> RealData:
    return RealData(data_folder)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    "No test writes into the user's cache or runs folder."
    monkeypatch.setenv("TLJUPYTER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TLJUPYTER_RUNS_DIR", str(tmp_path / "runs"))


def unexpected(report: pytest.TestReport) -> str | None:
    "The reason of a skip that is not among the known ones."
    if not report.skipped or not isinstance(report.longrepr, tuple):
        return None
    reason = report.longrepr[2].removeprefix("Skipped: ")
    return None if any(re.match(known, reason) for known in KNOWN_REASONS) else reason


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if reason := unexpected(report):
        report.outcome, report.longrepr = "failed", f"skipped for an unknown reason: {reason}"
