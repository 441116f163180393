"""Reports: what is refused before anything runs, what comes out, and how it ends when things go wrong."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tljupyter.refusals import Refusal
from tljupyter.reports.clean import clean_html
from tljupyter.reports.execute import Report, run_report
from tljupyter.reports.html import render
from tljupyter.reports.schema import Schema, parameters_of, read_schema
from tljupyter.reports.stamp import stamp
from tljupyter.reports.templates import find_template, list_templates, template_folder
from tljupyter.runs.folder import RunFolder
from tljupyter.settings import Settings

TINY = Path(__file__).parent / "templates" / "tiny.ipynb"
NASTY = (
    'quote " and \' and """, backslash \\ and \\n, newline \n, brace {x} {{y}}, 肺炎, $HOME `id` # no comment'
)


def written(path: Path, *cells) -> Path:
    "A notebook of these cells."
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def page_of(path: Path, *cells, notice: str = "") -> str:
    "The body of the page that a notebook of these cells becomes."
    page = render(written(path / "notebook.ipynb", *cells), notice=notice)
    return page[page.index("<main>") : page.index("</main>")]


def shows(data: dict[str, str], kind: str = "display_data", **metadata) -> nbformat.NotebookNode:
    return new_code_cell("shown()", outputs=[new_output(kind, data=data, metadata=metadata)])


# The schema


@pytest.fixture(scope="module")
def schema() -> Schema:
    return read_schema(TINY)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"draws": "7"}, 7),
        ({"draws": 7}, 7),
        ({"budgets": "5,10"}, [5, 10]),
        ({"budgets": "[5, 10]"}, [5, 10]),
        ({"budgets": " 5 , 10 "}, [5, 10]),
        ({"budgets": "5"}, [5]),
        ({"budgets": (5, 10)}, [5, 10]),
        ({"seconds": "1e-3"}, 0.001),
        ({"seconds": 2}, 2.0),
        ({"preset": "standard"}, "standard"),
        ({"class_name": "3"}, "3"),
        ({"class_name": NASTY}, NASTY),
        ({"weights": "none"}, None),
        ({"weights": str(TINY)}, str(TINY)),
        ({"data_dir": str(TINY.parent)}, str(TINY.parent)),
    ],
)
def test_text_becomes_what_its_parameter_asks_for(schema, given, expected):
    [name] = given
    value = schema.validate(given)[name]
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"draw": "7"}, 'no parameter "draw".*Did you mean "draws"'),
        ({"run_dir": "/"}, 'no parameter "run_dir"'),
        ({"draws": "seven"}, "draws = 'seven' is not accepted. It takes a whole number, at least 1"),
        ({"draws": "0"}, "at least 1 and at most 1000; sets of labels"),
        ({"draws": 7.0}, "draws = 7.0"),
        ({"draws": True}, "draws = True"),
        ({"budgets": "5,ten"}, "whole numbers, such as 5,10; labels a class"),
        ({"budgets": [5, 2.5]}, "budgets"),
        ({"budgets": 5}, "budgets = 5"),
        ({"seconds": "soon"}, "It takes a number; for every piece"),
        ({"preset": "quik"}, 'Did you mean "quick"'),
        ({"preset": 1}, "one of quick, standard"),
        ({"class_name": 3}, "It takes text"),
        ({"data_dir": "no/such"}, "there is no folder .*/no/such"),
        ({"data_dir": str(TINY)}, "is not a folder"),
        ({"weights": str(TINY.parent)}, "is not a file"),
        ({"draws": "x", "preset": "y", "no": "z"}, "(?s)draws.*preset|preset.*draws"),
    ],
)
def test_what_does_not_fit_is_refused(schema, given, message):
    with pytest.raises(Refusal, match=message) as refusal:
        schema.validate(given)
    assert len(str(refusal.value).splitlines()) == len(given)


def test_relative_paths_are_taken_from_the_working_folder(schema, tmp_path, monkeypatch):
    (tmp_path / "films").mkdir()
    monkeypatch.chdir(tmp_path)
    assert schema.validate({"data_dir": "films"})["data_dir"] == str(tmp_path / "films")
    assert schema.validate({"data_dir": "films/../films"})["data_dir"] == str(tmp_path / "films")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert schema.validate({"data_dir": "~/films"})["data_dir"] == str(tmp_path / "films")


def test_data_are_found_in_the_folder_of_data(schema, tmp_path, monkeypatch):
    (tmp_path / "data" / "films").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TLJUPYTER_DATA_DIR", str(tmp_path / "data"))
    assert schema.validate({"data_dir": "films"})["data_dir"] == str(tmp_path / "data" / "films")
    (tmp_path / "films").mkdir()
    assert schema.validate({"data_dir": "films"})["data_dir"] == str(tmp_path / "films")


