"""The house itself: what an import costs, and that coverage is credited to modules."""

import json
import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import ROOT


def loaded_by(statement: str) -> set[str]:
    "Names of the modules that a fresh interpreter holds after `statement`."
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    return set(
        json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    )


@pytest.mark.parametrize("module", ["", ".refusals", ".settings", ".domains.domain", ".domains.gate", ".cli"])
def test_light_imports_do_not_load_torch(module):
    loaded = loaded_by(f"import tljupyter{module}")
    assert f"tljupyter{module}" in loaded
    assert not loaded & {"torch", "torchvision", "timm", "captum", "onnxruntime", "papermill"}


def test_extras_are_the_documented_ones():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) >= {"text", "lab", "dask", "export", "docs", "dev"}
    assert not any(name.startswith("nbdev") for name in project["dependencies"])


def test_every_layer_is_a_room_that_exists():
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0][
        "layers"
    ]
    rooms = {
        p.stem
        for p in (ROOT / "tljupyter").iterdir()
        if not p.name.startswith(("_", ".")) and p.suffix in ("", ".py")
    }
    assert set(layers) == rooms - {"labext", "labextension", "templates"}


def test_the_wheel_carries_templates_types_and_the_sheet_of_pages(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    wanted = {"templates/few_digits.ipynb", "templates/lung_xray.ipynb", "reports/page.css", "py.typed"}
    assert {f"tljupyter/{name}" for name in wanted} <= names
    assert not any(name.startswith(("nbs/", "tests/")) for name in names)


def test_every_notebook_names_its_kernel():
    "JupyterLab asks for one otherwise, before anything can be run."
    notebooks = [*(ROOT / "nbs").rglob("*.ipynb"), *(ROOT / "templates").rglob("*.ipynb")]
    metadata = {str(path): json.loads(path.read_text())["metadata"] for path in notebooks}
    nameless = [
        path for path, about in metadata.items() if about.get("kernelspec", {}).get("name") != "python3"
    ]
    assert len(notebooks) > 100 and nameless == []
