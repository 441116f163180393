"""The plain objects behind picker and freeze tree: counts by hand, texts there and back, still forms without markup."""

import dataclasses
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from tljupyter.backbones.registry import local_weights, random_backbone
from tljupyter.backbones.stages import Stage
from tljupyter.backbones.weights import save_backbone
from tljupyter.domains.readers import read_arrays
from tljupyter.freezing import FreezePlan
from tljupyter.refusals import Refusal
from tljupyter.reports.clean import clean_html
from tljupyter.settings import Settings
from tljupyter.widgets.freeze_tree import PRESETS, FreezeTree, blocks_of, plan_code, plan_from_code
from tljupyter.widgets.picker import COLUMNS, BackbonePicker
from tljupyter.widgets.stage_seconds import epoch_seconds, measure_stages
from tljupyter.widgets.widget import Panel, static_text, unknown

HOSTILE = "<img src=x onerror='window.hit=1'>"
NAMES = ("digits_convnet", "resnet18")


@pytest.fixture(scope="module", params=NAMES)
def backbone(request):
    return random_backbone(request.param)


@pytest.fixture(scope="module")
def small():
    return random_backbone("digits_convnet")


@pytest.fixture(scope="module")
def hostile(small):
    "The small network under names that are an attack."
    stages = tuple(Stage(f"{stage.name} {HOSTILE}", stage.module) for stage in small.stages)
    return dataclasses.replace(small, name=f"small {HOSTILE}", stages=stages)


@pytest.fixture
def settings(tmp_path) -> Settings:
    "Two small backbones with weights on this machine."
    for name in ("digits_convnet", "resnet20_cifar"):
        save_backbone(random_backbone(name), tmp_path / name)
        (tmp_path / name / "model.safetensors").rename(local_weights(name, tmp_path))
    return Settings(weights_dir=tmp_path, cache_dir=tmp_path / "cache")


def domain(count: int = 30, name: str = "digits", splits=None):
    images = np.random.default_rng(0).random((count, 8, 8), dtype=np.float32)
    labels = np.where(np.arange(count) % 2, "odd", HOSTILE)
    images[::2] *= 0.4
    made = read_arrays(images, labels.tolist(), name=name)
    return made if splits is None else dataclasses.replace(made, splits=np.array(splits))


class TestCounts:
    def test_by_hand_on_the_small_network(self, small):
        block = {"stem": 1 * 16 * 9 + 2 * 16, "block2": 16 * 32 * 9 + 2 * 32, "block3": 32 * 64 * 9 + 2 * 64}
        head = 64 * 3 + 3
        tree = FreezeTree(small, labels=10, classes=3)
        assert tree.counts().at_first == tree.counts().in_the_end == head
        tree.thaw("block3")
        tree.thaw("stem", epoch=5)
        counts = tree.counts()
        assert counts.at_first == head + block["block3"]
        assert counts.in_the_end == head + block["block3"] + block["stem"]
        assert counts.parameters == head + sum(block.values())
        assert counts.per_label == counts.in_the_end / 10 and counts.computed_once == 2

    def test_by_hand_on_resnet18(self):
        backbone = random_backbone("resnet18")
        tree = FreezeTree(backbone, FreezePlan.last(backbone, 1), classes=2)
        convolutions = 256 * 512 * 9 + 3 * 512 * 512 * 9 + 256 * 512  # the last one is the shortcut's
        normalisations = 5 * 2 * 512
        assert tree.counts().in_the_end == convolutions + normalisations + 2 * 512 + 2
        assert tree.counts().per_label is None and tree.warning == "" and tree.seconds() is None

    def test_they_are_what_torch_would_train(self, backbone):
        own = backbone.copy()
        tree = FreezeTree(own, labels=5)
        for name in PRESETS:
            tree.preset(name)
            tree.plan.apply(own, 0)
            trained = sum(p.numel() for p in own.module.parameters() if p.requires_grad)
            assert tree.counts().at_first - tree.counts().head == trained

    def test_moving_statistics_end_what_is_computed_once(self, small):
        tree = FreezeTree(small)
        assert tree.counts().computed_once == 4
        tree.set_normalisation("block2", "moving")
        assert tree.counts().computed_once == 1

    def test_blocks_have_all_parameters_of_their_stage(self, backbone):
        def total(blocks):
            return sum(block.parameters for block in blocks)

        for stage in backbone.stages:
            blocks = blocks_of(stage.module)
            assert total(blocks) == stage.parameters
            assert all(total(block.blocks) in (0, block.parameters) for block in blocks)