def test_what_is_needed_is_asked_for(tmp_path):
    cell = new_code_cell("data_dir: Folder  # class folders", metadata={"tags": ["parameters"]})
    needy = read_schema(written(tmp_path / "needy.ipynb", cell))
    with pytest.raises(Refusal, match="needy needs data_dir: an existing folder; class folders"):
        needy.validate({})
    assert needy.json_schema()["required"] == ["data_dir"]


def test_a_help_is_found_where_a_formatter_may_put_it():
    wrapped = """size: Annotated[int, Ge(0)] = (
    0  # pixels; 0: the size the backbone was trained at
)
classes: list[str] = [  # names
    "a",
    "b",
]
seed: int = 0
"""
    found = {parameter.name: parameter.help for parameter in parameters_of(wrapped)}
    assert found == {
        "size": "pixels; 0: the size the backbone was trained at",
        "classes": "names",
        "seed": "",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed = 0", "line 1 is not of the form"),
        ("seed: int = 0\nprint(seed)", "line 2"),
        ("seed: int = 2 * 3", "line 1: seed"),
        ("seed: int = __import__('os').getpid()", "line 1: seed"),
        ("net: torch.nn.Module = None", "the type torch.nn.Module is none of str, int"),
        ("n: Annotated[int, Between(1, 2)] = 1", r"the bound Between\(1, 2\) is none of Ge"),
        ("seed: int =", "invalid syntax"),
    ],
)
def test_a_cell_that_declares_nothing_is_no_schema(tmp_path, line, message):
    with pytest.raises((ValueError, SyntaxError), match=message):
        list(parameters_of(line))
    path = written(tmp_path / "bad.ipynb", new_code_cell(line, metadata={"tags": ["parameters"]}))
    with pytest.raises(Refusal, match=r"bad\.ipynb: not a report template"):
        read_schema(path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"[]", b'{"cells": 3}', b'{"cells": [{}]}'])
def test_a_file_that_is_no_notebook_is_refused(tmp_path, content):
    (tmp_path / "photo.ipynb").write_bytes(content)
    with pytest.raises(Refusal, match=r"photo\.ipynb"):
        run_report(tmp_path / "photo.ipynb", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_kit_has_templates_that_say_what_they_are():
    for schema in list_templates():
        assert schema.title and schema.summary and schema.takes_run_dir, schema.template
        assert find_template(schema.template).parent == template_folder()
        unexplained = [parameter.name for parameter in schema.parameters if not parameter.help]
        assert set(unexplained) <= {"seed"}, schema.template


def test_an_installed_kit_finds_its_templates_inside(tmp_path):
    package = Path(__file__).parent.parent / "tljupyter"
    (tmp_path / "tljupyter" / "templates").mkdir(parents=True)
    for part in package.iterdir():
        (tmp_path / "tljupyter" / part.name).symlink_to(part)
    (tmp_path / "tljupyter" / "templates" / "inside.ipynb").write_bytes(TINY.read_bytes())
    code = "from tljupyter.reports.templates import find_template; print(find_template('inside'))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.stdout.strip() == str(tmp_path / "tljupyter" / "templates" / "inside.ipynb"), done.stderr


# A report


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Report:
    "A report that finished, in a folder whose name is not an easy one."
    out = tmp_path_factory.mktemp("runs") / "a {run} of 肺炎"
    return run_report(TINY, {"class_name": NASTY, "draws": "4"}, out)


def test_a_report_leaves_a_whole_folder(good):
    names = {file.name for file in good.folder.iterdir()} - {".lock"}
    assert names == {
        *("params.json", "status.json", "predictions.parquet", "results.json", "stamp.json"),
        *("notebook.ipynb", "run.log", "report.html"),
    }
    assert good.ok and good.html == good.folder / "report.html" and good.status.progress == 1.0
    assert good.headline()["gain"] == 0.26
    assert len(RunFolder.open(good.folder).predictions()) == 4 * 2 * 8


def test_values_arrive_as_they_were_given(good):
    cells = nbformat.read(good.folder / "notebook.ipynb", 4).cells
    [injected] = [cell.source for cell in cells if "injected-parameters" in cell.metadata.get("tags", ())]
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(injected).body}
    assert values["class_name"] == NASTY and values["draws"] == 4 and values["data_dir"] is None
    assert values.pop("run_dir") == str(good.folder) and values == RunFolder.open(good.folder).parameters


