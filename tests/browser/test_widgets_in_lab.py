"""Freeze tree and backbone picker in a real JupyterLab: by mouse, by keyboard alone, light, dark and narrow, reloaded."""

import re

import pytest

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror='window.hit=1'>"
SETUP = f'''
import dataclasses, json
from pathlib import Path
from tempfile import mkdtemp
import numpy as np, torch
from sklearn.datasets import load_digits
from tljupyter.backbones.registry import local_weights, random_backbone
from tljupyter.backbones.stages import Stage
from tljupyter.backbones.weights import save_backbone
from tljupyter.domains.readers import read_arrays
from tljupyter.freezing import FreezePlan
from tljupyter.settings import load_settings
from tljupyter.widgets.freeze_tree import FreezeTree
from tljupyter.widgets.picker import BackbonePicker

torch.set_num_threads(1)
place, hostile = Path(mkdtemp()), "{HOSTILE}"
for name in ("digits_convnet", "resnet20_cifar"):
    save_backbone(random_backbone(name), place / name)
    (place / name / "model.safetensors").rename(local_weights(name, place))
digits = load_digits()
rows = np.flatnonzero(digits.target < 2)[:40]
named = [("zero", hostile)[digits.target[row]] for row in rows]
domain = read_arrays((digits.images[rows] / 16).astype(np.float32), named, name="digits " + hostile)
small = random_backbone("digits_convnet")
stages = [Stage(f"{{stage.name}} {{hostile}}" if at == 1 else stage.name, stage.module) for at, stage in enumerate(small.stages)]
backbone = dataclasses.replace(small, name="small " + hostile, stages=tuple(stages))
'''
TREE = "tree = FreezeTree(backbone, labels=12, epochs=10)\ntree"
PICKER = (
    "picker = BackbonePicker(domain=domain, settings=load_settings({'weights_dir': place, 'cache_dir': place / 'cache'}))"
    "\npicker"
)


@pytest.fixture(scope="module")
def page(lab):
    "A notebook with both widgets. Leaving it looks for console errors, requests to elsewhere and cells that failed."
    with lab.open(lab.write("widgets", SETUP, TREE, PICKER)) as opened:
        opened.run_all()
        opened.view.get_by_role("treegrid").wait_for()
        opened.view.get_by_role("grid", name="Backbones").wait_for()
        yield opened


@pytest.fixture
def tree(page):
    "The freeze tree as it was at first."
    page.ask("[tree.discard(), tree.use(FreezePlan.linear_probe(backbone))]")
    return page.view.get_by_role("region", name=re.compile("^Freeze plan"))


@pytest.fixture
def picker(page):
    "The picker without filter."
    page.ask("picker.filter()")
    return page.view.get_by_role("region", name="Backbone picker")


def stage(page, at: int, wanted: dict) -> dict:
    "What the kernel knows of a stage, once it is as wanted."
    found = f"dataclasses.asdict(tree.plan.stages[{at}])"
    return page.eventually(found, lambda now: {name: now[name] for name in wanted} == wanted)


def test_tick_type_drag_and_undo(page, tree):
    last = tree.get_by_role("row", name="block3").first
    box = last.get_by_role("checkbox")
    assert (
        box.is_checked() and "130 of 23,538 parameters train: 11 for each of 12 labels." in tree.inner_text()
    )

    box.click()
    stage(page, 2, {"frozen": False, "thaw_at": None})
    tree.get_by_text("18,690 of 23,538 parameters train: 1,558 for each of 12 labels.").wait_for()
    tree.get_by_text("More than 1,000 parameters of stages train for each label").wait_for()
    assert (
        not box.is_checked()
        and tree.get_by_role("button", name="Last stage").get_attribute("aria-pressed") == "true"
    )

    last.get_by_label("Learning rate").fill("0.25")
    last.get_by_label("Learning rate").press("Enter")
    last.get_by_role("spinbutton", name="trains from epoch").fill("4")
    last.get_by_role("spinbutton", name="trains from epoch").press("Enter")
    stage(page, 2, {"frozen": True, "thaw_at": 4, "rate": 0.25})
    slider = last.get_by_role("slider")
    assert slider.get_attribute("aria-valuetext") == "epoch 4"
    assert last.get_by_role("checkbox").evaluate("box => box.indeterminate")
    tree.get_by_text("computed once, until epoch 4").wait_for()

    track = slider.bounding_box()
    page.view.mouse.move(track["x"] + 0.4 * track["width"], track["y"] + 8)
    page.view.mouse.down()
    page.view.mouse.move(track["x"] + 0.72 * track["width"], track["y"] + 9, steps=4)
    page.view.mouse.up()
    stage(page, 2, {"thaw_at": 7})
    last.get_by_role("combobox").select_option("moving")
    stage(page, 2, {"normalisation": "moving"})

    for wanted in (
        {"normalisation": "frozen"},
        {"thaw_at": 4},
        {"thaw_at": None},
        {"rate": 1.0},
        {"frozen": True},
    ):
        tree.get_by_role("button", name="Undo").click()
        stage(page, 2, wanted)
    tree.get_by_role("button", name="Redo").click()
    stage(page, 2, {"frozen": False})


