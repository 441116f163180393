"""A real JupyterLab with real kernels, and a real Chromium, for tests marked `browser`.

How to use it:

    pytestmark = pytest.mark.browser

    def test_something(lab, tmp_path):
        notebook = lab.write("freeze", "from ... import ...", "tree = ...\\ntree")   # one text a code cell
        with lab.open(notebook) as page:          # the notebook, its kernel idle; `page.view` is Playwright's page
            page.run_all()                        # or page.run_all(wait=False) where a cell trains
            page.view.get_by_role("checkbox", name="stem").click()
            page.eventually("tree.plan.stages[0].frozen", lambda frozen: not frozen)   # asks the kernel until it is so
            page.theme("dark"); page.panel(390)   # 390: width of the cell outputs in pixels
            page.view.screenshot(path=tmp_path / "tree.png")
        # on leaving: no console error, no request to anywhere else, no failed cell; the kernel is shut down

`page.ask(EXPRESSION)` evaluates Python in the notebook's kernel while no cell runs and gives back JSON. `page.reload()`
is what F5 does, and `page.run_cell(SOURCE)` adds a cell and runs it. `page.overflowing()` and `page.faintest()` say
whether panels fit and can be read. `page.complaints`, `page.outside` and `page.failed_cells()` can be looked at any
time, and `lab.open(notebook, quiet=False)` leaves them to the test. `lab.rest(METHOD, PATH)` asks the server itself;
`lab.add_kernel` makes a kernel with packages of its own; `lab.runs` is where kernels put their runs.

Server and browser live as long as the tests of this folder: not longer, since Playwright's event loop would then
run under tests that start their own.
"""

import ast
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START = 90  # seconds a cold server may take on a busy machine
PATIENCE = 60_000  # milliseconds that a page may take to open, for the same reason

_SHOWN = "window.jupyterapp?.shell?.currentWidget?.sessionContext"
_READY = """async () => {
    await jupyterapp.started
    await jupyterapp.restored
    const panel = jupyterapp.shell.currentWidget
    await panel.context.ready
    await panel.sessionContext.ready
    await panel.sessionContext.session.kernel.info
}"""
_ADD_CELL = """source => {
    const { content } = jupyterapp.shell.currentWidget
    content.model.sharedModel.addCell({ cell_type: "code", source })
    content.activeCellIndex = content.widgets.length - 1
}"""
_ASK = """async code => {
    const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel
    const expression = { asked: `__import__("json").dumps(${code})` }
    const content = { code: "", silent: true, store_history: false, user_expressions: expression }
    const reply = await kernel.requestExecute(content).done
    return reply.content.user_expressions.asked
}"""
_FAILED = """() => jupyterapp.shell.currentWidget.content.model.toJSON().cells.flatMap(
    cell => (cell.outputs ?? []).filter(o => o.output_type == "error").map(o => `${o.ename}: ${o.evalue}`))"""

_OVERFLOWING = """() => [...document.querySelectorAll(".tl-panel")].map(panel => {
    const edge = panel.getBoundingClientRect().right + 1
    const scrolled = "pre, textarea"
    const over = [...panel.querySelectorAll("*")].filter(
        e => e.checkVisibility() && !e.closest(scrolled) && e.getBoundingClientRect().right > edge && !e.matches(".tl-unseen"))
    return over.map(e => e.className || e.tagName)
})"""
_FAINTEST = """() => {
    const brush = new OffscreenCanvas(1, 1).getContext("2d")
    const channels = colour => {
        brush.clearRect(0, 0, 1, 1)
        brush.fillStyle = colour
        brush.fillRect(0, 0, 1, 1)
        return brush.getImageData(0, 0, 1, 1).data
    }
    return [...document.querySelectorAll(".tl-panel :is(h3, p, li, span, strong, label, summary, code, pre, button, option)")]
    .filter(e => e.checkVisibility() && !e.disabled && [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())).map(e => {
    const clear = e => getComputedStyle(e).backgroundColor.replaceAll(" ", "") == "rgba(0,0,0,0)"
    let behind = e
    while (clear(behind) && behind.parentElement) behind = behind.parentElement
    const luminance = rgb => [...rgb].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0)
    const ground = channels(getComputedStyle(behind).backgroundColor).slice(0, 3)
    const [r, g, b, share] = channels(getComputedStyle(e).color)
    const seen = luminance([r, g, b].map((c, at) => ground[at] + share / 255 * (c - ground[at]))), paper = luminance(ground)
    return [(Math.max(seen, paper) + 0.05) / (Math.min(seen, paper) + 0.05), e.textContent.slice(0, 40)]
}).sort((a, b) => a[0] - b[0])[0]
}"""


