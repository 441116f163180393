"""pytest runs every notebook in nbs/ as one test, by nbdev's own rules.

An exported cell runs here as notebook source, so coverage would not see the module that it becomes. The shell is
therefore told to compile such a cell under the module's file name and line numbers.
"""

import ast
import re
import signal
from functools import cache
from pathlib import Path

import pytest
from execnb.shell import CaptureShell
from fastcore.nbio import read_nb
from nbdev.config import get_config
from nbdev.test import test_nb as run_notebook

ROOT = Path(__file__).resolve().parent.parent
FLAGS = get_config(ROOT).tst_flags.split()
MARK = re.compile(r"# %% \S+\.ipynb #(\S+)$")
# Rooms whose notebooks train networks, and single ones that do or that take seconds for other reasons; the fast tier leaves them out.
SLOW = (
    *("explain", "how_to", "tutorials", "api/evidence", "api/figures", "api/transfer"),
    *("api/features/engines.ipynb", "api/handover/onnx.ipynb", "api/measures/thresholds.ipynb"),
    *(
        "api/reports/making.ipynb",
        "api/runs/live.ipynb",
        "api/widgets/monitor.ipynb",
        "api/widgets/result.ipynb",
    ),
)


def pytest_collect_file(file_path: Path, parent: pytest.Collector):
    if file_path.suffix == ".ipynb" and not file_path.name.startswith((".", "_")):
        return NotebookFile.from_parent(parent, path=file_path)


class NotebookFile(pytest.File):
    def collect(self):
        yield NotebookItem.from_parent(self, name=self.path.stem)


class NotebookItem(pytest.Item):
    def __init__(self, **named):
        super().__init__(**named)
        inside = self.path.relative_to(ROOT / "nbs")
        if any(inside.is_relative_to(slow) for slow in SLOW):
            self.add_marker("slow")

    def runtest(self):
        handler = signal.getsignal(signal.SIGINT)  # nbdev replaces it by one that ends the process
        original = CaptureShell.__init__

        def with_module_lines(shell, *args, **kwargs):
            original(shell, *args, **kwargs)
            credit_modules(shell.compile, self.path)

        CaptureShell.__init__ = with_module_lines
        try:
            passed, seconds = run_notebook(self.path, skip_flags=FLAGS, force_flags=[], basepath=ROOT)
        finally:
            CaptureShell.__init__ = original
            signal.signal(signal.SIGINT, handler)
        if not passed:
            pytest.fail("the traceback of the failing cell is above", pytrace=False)
        if not seconds:
            pytest.skip("notebook with skip_exec in its front matter")

    def reportinfo(self):
        return self.path, 0, str(self.path.relative_to(ROOT))


@cache
def module_places() -> dict[str, tuple[str, int]]:
    "Cell id -> (module file, line number of the cell's first exported line)."
    places = {}
    for module in (ROOT / "tljupyter").rglob("*.py"):
        for number, line in enumerate(module.read_text(encoding="utf-8").splitlines(), 1):
            if mark := MARK.match(line):
                places[mark[1]] = (str(module), number + 1)
    return places


def credit_modules(compiler, notebook: Path) -> None:
    "Make `compiler` give exported cells of `notebook` the file name and the lines of their module."
    places = module_places()
    by_source = {c.source.strip(): places[c.id] for c in read_nb(notebook).cells if c.id in places}
    name_cell, parse = compiler.cache, compiler.ast_parse
    shifts: dict[str, int] = {}

    def cache_cell(transformed, number=0, raw_code=None):
        usual = name_cell(transformed, number, raw_code)
        place = by_source.get((raw_code or "").strip())
        if place is None:
            return usual
        lines = raw_code.splitlines()
        directives = next(i for i, line in enumerate(lines) if line.strip() and not line.startswith("#|"))
        shifts[place[0]] = place[1] - directives - 1
        return place[0]

    def ast_parse(source, filename="<unknown>", symbol="exec"):
        tree = parse(source, filename, symbol)
        return ast.increment_lineno(tree, shifts[filename]) if filename in shifts else tree

    compiler.cache, compiler.ast_parse = cache_cell, ast_parse