def test_the_verdict_is_the_first_thing_on_the_page(good):
    page = good.html.read_text()
    order = [
        page.index(text) for text in ("<h1>Tiny</h1>", "Transfer helps", "A template for tests", "8 computed")
    ]
    assert order == sorted(order)
    assert page.count("<h1") == 1 and "###" not in re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
    assert page.rindex("c0ffee") > page.index("How this was made")


@pytest.mark.slow
def test_the_same_report_again_has_the_same_numbers(good, tmp_path):
    again = run_report(TINY, RunFolder.open(good.folder).parameters, tmp_path / "again")
    first, second = (RunFolder.open(report.folder).predictions() for report in (good, again))
    pd.testing.assert_frame_equal(first, second)
    assert good.headline() == again.headline()


def test_a_report_runs_on_this_python_whatever_kernels_there_are(tmp_path, monkeypatch):
    spec = tmp_path / "share" / "kernels" / "python3"
    spec.mkdir(parents=True)
    foreign = {
        "argv": ["/nonexistent/python", "{connection_file}"],
        "display_name": "x",
        "language": "python",
    }
    (spec / "kernel.json").write_text(json.dumps(foreign))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    cell = new_code_cell("import sys; print(sys.executable)")
    report = run_report(written(tmp_path / "which.ipynb", cell), out=tmp_path / "out")
    assert report.ok and sys.executable in (report.folder / "run.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "error"),
    [("error", "ZeroDivisionError: a fault of the template"), ("die", "the kernel was killed by SIGKILL")],
)
def test_a_run_that_fails_says_so_and_keeps_what_it_had(tmp_path, ending, error):
    report = run_report(TINY, {"ending": ending}, tmp_path / "out")
    assert not report.ok and report.status.state == "failed" and error in report.status.error
    assert len(RunFolder.open(report.folder).predictions()) == 3 * 2 * 8
    page = report.html.read_text()
    assert page.index("This run failed") < page.index("6 computed") and error.split(":")[0] in page
    again = run_report(TINY, {"ending": ending}, tmp_path / "out", resume=True)
    assert "0 computed" in (again.folder / "run.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "message"),
    [("refuse", "class <b>normal</b> has 3; at most 3"), ("full", "the disk is full.*features.bin")],
)
def test_a_refusal_inside_the_notebook_comes_out(tmp_path, ending, message):
    with pytest.raises(Refusal, match=message):
        run_report(TINY, {"ending": ending}, tmp_path / "out")
    run = RunFolder.open(tmp_path / "out")
    assert run.status.state == "failed" and re.search(message, run.status.error)
    page = (run.path / "report.html").read_text()
    assert "This run failed" in page and "<b>normal" not in page.split("<details")[0]


def test_defaults_come_from_settings_and_the_caller_wins(tmp_path):
    path = written(
        tmp_path / "echo.ipynb",
        new_code_cell(
            "seed: int = 0\npreset: str = 'own'\ncolour: str = 'red'", metadata={"tags": ["parameters"]}
        ),
        new_code_cell("seed, preset, colour"),
    )
    settings = Settings(
        runs_dir=tmp_path / "runs", seed=5, templates={"echo": {"colour": "blue", "preset": "set"}}
    )
    report = run_report(path, {"preset": "typed"}, settings=settings)
    assert RunFolder.open(report.folder).parameters == {"seed": 5, "preset": "typed", "colour": "blue"}
    assert report.folder.parent == tmp_path / "runs" and report.folder.name.startswith("echo-2")