class TestTexts:
    def test_yaml_goes_there_and_back(self, backbone):
        tree, other = FreezeTree(backbone), FreezeTree(backbone)
        tree.preset("gradual")
        tree.set_rate("head", 3.5)
        tree.set_normalisation(backbone.stage_names[1], "moving")
        other.read_yaml(tree.yaml)
        assert other.plan == tree.plan

    def test_code_goes_there_and_back_and_does_the_same_when_run(self, backbone):
        for plan in (
            *(make(backbone) for make in PRESETS.values()),
            FreezePlan.gradual(backbone, every=3, stages=2),
            FreezePlan.last(backbone, 2, normalisation="moving"),
            dataclasses.replace(FreezePlan.all(backbone), head_rate=0.25),
        ):
            code = plan_code(plan, backbone)
            assert plan_from_code(code, backbone) == plan
            run = {"backbone": backbone}
            exec(code, run)
            assert run["plan"] == plan

    def test_stage_names_of_any_kind(self, hostile):
        plan = FreezePlan.gradual(hostile, every=4)
        assert plan_from_code(plan_code(plan, hostile), hostile) == plan
        tree = FreezeTree(hostile)
        tree.read_yaml(plan.to_yaml())
        assert tree.plan == plan

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("plan = FreezePlan(open('secret'))", "open(...) is not known here; nothing is run"),
            ("plan = FreezePlan(stages=(StagePlan('stem', rate=1/0),))", "not a plain value"),
            ("plan = FreezePlan.linear_prob(backbone)", 'Did you mean "FreezePlan.linear_probe"'),
            ("plan = FreezePlan(**{'stages': ()})", "write every argument"),
            ("plan = FreezePlan.last()", "line 1"),
            ("\n\nplan = FreezePlan((", "line 3: not Python"),
            ("x = 1", "no FreezePlan in it"),
            ("plan = FreezePlan(stages=(StagePlan('stem'),))", "list every stage"),
        ],
    )
    def test_code_that_is_no_plan(self, small, code, words):
        tree = FreezeTree(small)
        before = tree.plan
        with pytest.raises(Refusal, match=re.escape(words)):
            tree.read_code(code)
        assert tree.plan == before and tree.draft.text == code and tree.draft.kind == "code"
        tree.discard()
        assert tree.draft is None

    def test_yaml_that_is_no_plan_is_kept(self, small):
        tree = FreezeTree(small)
        for text in (
            "stages: 5",
            "{",
            "head_rate: -1\nstages: []",
            FreezePlan.all(random_backbone("small_groupnorm")).to_yaml(),
        ):
            with pytest.raises(Refusal):
                tree.read_yaml(text)
            assert tree.draft.text == text and tree.draft.trouble