def test_what_is_refused_stays_in_its_field(page, tree):
    rate = tree.get_by_label("Learning rate of head")
    rate.fill("-1")
    rate.press("Enter")
    tree.get_by_text("head_rate = -1").wait_for()
    assert rate.input_value() == "-1" and rate.get_attribute("aria-invalid") == "true"
    rate.focus()
    rate.press("Escape")
    assert rate.input_value() == "1" and page.ask("tree.plan.head_rate") == 1


def test_yaml_and_code_agree_with_the_kernel_and_are_read_back(page, tree):
    tree.get_by_role("button", name="Gradual").click()
    tree.get_by_role("button", name="YAML").click()
    text = tree.get_by_label("The plan as YAML")
    page.eventually("tree.plan == FreezePlan.gradual(backbone)", bool)
    page.view.wait_for_function(
        "text => document.querySelector('.tl-ft textarea').value == text", arg=page.ask("tree.yaml")
    )

    wrong = text.input_value().replace("rate: 0.5", "rte: 0.5")
    text.fill(wrong)
    tree.get_by_role("button", name="Read it back").click()
    tree.get_by_role("alert").get_by_text('unknown field "rte". Did you mean "rate"?').wait_for()
    assert text.input_value() == wrong and page.ask("tree.draft.text") == wrong
    text.fill(wrong.replace("rte: 0.5", "rate: 0.75"))
    text.press("Control+Enter")
    stage(page, 2, {"rate": 0.75})
    assert page.ask("tree.draft") is None

    tree.get_by_role("button", name="Code cell").click()
    code = tree.get_by_label("The plan as a code cell")
    assert code.input_value() == page.ask("tree.code") and "rate=0.75" in code.input_value()
    code.fill(code.input_value().replace("rate=0.75", "rate=open('x')"))
    code.press("Control+Enter")
    tree.get_by_role("alert").get_by_text("nothing is run").wait_for()
    tree.get_by_role("button", name="Take changes back").click()
    page.eventually("tree.draft is None", bool)
    assert code.input_value() == page.ask("tree.code")
    tree.get_by_role("button", name="Code cell").click()


def test_the_tree_by_keyboard_alone(page, tree):
    keys = page.view.keyboard
    tree.get_by_role("button", name="Gradual").focus()
    keys.press("Tab")  # past undo, which is or is not there to be pressed
    while page.view.evaluate("document.activeElement.getAttribute('role')") != "row":
        keys.press("Tab")
    keys.press("Home")
    for key in ("ArrowDown", "ArrowDown", " ", " ", " "):  # three turns, faster than they are answered
        keys.press(key)
    stage(page, 2, {"frozen": False})
    page.view.wait_for_timeout(500)  # until the answer is drawn, as a person would see it
    for _ in range(3):
        keys.press("Shift+ArrowRight")
        page.view.wait_for_timeout(200)
    stage(page, 2, {"frozen": True, "thaw_at": 3})
    keys.press("ArrowRight")
    tree.get_by_role("row", name=re.compile(r"0\.0|0 Conv2d")).first.wait_for()
    keys.press("ArrowDown")
    assert "Conv2d" in page.view.evaluate("document.activeElement.textContent")
    keys.press("ArrowLeft")  # to the stage above
    keys.press("ArrowLeft")  # which folds
    assert page.view.evaluate("document.activeElement.getAttribute('aria-expanded')") == "false"
    keys.press("Enter")
    keys.type("5")
    keys.press("Enter")
    stage(page, 2, {"thaw_at": 5})
    keys.press("z")
    stage(page, 2, {"thaw_at": 3})
    keys.press("Shift+Z")
    stage(page, 2, {"thaw_at": 5})
    for key in ("a", "b", "x", "m", "d", "d"):  # which the notebook would make cells of, or cut them
        keys.press(key)
    assert page.view.evaluate("jupyterapp.shell.currentWidget.content.model.cells.length") == 3


def test_a_click_while_a_cell_runs_says_that_it_waits_and_is_done_after_it(page, tree):
    page.view.evaluate(
        "() => { jupyterapp.shell.currentWidget.sessionContext.session.kernel"
        ".requestExecute({ code: 'import time; time.sleep(4.5)', store_history: false }) }"
    )
    tree.get_by_role("button", name="All", exact=True).click()
    tree.get_by_text("The kernel has not answered yet: a cell is running").wait_for()
    page.eventually("tree.plan == FreezePlan.all(backbone)", bool)
    tree.get_by_text("The kernel has not answered yet").wait_for(state="hidden")