# The page

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><script>alert(1)</script></svg>",
    '<a href="javascript:alert(1)">x</a>',
    '<a href=" JaVaScRiPt:alert(1)">x</a>',
    '<a href="data:text/html,<script>alert(1)</script>">x</a>',
    '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
    "<object data=evil.swf></object><embed src=evil.swf>",
    '<form action="https://example.org"><input name=q><button>go</button></form>',
    '<meta http-equiv="refresh" content="0;url=https://example.org">',
    '<link rel=stylesheet href="https://example.org/x.css"><base href="https://example.org">',
    '<img src="https://example.org/pixel.png"><img srcset="data:image/png;base64,AA 1x, https://example.org/p 2x">',
    '<p style="background:url(https://example.org/p)">x</p>',
    r'<p style="background:\75rl(https://example.org/p);background:url\28https://example.org/p)">x</p>',
    "<p style=\"background:image-set('https://example.org/p' 1x)\">x</p>",
    '<svg><use href="https://example.org/#x"/><image href="https://example.org/x"/></svg>',
    '<svg><foreignObject><iframe src="https://example.org"></iframe></foreignObject></svg>',
    "<math><mtext></mtext><mglyph><style><img src=x onerror=alert(1)>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<details open ontoggle=alert(1)>x</details>",
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_that_acts_or_loads_gets_into_a_page(tmp_path, payload):
    body = page_of(
        tmp_path,
        new_markdown_cell(f"# Title {payload}\n\ntext {payload}"),
        shows({"text/html": payload}),
        shows({"text/markdown": payload}),
        shows({"text/plain": payload}),
        shows({"text/html": payload}, "display_data"),
        new_code_cell("print()", outputs=[new_output("stream", name="stdout", text=payload)]),
        shows({"application/javascript": "alert(1)", "text/plain": "nothing"}),
        shows({"image/png": 'AA" onerror="alert(1)'}, **{"image/png": {"alt": f'"{payload}'}}),
        notice=payload,
    )
    tags = re.findall(r"<[a-zA-Z][^<>]*>", body)  # what is escaped is no tag
    assert not [
        tag for tag in tags if re.match(r"<(script|iframe|object|embed|form|meta|link|base|use|style)\b", tag)
    ]
    attributes = " ".join(re.sub(r'alt="[^"]*"', "", tag) for tag in tags)
    assert not re.search(r"\son\w+\s*=|javascript:|srcdoc|data:text", attributes, re.IGNORECASE)
    assert not re.search(r'(src|srcset|action)="(?!data:image/)|url\s*\(', attributes)


def test_a_drawing_and_a_picture_survive_the_cleaning():
    drawing = '<svg viewBox="0 0 9 9" role="img" aria-label="gain"><path d="M0 0" stroke="currentColor"></path></svg>'
    assert clean_html(drawing) == drawing
    picture = '<picture><source media="(max-width: 600px)" srcset="data:image/png;base64,AA== 2x"><img alt="a &amp; b" src="data:image/png;base64,AA=="></picture>'
    assert clean_html(picture) == picture


def test_the_richest_form_is_shown_and_noise_is_not(tmp_path):
    body = page_of(
        tmp_path,
        new_markdown_cell("# T\n\n## Where it looks"),
        shows({"text/html": "<i>rich</i>", "text/plain": "poor"}),
        shows({"image/png": "AAAA", "text/plain": "<Figure>"}, **{"image/png": {"width": 320}}),
        shows({"application/vnd.jupyter.widget-view+json": "{}", "text/plain": "IntProgress(value=3)"}),
        new_code_cell(
            "warn()", outputs=[new_output("stream", name="stderr", text="UserWarning\n 50%|##  |")]
        ),
        new_code_cell(
            "raise", outputs=[new_output("error", ename="E", evalue="v", traceback=["deep trace"])]
        ),
        new_markdown_cell("papermill was here", metadata={"tags": ["papermill-error-cell-tag"]}),
        new_code_cell("secret = 1", metadata={"tags": ["remove-input"]}),
        new_code_cell(outputs=shows({"text/html": "hidden"}).outputs, metadata={"tags": ["remove-cell"]}),
    )
    assert "<i>rich</i>" in body and 'alt="Figure in the section “Where it looks”" width="320"' in body
    for left_out in (
        "poor",
        "Figure&gt;",
        "IntProgress",
        "UserWarning",
        "deep trace",
        "papermill was",
        "secret",
        "hidden",
    ):
        assert left_out not in body, left_out


def test_wide_tables_get_a_box_and_headings_one_first_level(tmp_path):
    table = "| a | b |\n|---|---|\n| 1 | 2 |"
    body = page_of(
        tmp_path, new_markdown_cell("# One"), new_markdown_cell("# Two"), shows({"text/markdown": table})
    )
    assert body.count("<h1>") == 1 and "<h2" in body and body.count('<div class="scroll"') == 1


def test_no_home_path_in_what_is_published(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    run = RunFolder.create(tmp_path / "run", "tiny", {"data_dir": "/home/ada/films", "note": "/home/adam"})
    made = stamp(run, {"seed": 0}, {"films": "00"})
    run.release()
    printed = new_output("stream", name="stdout", text="read /home/ada/films/1.png\n")
    body = page_of(
        tmp_path,
        new_code_cell("d = '/home/ada/films'", outputs=[printed]),
        shows({"text/html": made._repr_html_()}),
    )
    assert (
        "/home/ada/" not in body + json.dumps(made.to_dict())
        and "~/films/1.png" in body
        and "/home/adam" in body
    )
    assert os.uname().nodename not in json.dumps(made.to_dict()["machine"])


def test_a_page_of_something_else_is_refused(tmp_path):
    (tmp_path / "torn.ipynb").write_text('{"cells": [')
    for name in ("torn.ipynb", "absent.ipynb"):
        with pytest.raises(Refusal, match=name):
            render(tmp_path / name)