class TestEdits:
    def test_undo_goes_back_to_the_beginning_and_redo_to_the_end(self, small):
        tree, plans = FreezeTree(small), []
        for edit in (
            lambda: tree.thaw("block3", 4),
            lambda: tree.set_rate("block3", 0.1),
            lambda: tree.set_rate("head", 2),
            lambda: tree.preset("all"),
            lambda: tree.freeze("stem"),
        ):
            plans.append(tree.plan)
            edit()
        last = tree.plan
        for plan in reversed(plans):
            assert tree.undo() and tree.plan == plan
        assert not tree.undo()
        while tree.redo():
            pass
        assert tree.plan == last
        tree.undo()
        tree.thaw("block2", 2)
        assert not tree.redo()

    def test_an_edit_that_changes_nothing_is_no_edit(self, small):
        tree = FreezeTree(small)
        tree.freeze("stem")
        assert not tree.undo()

    @pytest.mark.parametrize(
        "edit",
        [
            lambda tree: tree.freeze("block4"),
            lambda tree: tree.thaw("stem", -1),
            lambda tree: tree.set_rate("stem", 0),
            lambda tree: tree.set_rate("stem", float("nan")),
            lambda tree: tree.set_normalisation("stem", "sometimes"),
            lambda tree: tree.preset("none"),
            lambda tree: tree.use(FreezePlan(())),
            lambda tree: tree.receive({"do": "thaw", "stage": "stem", "epoch": "2"}),
            lambda tree: tree.receive({"do": "dance"}),
        ],
    )
    def test_refused_edits_leave_the_plan(self, small, edit):
        tree = FreezeTree(small)
        before = tree.plan
        with pytest.raises(Refusal):
            edit(tree)
        assert tree.plan == before and not tree.undo()

    def test_messages_do_what_methods_do(self, small):
        told, called = FreezeTree(small), FreezeTree(small)
        for message in (
            {"do": "preset", "name": "all"},
            {"do": "freeze", "stage": "stem"},
            {"do": "thaw", "stage": "block2", "epoch": 3},
            {"do": "rate", "stage": "block2", "rate": 0.5},
            {"do": "normalisation", "stage": "block2", "policy": "frozen"},
        ):
            told.receive(message)
        called.preset("all")
        called.freeze("stem")
        called.thaw("block2", 3)
        called.set_rate("block2", 0.5)
        called.set_normalisation("block2", "frozen")
        assert told.plan == called.plan
        told.receive({"do": "undo"})
        assert told.plan != called.plan

    def test_what_never_comes_is_said(self, small):
        tree = FreezeTree(small, labels=10_000, epochs=8)
        tree.thaw("block3", 8)
        assert tree.warning == "block3 thaws after the last of 8 epochs."
        assert [phase.last for phase in tree.phases()] == [7]

    def test_phases_cover_the_training(self, small):
        tree = FreezeTree(small, labels=10, epochs=10)
        tree.thaw("block3", 2)
        tree.thaw("stem", 7)
        assert [(phase.first, phase.last) for phase in tree.phases()] == [(0, 1), (2, 6), (7, 9)]
        trainable = [phase.trainable for phase in tree.phases()]
        assert trainable == sorted(trainable) and trainable[-1] == tree.counts().in_the_end


def test_seconds_add_up(small):
    times = measure_stages(small, repeats=1)
    probe, every = FreezePlan.linear_probe(small), FreezePlan.all(small)
    one = epoch_seconds(probe, small, times, 100)
    assert one.uncached == pytest.approx(one.cached + one.once)
    assert one.once == pytest.approx(100 * sum(stage.forward for stage in times[:-1]))
    assert epoch_seconds(every, small, times, 100).once == 0
    twice, steps = epoch_seconds(every, small, times, 200), sum(stage.update for stage in times)
    assert twice.cached - 13 * steps == pytest.approx(
        2 * (epoch_seconds(every, small, times, 100).cached - 7 * steps)
    )


