"""A real Jupyter server with jupyter-scheduler, asked through its REST interface as its own page asks."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from tljupyter.reports.templates import template_folder

pytestmark = pytest.mark.slow
MANAGER = "tljupyter.reports.scheduling.TemplateExecutionManager"


class Hub:
    "A server and its folder."

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
        command += ["--IdentityProvider.token=x", f"--ServerApp.root_dir={folder}", "--allow-root"]
        command += [
            f"--Scheduler.execution_manager_class={MANAGER}",
            f"--SchedulerApp.db_url=sqlite:///{folder}/jobs.db",
        ]
        own = {"JUPYTER_DATA_DIR": str(folder / ".data"), "JUPYTER_CONFIG_DIR": str(folder / ".config")}
        self.log = (folder / "server.log").open("wb")
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=self.log, stderr=self.log, env={**os.environ, **own}
        )

    def ask(self, path: str, content: object | None = None) -> dict:
        body = None if content is None else json.dumps(content).encode()
        asked = urllib.request.Request(self.url + path, body, {"Authorization": "token x"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.loads(answer.read() or b"{}")

    def run(self, notebook: str, parameters: dict[str, str] | None = None) -> dict:
        "Schedule a notebook for now, and wait for its end."
        asked = {
            "name": notebook,
            "input_uri": notebook,
            "output_formats": ["ipynb", "html"],
            "runtime_environment_name": "python3",
        }
        asked |= {"parameters": parameters or {}, "runtime_environment_parameters": {}}
        environment = self.ask("/scheduler/runtime_environments")[0]["name"]
        name = self.ask("/scheduler/jobs", asked | {"runtime_environment_name": environment})["job_id"]
        end = time.monotonic() + 400
        # A job is written down as STOPPED until its process begins.
        while (job := self.ask(f"/scheduler/jobs/{name}"))["status"] not in ("COMPLETED", "FAILED"):
            assert time.monotonic() < end, job
            time.sleep(0.5)
        return job

    def files(self, job: dict) -> dict[str, Path]:
        "What the job's page offers for download, fetched."
        request = urllib.request.Request(
            self.url + f"/scheduler/jobs/{job['job_id']}/download_files", headers={"Authorization": "token x"}
        )
        urllib.request.urlopen(request, timeout=60).read()
        end, paths = time.monotonic() + 180, {}
        while not {"html", "ipynb"} <= paths.keys():  # they are copied by another process
            assert time.monotonic() < end, paths
            time.sleep(0.3)
            found = self.ask(f"/scheduler/jobs/{job['job_id']}")["job_files"]
            paths = {one["file_format"]: self.folder / one["file_path"] for one in found if one["file_path"]}
        return paths


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    shutil.copy(template_folder() / "few_digits.ipynb", folder / "my digits.ipynb")
    plain = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(6 * 7)")])
    plain.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(plain, folder / "plain.ipynb")
    hub = Hub(folder)
    end = time.monotonic() + 400
    while True:
        try:
            hub.ask("/scheduler/runtime_environments")
            break
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < end and hub.process.poll() is None, (folder / "server.log").read_text()[
                -3000:
            ]
            time.sleep(0.3)
    yield hub
    hub.process.terminate()
    hub.process.wait(60)
    hub.log.close()


def test_a_template_is_run_with_typed_parameters_and_gives_the_page(hub):
    job = hub.run("my digits.ipynb", {"draws": "2", "epochs": "1", "labels_per_class": "3"})
    assert job["status"] == "COMPLETED", job
    files = hub.files(job)
    page, executed = files["html"].read_text(), nbformat.read(files["ipynb"], as_version=4)
    assert (
        "Content-Security-Policy" in page
        and "tljupyter report few_digits -p labels_per_class=3 -p draws=2" in page
    )
    assert any("injected-parameters" in cell.metadata.get("tags", ()) for cell in executed.cells)


def test_parameters_that_do_not_fit_fail_with_the_reason(hub):
    job = hub.run("my digits.ipynb", {"draws": "many"})
    assert job["status"] == "FAILED" and "draws = 'many' is not accepted" in job["status_message"]
    job = hub.run("my digits.ipynb", {"drows": "2"})
    assert job["status"] == "FAILED" and 'Did you mean "draws"' in job["status_message"]


def test_another_notebook_runs_as_ever(hub):
    job = hub.run("plain.ipynb")
    assert job["status"] == "COMPLETED", job
    outputs = [
        output.text
        for cell in nbformat.read(hub.files(job)["ipynb"], 4).cells
        for output in cell.get("outputs", ())
    ]
    assert outputs == ["42\n"]