@pytest.fixture(scope="package")
def chromium():
    "A browser without a window."
    if not CHROMIUM.exists():
        pytest.skip("chromium is not installed")
    pytest.importorskip("playwright.sync_api", reason="chromium is not installed")
    with launched_chromium() as browser:
        yield browser


@contextlib.contextmanager
def launched_chromium() -> Iterator[Any]:
    "A browser, also for who measures."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=FLAGS)
        yield browser
        browser.close()


class LabPage:
    "One notebook in JupyterLab, in a browser context of its own."

    def __init__(self, lab: "Lab", context: Any, notebook: Path, quiet: bool):
        self.lab, self.context, self.notebook, self.quiet = lab, context, notebook, quiet
        self.view = context.new_page()
        self.complaints: list[str] = []  # errors on the console, and uncaught ones
        self.outside: list[str] = []  # requests to anywhere but the server
        self.view.set_default_timeout(20_000)
        self.view.on("console", self._heard)
        self.view.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.view.on("request", self._asked)

    def __enter__(self) -> "LabPage":
        try:
            self._open(f"{self.lab.url}/lab/tree/{self.notebook.name}?token={self.lab.token}&reset")
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and self.quiet:
                assert self.complaints == [], "errors on the console"
                assert self.outside == [], "requests to elsewhere"
                assert self.failed_cells() == [], "cells that failed"
        finally:
            self._leave()

    def _open(self, url: str) -> None:
        self.view.goto(url, timeout=PATIENCE, wait_until="domcontentloaded")
        self.ready()

    def _leave(self) -> None:
        self.context.close()
        for session in self.lab.rest("GET", "/api/sessions"):
            if session["path"] == self.notebook.name:
                self.lab.rest("DELETE", f"/api/sessions/{session['id']}")

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(f"{message.text} ({message.location.get('url', '')})")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.lab.url, "data:", "blob:", "about:")):
            self.outside.append(request.url)

    def ready(self) -> None:
        "Wait until the notebook is there and its kernel answers."
        self.view.wait_for_function(_SHOWN, timeout=PATIENCE)
        self.view.evaluate(_READY)

    def command(self, name: str, wait: bool = True, **arguments: Any) -> None:
        "A command of JupyterLab by its id."
        call = "({name, values}) => { const done = jupyterapp.commands.execute(name, values); %s }"
        self.view.evaluate(
            call % ("return done.then(() => null)" if wait else ""), {"name": name, "values": arguments}
        )

    def run_all(self, wait: bool = True) -> None:
        "Run every cell; `wait=False` returns while they run."
        self.command("notebook:run-all-cells", wait)

    def run_cell(self, source: str, wait: bool = True) -> None:
        "Add a cell at the end and run it."
        self.view.evaluate(_ADD_CELL, source)
        self.command("notebook:run-cell", wait)

    def reload(self) -> None:
        "What F5 does."
        self.view.reload(timeout=PATIENCE, wait_until="domcontentloaded")
        self.ready()

    def ask(self, expression: str) -> Any:
        "A Python expression of the kernel, as JSON; it waits for a cell that runs."
        found = self.view.evaluate(_ASK, expression)
        assert found["status"] == "ok", f"{expression}: {found.get('ename')}: {found.get('evalue')}"
        return json.loads(ast.literal_eval(found["data"]["text/plain"]))

    def eventually(
        self, expression: str, wanted: Callable[[Any], bool] = lambda value: True, seconds: float = 10.0
    ) -> Any:
        "The value of an expression of the kernel as soon as it is as wanted; fails when it is not in time."
        end = time.monotonic() + seconds
        while not wanted(found := self.ask(expression)):
            assert time.monotonic() < end, f"{expression} is still {found!r}"
            self.view.wait_for_timeout(50)
        return found

    def overflowing(self) -> list[list[str]]:
        "For every panel, what reaches beyond its right edge."
        return self.view.evaluate(_OVERFLOWING)

    def faintest(self) -> tuple[float, str]:
        "The text of all panels that is hardest to read: its contrast to what is behind it, and how it begins."
        return tuple(self.view.evaluate(_FAINTEST))

    def failed_cells(self) -> list[str]:
        return self.view.evaluate(_FAILED)

    def theme(self, name: str) -> None:
        "`light`, `dark` or `high contrast`."
        names = {"light": "Light", "dark": "Dark", "high contrast": "Dark High Contrast"}
        self.command("apputils:change-theme", theme=f"JupyterLab {names[name]}")
        self.view.wait_for_function(
            "light => document.body.dataset.jpThemeLight == light", arg=str(name == "light").lower()
        )

    def panel(self, width: int, height: int = 900) -> None:
        "Make the window so wide that outputs of cells are `width` pixels wide. The file browser is folded away."
        if self.view.evaluate("!jupyterapp.shell.leftCollapsed"):
            self.command("application:toggle-left-area")
        for _ in range(3):  # bars and margins take a part that depends on the width
            now = self.view.evaluate(
                "document.querySelector('.jp-OutputArea-output').getBoundingClientRect().width"
            )
            if abs(now - width) < 1:
                return
            size = self.view.viewport_size
            self.view.set_viewport_size({"width": round(size["width"] + width - now), "height": height})
            self.view.wait_for_timeout(200)