class TestPicker:
    def test_filter_and_sort(self, settings):
        picker = BackbonePicker(settings=settings)
        assert [row.name for row in picker.shown] == list(picker.infos)
        picker.filter("NET imagenet", "download")
        assert 10 < len(picker.shown) < len(picker.rows)
        for column in COLUMNS:
            for descending in (False, True):
                picker.sort(column, descending)
                values = [row.value(column) for row in picker.shown]
                known = [value for value in values if value is not None]
                assert known == sorted(known, reverse=descending) and values[: len(known)] == known

    def test_what_is_not_known_comes_last_in_both_directions(self, settings):
        picker = BackbonePicker(library="tljupyter", settings=settings)
        picker.measure("small_groupnorm")
        for descending in (False, True):
            picker.sort("ms an image", descending)
            assert picker.shown[0].name == "small_groupnorm" and picker.shown[1].cost is None

    def test_choose_and_load(self, settings):
        picker = BackbonePicker("*", settings=settings)
        assert picker.code == ""
        with pytest.raises(Refusal, match="No backbone is chosen"):
            picker.load()
        with pytest.raises(Refusal, match='Did you mean "resnet18"'):
            picker.choose("resnet-18")
        picker.choose("digits_convnet")
        assert picker.load().weights_source.endswith("digits_convnet.safetensors")
        picker.choose("small_groupnorm")
        assert 'load_backbone("small_groupnorm", weights="random")' in picker.code
        assert picker.load().weights_source.startswith("random")

    def test_memory_is_that_of_the_weights_until_it_is_measured(self, settings):
        picker = BackbonePicker("digits_convnet", settings=settings)
        assert picker.rows[0].memory == 4 * 23_408
        picker.measure("digits_convnet")
        assert picker.rows[0].memory > 4 * 23_408

    def test_a_ranking_reads_no_test_item_and_names_what_it_passed_over(self, settings):
        picker = BackbonePicker(library="tljupyter", settings=settings)
        splits = ["test"] * 10 + ["train"] * 30
        ranking = picker.rank_on(domain(40, splits=splits), score="probe")
        assert ranking.labels == 30 and set(ranking.names) == {"digits_convnet", "resnet20_cifar"}
        assert [row.name for row in picker.shown][:2] == list(ranking.names)
        assert all(row.cost is not None for row in picker.shown[:2])
        (settings.weights_dir / "resnet20_cifar.safetensors").write_bytes(b"damaged")
        ranking = picker.rank_on(domain(40), ["digits_convnet", "resnet20_cifar"])
        assert ranking.names == ("digits_convnet",) and "damaged" not in ranking.names
        assert "resnet20_cifar" in picker.passed_over
        assert "resnet20_cifar was passed over" in picker.static_html()

    def test_rankings_that_are_refused(self, settings, tmp_path):
        picker = BackbonePicker(library="tljupyter", settings=settings)
        with pytest.raises(Refusal, match="which data"):
            picker.rank_on()
        with pytest.raises(Refusal, match="outside its test side"):
            picker.rank_on(domain(4, splits=["test"] * 4))
        with pytest.raises(Refusal, match="images with one class"):
            picker.rank_on(dataclasses.replace(domain(), modality="table"))
        none = BackbonePicker(library="tljupyter", settings=Settings(weights_dir=tmp_path / "none"))
        with pytest.raises(Refusal, match="on this machine"):
            none.rank_on(domain())


class TestStillForms:
    def panels(self, hostile, settings) -> list[Panel]:
        picker = BackbonePicker(library="tljupyter", settings=settings, domain=domain(name=HOSTILE))
        first = next(iter(picker.infos.values()))
        picker.infos = {
            HOSTILE: dataclasses.replace(first, name=HOSTILE, licence=HOSTILE, trained_on=HOSTILE)
        }
        picker.chosen, picker.passed_over = HOSTILE, {HOSTILE: HOSTILE}
        tree = FreezeTree(hostile, labels=3)
        tree.preset("gradual")
        return [picker, tree]

    def test_names_are_escaped(self, hostile, settings):
        for panel in self.panels(hostile, settings):
            html = str(panel.static_html())
            assert HOSTILE not in html and "<img" not in html and "&lt;img" in html

    def test_a_report_keeps_them(self, small, settings):
        for panel in (FreezeTree(small, labels=3), BackbonePicker(library="tljupyter", settings=settings)):
            html = str(panel.static_html())
            assert re.sub(r"\s", "", clean_html(html)) == re.sub(r"\s", "", html)

    def test_a_display_has_both_faces(self, small):
        tree = FreezeTree(small, labels=3)
        bundle = tree._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"}
        assert str(tree.static_html()) in bundle["text/html"] and bundle["text/plain"] == repr(tree)

    def test_the_table_says_what_the_plan_says(self, small):
        tree = FreezeTree(small, labels=20, epochs=10)
        tree.thaw("block3", 4)
        tree.set_rate("block3", 0.1)
        text = re.sub(r"<[^>]+>", " ", str(tree.static_html()))
        assert re.search(r"block3\s+18,560\s+from epoch 4\s+0\.1 ×\s+frozen", text)
        assert re.search(r"stem\s+176\s+frozen", text) and "934 for each of 20 labels" in text