def test_times_are_measured_once_and_follow_every_plan(page, tree):
    tree.get_by_role("button", name="Measure the time here").click()
    tree.get_by_text("Epochs 0 to 9:").wait_for()
    probe = tree.locator(".tl-ft-lines").inner_text()
    tree.get_by_role("button", name="All", exact=True).click()
    tree.get_by_text("nothing can be computed once").wait_for()
    assert tree.locator(".tl-ft-lines").inner_text() != probe and page.ask("tree.seconds(0).once") == 0


def test_filter_sort_and_choose(page, picker):
    grid = picker.get_by_role("grid")
    first = grid.locator("[role=rowgroup] [role=row]").first
    picker.get_by_label("Filter backbones").fill("squeezenet")
    picker.get_by_text("2 of 83").wait_for()
    picker.get_by_label("Filter backbones").fill("mobilenet")
    page.eventually("picker.words", lambda words: words == "mobilenet")
    page.ask("picker.sort('parameters', True)")
    names = page.ask("[row.name for row in picker.shown]")
    page.view.wait_for_function(
        "names => JSON.stringify([...document.querySelectorAll('.tl-bp-body .tl-bp-name')].map(n => n.textContent)) == names",
        arg=str(names).replace("'", '"').replace(", ", ","),
    )
    first.click()
    page.eventually("picker.chosen", lambda name: name == names[0])
    assert first.get_attribute("aria-selected") == "true"
    picker.get_by_text(f'load_backbone("{names[0]}")').wait_for()
    picker.get_by_label("Weights").select_option("here")
    picker.get_by_text("No backbone has all of these words.").wait_for()


def test_measure_and_rank(page, picker):
    picker.get_by_label("Weights").select_option("here")
    picker.get_by_text("2 of 83").wait_for()
    picker.get_by_role("button", name="Measure digits_convnet here").click()
    page.eventually("list(picker.costs)", lambda names: names == ["digits_convnet"])
    picker.get_by_text(re.compile(r"\d\.\d+ ms")).first.wait_for()
    picker.get_by_role("button", name=re.compile("Rank the 2 shown that are here on digits")).click()
    page.eventually("picker.ranking is not None", bool, 30)
    picker.get_by_text(page.ask("str(picker.ranking)")).wait_for()
    letters = picker.locator(".tl-bp-body [data-column=rank] b").all_inner_texts()
    assert letters == page.ask("[row.letters for row in picker.ranking.rows]")


def test_the_picker_by_keyboard_alone(page, picker):
    keys = page.view.keyboard
    picker.get_by_role("searchbox").focus()
    keys.type("resnet")
    page.eventually("picker.words", lambda words: words == "resnet")
    keys.press("ArrowDown")
    keys.press("ArrowDown")
    keys.press("Enter")
    name = page.eventually("picker.chosen", lambda name: "resnet" in name)
    assert name == page.ask("picker.shown[1].name")
    keys.press("/")
    assert page.view.evaluate("document.activeElement.type") == "search"
    keys.press("Control+a")
    keys.press("Delete")
    page.eventually("picker.words", lambda words: words == "")


def test_names_stay_text(page, tree, picker):
    assert f"block2 {HOSTILE}" in tree.inner_text() and HOSTILE in picker.inner_text()
    assert page.view.evaluate("window.hit === undefined")
    assert page.view.locator(".tl-panel img").count() == 0


@pytest.mark.parametrize(("theme", "width"), [("light", 900), ("dark", 780), ("dark", 390), ("light", 390)])
def test_it_is_readable(page, tree, picker, tmp_path, theme, width):
    page.ask(
        "[tree.thaw('block3', 4), tree.set_rate('block3', 0.1), tree.thaw(tree.plan.stages[1].name, 7), picker.choose('resnet18')]"
    )
    page.theme(theme)
    page.panel(width, 1000)
    page.view.wait_for_timeout(200)
    for number, panel in enumerate((tree, picker)):
        panel.scroll_into_view_if_needed()
        panel.screenshot(path=tmp_path / f"{theme}_{width}_{number}.png")
    assert page.overflowing() == [[], []]
    contrast, text = page.faintest()
    assert contrast >= 4.5, text


def test_both_come_back_after_a_reload_with_what_was_typed(page, tree):
    page.ask("[tree.thaw('block3', 4), picker.filter('vgg')]")
    tree.get_by_role("button", name="YAML").click()
    tree.get_by_label("The plan as YAML").fill("stages: 5")
    tree.get_by_role("button", name="Read it back").click()
    page.eventually("tree.draft is not None", bool)
    page.command("docmanager:save")
    page.reload()
    again = page.view.get_by_role("region", name=re.compile("^Freeze plan"))
    again.get_by_label("The plan as YAML").wait_for()
    assert again.get_by_label("The plan as YAML").input_value() == "stages: 5"
    assert (
        again.get_by_role("row", name="block3").first.get_by_role("slider").get_attribute("aria-valuetext")
        == "epoch 4"
    )
    again.get_by_role("button", name="Linear probe").click()
    stage(page, 2, {"thaw_at": None})
    assert page.view.get_by_label("Filter backbones").input_value() == "vgg"