class Lab:
    "A JupyterLab server with a folder of notebooks."

    def __init__(self, url: str, token: str, folder: Path, browser: Any):
        self.url, self.token, self.folder, self.browser = url, token, folder, browser
        self.runs = folder.parent / "runs"  # where kernels put their runs

    def write(self, name: str, *cells: str, kernel: str = "python3") -> Path:
        "A notebook with these code cells."
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata.kernelspec = {"name": kernel, "display_name": kernel, "language": "python"}
        path = self.folder / f"{name}.ipynb"
        nbformat.write(notebook, path)
        return path

    def add_kernel(self, name: str, packages: Path) -> None:
        "A Python kernel that finds what lies in a folder before what is installed."
        spec = self.folder.parent / "data" / "kernels" / name
        spec.mkdir(parents=True)
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        about = {"argv": command, "display_name": name, "language": "python"}
        (spec / "kernel.json").write_text(json.dumps(about | {"env": {"PYTHONPATH": str(packages)}}))

    def open(self, notebook: Path, width: int = 1200, quiet: bool = True) -> LabPage:
        "A page to be used in `with`; see the head of this file."
        context = self.browser.new_context(viewport={"width": width, "height": 900})
        return LabPage(self, context, notebook, quiet)

    def rest(self, method: str, path: str, content: Any = None) -> Any:
        "Ask the server's REST interface; JSON in, JSON out."
        data = None if content is None else json.dumps(content).encode()
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None


@pytest.fixture(scope="package")
def lab(chromium, tmp_path_factory) -> Iterator[Lab]:
    "A JupyterLab of its own: free port, token, and folders that nobody else uses."
    pytest.importorskip("jupyterlab", reason="chromium is not installed")
    with launched_lab(chromium, tmp_path_factory.mktemp("lab")) as started:
        yield started


@contextlib.contextmanager
def launched_lab(chromium: Any, home: Path) -> Iterator[Lab]:  # home: an empty folder
    "A JupyterLab, also for who measures."
    folder = home / "notebooks"
    folder.mkdir()
    _ask_nothing(home / "config")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, url = os.urandom(16).hex(), f"http://127.0.0.1:{port}"
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            _command(port, folder), stdout=log, stderr=log, env=_environment(home, token), cwd=folder
        )
    started = Lab(url, token, folder, chromium)
    try:
        _wait_for(started, server, home / "server.log")
        yield started
    finally:
        if server.poll() is None:
            for kernel in started.rest("GET", "/api/kernels"):
                started.rest("DELETE", f"/api/kernels/{kernel['id']}")
        server.kill()  # asked politely, it takes twenty seconds to leave
        server.wait(20)


def _command(port: int, folder: Path) -> list[str]:
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "ServerApp.terminals_enabled": False,
        "LabApp.news_url": "",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.expose_app_in_browser": True,
    }
    return [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]


def _environment(home: Path, token: str) -> dict[str, str]:
    own = {
        "HOME": home,
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "IPYTHONDIR": home / "ipython",
        "TLJUPYTER_CACHE_DIR": home / "cache",
        "TLJUPYTER_RUNS_DIR": home / "runs",
        "JUPYTER_TOKEN": token,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "PYTEST_"))}
    return kept | {name: str(value) for name, value in own.items()}


def _ask_nothing(config: Path) -> None:
    "Without this, a question about news lies over the lower right corner."
    settings = config / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )


def _wait_for(lab: Lab, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START
    while True:
        assert server.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-3000:]
        try:
            lab.rest("GET", "/api/status")
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