class TestStaticFiles:
    FILES = sorted(Path(str(resources.files("tljupyter.widgets") / "static")).iterdir())

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
    def test_nothing_is_fetched_and_no_markup_is_made(self, path):
        text = static_text(path.name).replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "http:",
        ):
            assert word not in text
        assert not re.search(r"https://(?!\()|url\(\s*['\"]?(?!#)|@import|^import ", text, re.MULTILINE)

    @pytest.mark.parametrize("name", ["data_view", "freeze_tree", "monitor", "picker", "result"])
    def test_imports_are_filled_in(self, name):
        module = static_text(f"{name}.js")
        assert (
            module.count("export ") == 1
            and "class Link" in module
            and ".tl-panel {" in static_text(f"{name}.css")
        )

    def test_they_travel_in_the_wheel(self):
        from hatchling.builders.wheel import WheelBuilder

        root = Path(__file__).parent.parent
        packed = {file.relative_path for file in WheelBuilder(str(root)).recurse_included_files()}
        assert {f"tljupyter/widgets/static/{path.name}" for path in self.FILES} <= packed


class TestPanel:
    def test_state_before_answer_and_refusals_in_words(self, small):
        tree, told = FreezeTree(small), []
        tree.widget.observe(lambda change: told.append(change.name), "state")
        tree.widget.send = lambda content, buffers: told.append(content)
        tree._heard(tree.widget, {"do": "freeze", "stage": "no", "answer": 1}, [])
        tree._heard(tree.widget, {"do": "preset", "name": "all", "answer": 2}, [])
        assert [told[0]["ok"], told[1], told[2]["ok"]] == [False, "state", True]
        assert 'has no stage "no"' in told[0]["text"] and tree.widget.state["preset"] == "all"

    def test_only_what_changed_is_sent(self, small):
        tree, told = FreezeTree(small), []
        tree.widget.observe(lambda change: told.append(change.name))
        tree.thaw("stem")
        tree.thaw("stem")
        assert told == ["state"]

    def test_work_behind_is_one_at_a_time_and_says_what_went_wrong(self, small):
        import threading

        tree, gate = FreezeTree(small), threading.Event()

        def work():
            gate.wait(10)
            raise ZeroDivisionError("nought")

        thread = tree.behind(work, "Working …")
        with pytest.raises(Refusal, match="Wait until that is done"):
            tree.behind(work, "More")
        assert tree.parts() and tree._drawn(["doing"]) == {"doing": {"busy": "Working …", "trouble": ""}}
        gate.set()
        thread.join(10)
        assert tree._drawn(["doing"]) == {"doing": {"busy": "", "trouble": "ZeroDivisionError: nought"}}
        tree.behind(lambda: None, "Again").join(10)
        assert tree._drawn(["doing"]) == {"doing": {"busy": "", "trouble": ""}}

    def test_a_panel_that_says_nothing_knows_no_message(self):
        with pytest.raises(Refusal, match="does not know how to jump with high=True"):
            Panel().receive({"do": "jump", "high": True, "answer": 3})
        assert "nothing" in str(unknown({}))
