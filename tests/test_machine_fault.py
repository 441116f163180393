"""Simulated bearings, and the report on machine faults run for real: no recording on both sides, every number again."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy.io import wavfile
from test_templates import made, recomputed, report

from tljupyter.domains.bearings import (
    KINDS,
    Bearing,
    Machine,
    envelope_spectrum,
    envelopes,
    kind_of_fault,
    simulate_bearings,
    simulate_recording,
)
from tljupyter.domains.signals import Signal, signals_at_hand
from tljupyter.domains.texts import texts_at_hand
from tljupyter.refusals import Refusal
from tljupyter.reports.schema import read_schema
from tljupyter.reports.templates import find_template

RIG = Bearing(balls=9, ball_mm=7.94, pitch_mm=39.04)  # 6205-2RS at the drive end


def heard(kind, rpm=1797.0, hertz=12000.0, seconds=4.0, seed=0, **machine):
    rng = np.random.default_rng(seed)
    values = simulate_recording(kind, RIG, rpm, hertz, int(seconds * hertz), Machine(**machine), rng)
    return Signal(values[:, None], hertz)


def strongest(signal, low, high):
    "Where the envelope's spectrum is highest between two frequencies."
    hertz, amplitude = envelope_spectrum(signal)
    inside = (hertz >= low) & (hertz <= high)
    return hertz[inside][amplitude[inside, 0].argmax()]


def test_fault_frequencies_are_those_that_a_pencil_finds():
    found = RIG.frequencies(1797)
    wanted = {"outer race": 107.36, "inner race": 162.19, "ball": 141.17, "shaft": 29.95, "cage": 11.93}
    assert found.keys() == wanted.keys()
    for name, hertz in wanted.items():
        assert found[name] == pytest.approx(hertz, rel=0.001), name


def test_a_contact_angle_brings_both_races_nearer_to_each_other():
    flat, slanted = Bearing(16, 8.4, 71.5).frequencies(2000), Bearing(16, 8.4, 71.5, 15.17).frequencies(2000)
    assert flat["outer race"] < slanted["outer race"] < slanted["inner race"] < flat["inner race"]
    assert slanted["outer race"] == pytest.approx(
        236.4, rel=0.001
    )  # 16/2 * 2000/60 * (1 - 0.11748 * 0.96516)


def test_frequencies_follow_the_shaft():
    slow, fast = RIG.frequencies(600), RIG.frequencies(1800)
    assert all(fast[name] == pytest.approx(3 * slow[name]) for name in slow)


@pytest.mark.parametrize("kind", ["outer race", "inner race", "ball"])
@pytest.mark.parametrize(("rpm", "seed"), [(1797, 0), (1730, 1), (900, 2)])
def test_the_envelope_beats_where_the_formula_says(kind, rpm, seed):
    frequencies = RIG.frequencies(rpm)
    wanted = frequencies[kind]
    found = strongest(heard(kind, rpm, seed=seed), 1.5 * frequencies["shaft"], 400)
    assert found == pytest.approx(wanted, rel=0.02)


def test_only_the_inner_race_turns_through_the_load_with_the_shaft():
    shaft = RIG.frequencies(1797)["shaft"]

    def carried(kind):
        hertz, amplitude = envelope_spectrum(heard(kind, slip=0.001))
        at_shaft, at_fault = (
            amplitude[np.abs(hertz - f) < 1.0, 0].max() for f in (shaft, RIG.frequencies(1797)[kind])
        )
        return at_shaft / at_fault

    assert carried("inner race") > 0.5 and carried("outer race") < 0.1


def test_the_housing_rings_where_it_was_told_to():
    for resonance in (1500.0, 4000.0):
        signal = heard("outer race", resonance_hertz=resonance, noise=0.1)
        power = np.abs(np.fft.rfft(signal.values[:, 0])) ** 2
        hertz = np.fft.rfftfreq(len(signal.values), 1 / signal.hertz)
        assert abs((power * hertz).sum() / power.sum() - resonance) < 0.1 * resonance + 300
        near = np.abs(hertz - resonance) < 0.15 * resonance
        assert power[near].sum() > 0.6 * power.sum()


def test_a_good_bearing_has_no_rhythm_and_all_are_as_loud():
    hertz, amplitude = envelope_spectrum(heard("normal"))
    low = (hertz > 20) & (hertz < 400)
    assert amplitude[low, 0].max() < 6 * np.median(amplitude[low, 0])
    for kind in KINDS:
        assert np.sqrt((heard(kind).values ** 2).mean()) == pytest.approx(1, rel=1e-4)


def test_slip_blurs_high_harmonics():
    def sharp(slip):
        hertz, amplitude = envelope_spectrum(heard("outer race", slip=slip, noise=0.05, damping=0.1))
        fault = RIG.frequencies(1797)["outer race"]
        first, tenth = (amplitude[np.abs(hertz - n * fault) < 2, 0].max() for n in (1, 10))
        return tenth / first

    assert sharp(0.0) > 3 * sharp(0.02)


def simulated(**changed):
    given = {"rpm": (1730, 1797), "hertz": 12000, "window": 2400, "recordings": 3, "seed": 4} | changed
    return simulate_bearings(["OR", "IR", "normal"], RIG, **given)


def test_the_same_seed_gives_the_same_recordings_and_more_of_them_change_none():
    one, again, other = simulated(), simulated(), simulated(seed=5)
    assert one.digest == again.digest != other.digest
    more = simulated(recordings=5)
    place = {name: i for i, name in enumerate(more.names)}
    for i, name in enumerate(one.names):
        np.testing.assert_array_equal(one.items[i].values, more.items[place[name]].values)


def test_windows_of_a_simulated_recording_share_their_group():
    found = simulated()
    assert found.classes == ("IR", "OR", "normal") and found.modality == "signal"
    assert len(found) == 3 * 3 * 5 and found.items[0].values.shape == (2400, 1)
    assert len(set(found.names)) == len(found) and len(set(found.groups)) == 9
    for name, group, label in zip(found.names, found.groups, found.labels, strict=True):
        assert name.startswith(f"{group} from ") and found.classes[label] in group
    assert len({found.items.digest(i) for i in range(len(found))}) == len(found)


def test_recordings_are_of_different_machines():
    found = simulated(recordings=6)
    tops = []
    for group in sorted({group for group in found.groups if " OR " in group}):
        values = found.items[int(np.flatnonzero(found.groups == group)[0])].values[:, 0]
        tops.append(np.abs(np.fft.rfft(values)).argmax() * 12000 / 2400)
    assert np.ptp(tops) > 500, tops


def test_envelopes_keep_labels_groups_and_sides():
    found = simulated()
    swings = envelopes(found)
    np.testing.assert_array_equal(swings.labels, found.labels)
    np.testing.assert_array_equal(swings.groups, found.groups)
    assert swings.items[0].hertz == 12000 and swings.digest != found.digest
    time = np.arange(12000) / 12000
    beat = (1 + 0.5 * np.sin(2 * np.pi * 40 * time)) * np.sin(2 * np.pi * 2000 * time)
    swing = envelopes(signals_at_hand([beat, beat], ["a", "b"], rates=12000)).items[0].values[:, 0]
    np.testing.assert_allclose(swing[600:-600], 0.5 * np.sin(2 * np.pi * 40 * time)[600:-600], atol=0.02)


@pytest.mark.parametrize(
    ("label", "kind"),
    [("IR", "inner race"), ("outer_race", "outer race"), ("Ball", "ball"), ("healthy", "normal")],
)
def test_usual_names_of_faults_are_understood(label, kind):
    assert kind_of_fault(label) == kind


@pytest.mark.parametrize(
    "given", [(1, 8, 40), (9, 40, 39), (9, 0, 39), (9, 8, 39, 90), (9, 8, float("nan")), (9, 8, 39, -1)]
)
def test_what_is_no_bearing_is_refused(given):
    with pytest.raises(Refusal, match="are no bearing"):
        Bearing(*given)


def test_refusals_of_the_simulation_name_the_fix():
    with pytest.raises(Refusal, match="above 0"):
        RIG.frequencies(0)
    with pytest.raises(Refusal, match="F1=outer race"):
        simulate_bearings(["F1", "IR"], RIG, (1700, 1800), 12000, 1200)
    with pytest.raises(Refusal, match='"inner" and "IR" would be simulated alike'):
        simulate_bearings(["IR", "inner"], RIG, (1700, 1800), 12000, 1200)
    with pytest.raises(Refusal, match="the slower first"):
        simulated(rpm=(1797, 1730))
    with pytest.raises(Refusal, match="cannot be seen with 5000"):
        heard("ball", hertz=5000, resonance_hertz=3000)
    with pytest.raises(Refusal, match="cannot be simulated"):
        heard("gear")
    with pytest.raises(Refusal, match="envelopes are of signals"):
        envelopes(texts_at_hand(["a", "b"], ["x", "y"]))


ARMS = {"majority", "target only", "source only", "pooled", "RuLSIF", "CORAL", "shrunk to source"}


def rig(data_dir, *more):
    folder = data_dir / "industry_cwru_bearing"
    loads = ("condition=load_hp", "target_values=1,2,3", "labelled_values=1")
    return (f"data={folder}", "label=fault", *loads, *more)


def check_run(folder, labelled, tested, arms=ARMS):
    "Every number again; labels and conditions as the names of the recordings have them; no recording on both sides."
    results, predictions = made(folder)
    assert recomputed(results, predictions) == results
    assert results["headline"]["baseline"] == "target only"
    assert {row["arm"] for row in results["arms"]} == arms
    parts = predictions["group"].str.split("_", expand=True)
    names = np.array(results["classes"])[predictions["label"]]
    assert (parts[1].to_numpy() == names).all()
    assert (predictions["case"].str.split(" from ").str[0] == predictions["group"]).all()
    sides = {part: set(parts[0][predictions["part"] == part]) for part in ("train", "test")}
    assert sides == {"train": labelled, "test": tested}
    drawn, held_out = (set(predictions[predictions["part"] == part]["group"]) for part in ("train", "test"))
    assert not drawn & held_out, "a recording on both sides"
    return results, {
        (row["arm"], row["labels_per_class"]): row["mean"]
        for row in results["arms"]
        if row["metric"] == "balanced_accuracy"
    }


@pytest.mark.slow
def test_from_no_load_to_new_loads_of_a_real_rig(tmp_path, data_dir):
    code, _, errors = report("machine_fault", tmp_path / "run", *rig(data_dir, "source_values=0"))
    assert code == 0, errors
    results, means = check_run(tmp_path / "run", {"load1"}, {"load2", "load3"})
    assert results["classes"] == ["B", "IR", "OR"] and results["test_cases"] == 18 * 25
    assert means["majority", 5] == pytest.approx(1 / 3) and means["target only", 20] > 0.6
    assert means["source only", 5] == means["source only", 20]
    page = (tmp_path / "run" / "report.html").read_text()
    heads = ('class="verdict"', "What do the faults look like?", "How sure?", "How was this made?")
    places = [page.index(words) for words in heads]
    assert places == sorted(places)
    assert "Left out, because only the source has it: normal." in page
    assert json.loads((tmp_path / "run" / "stamp.json").read_text())["data"].keys() >= {"load_hp 0"}


@pytest.mark.slow
def test_from_a_simulation_to_a_real_rig_twice_the_same(tmp_path, data_dir):
    given = rig(data_dir, "source=simulated", "budgets=5", "simulated_each=8")
    for name in ("one", "two"):
        code, _, errors = report("machine_fault", tmp_path / name, *given)
        assert code == 0, errors
    (first, rows), (second, same_rows) = made(tmp_path / "one"), made(tmp_path / "two")
    assert first == second
    pd.testing.assert_frame_equal(rows, same_rows)
    _, means = check_run(tmp_path / "one", {"load1"}, {"load2", "load3"}, ARMS | {"target only, spectrum"})
    assert means["target only", 5] > 0.4 and means["source only", 5] > 0.5, "kinematics alone beat chance"
    page = (tmp_path / "one" / "report.html").read_text()
    assert "OR: the formulae expect 104.6 blows a second at 1,750 revolutions a minute" in page
    assert (
        "Simulated: 8 recordings of a second for each of B (ball), IR (inner race) and OR (outer race)"
        in page
    )


def shop(folder, faults=("IR", "OR"), conditions=("mild", "harsh"), machines=4, change=lambda table: table):
    "Simulated recordings as a person would keep them: an .npz file and a table."
    folder.mkdir()
    rows, kept = [], {}
    for place, mood in enumerate(conditions):
        found = simulate_bearings(faults, RIG, (1700, 1800), 6000, 6000, recordings=machines, seed=place)
        for i, group in enumerate(found.groups.tolist()):
            key = f"{mood}{i}"
            kept[key] = found.items[i].values[:, 0]
            rows.append({"key": key, "mood": mood, "fault": group.split()[1], "rpm": 1750, "hertz": 6000})
    np.savez(folder / "shop.npz", **kept)
    change(pd.DataFrame(rows)).to_csv(folder / "index.csv", index=False)
    return folder


def asked(folder, **changed):
    given = {
        "label": "fault",
        "condition": "mood",
        "source_values": "mild",
        "target_values": "harsh",
        "window": "1200",
        "budgets": "2",
    }
    return [f"data={folder}", *(f"{name}={value}" for name, value in (given | changed).items() if value)]


@pytest.mark.slow
def test_whole_recordings_are_dealt_where_no_condition_is_named_for_labels(tmp_path):
    code, _, errors = report("machine_fault", tmp_path / "run", *asked(shop(tmp_path / "shop")))
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    assert recomputed(results, predictions) == results
    drawn, held_out = (set(predictions[predictions["part"] == part]["group"]) for part in ("train", "test"))
    assert not drawn & held_out and all(group.startswith("harsh") for group in drawn | held_out)


@pytest.mark.slow
def test_sound_files_with_names_of_their_own_against_a_simulation(tmp_path):
    folder = shop(tmp_path / "shop", change=lambda table: table.replace({"IR": "F1", "OR": "F7"}))
    with np.load(folder / "shop.npz") as kept:
        for key in kept.files:
            wavfile.write(folder / f"{key}.wav", 6000, (kept[key] * 3000).astype(np.int16))
    (folder / "shop.npz").unlink()
    given = {"source": "simulated", "source_values": "", "target_values": "harsh", "preset": "quick"}
    given |= {"kinds": "F1=inner race,F7=outer race", "simulated_each": "4", "headline_arm": "CORAL"}
    code, _, errors = report("machine_fault", tmp_path / "run", *asked(folder, **given))
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    assert recomputed(results, predictions) == results and results["classes"] == ["F1", "F7"]
    assert results["headline"]["arm"] == "CORAL" and set(predictions["group"].str[:5]) == {"harsh"}
    means = {row["arm"]: row["mean"] for row in results["arms"] if row["metric"] == "balanced_accuracy"}
    assert means["source only"] > 0.8, "simulated recordings are told apart by those of another seed"


def one_fault(table):
    return table.assign(fault="IR")


REFUSALS = {
    "one class": ({}, one_fault, "one-class"),
    "no such column": ({"condition": "moods"}, None, 'no column "moods".*Did you mean "mood"'),
    "no such label": ({"label": "faults"}, None, 'no column "faults".*Did you mean "fault"'),
    "no recording under it": (
        {"target_values": "rough"},
        None,
        'no row has "rough" in column "mood"; there are harsh, mild',
    ),
    "a window longer than a recording": (
        {"window": "7000"},
        None,
        "has 6,000 samples, fewer than one window of 7,000",
    ),
    "one condition twice": ({"target_values": "mild"}, None, "both sides"),
    "no source": ({"source_values": ""}, None, "source_values"),
    "nothing to test on": ({"labelled_values": "harsh"}, None, "nothing is left to test on"),
    "a fault that cannot be simulated": (
        {"source": "simulated", "source_values": ""},
        lambda table: table.replace("OR", "F7"),
        "F7=outer race",
    ),
    "no speed": ({"source": "simulated", "source_values": "", "speed": "turns"}, None, r"speed=\.\.\."),
    "one recording a class": (
        {},
        lambda table: table.groupby(["mood", "fault"]).head(1),
        "comes from 1 group and needs 2",
    ),
    "a class that the source lacks": (
        {},
        lambda table: table[(table["mood"] == "harsh") | (table["fault"] == "IR")],
        'no recording of "OR"',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_come_before_anything_is_trained(tmp_path, case):
    changed, change, words = REFUSALS[case]
    folder = shop(tmp_path / "shop", change=change or (lambda table: table))
    code, _, errors = report("machine_fault", tmp_path / "run", *asked(folder, **changed))
    assert code == 2 and re.search(words, errors, re.DOTALL), errors
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    "changed", [{"balls": "1"}, {"ball_mm": "0"}, {"window": "8"}, {"source": "guess"}, {"view": "wavelet"}]
)
def test_parameters_out_of_range_are_refused(tmp_path, changed):
    given = {"data": str(tmp_path), "label": "fault,diameter"}
    schema = read_schema(find_template("machine_fault"))
    assert schema.validate(given)["label"] == ["fault", "diameter"]
    with pytest.raises(Refusal, match=next(iter(changed))):
        schema.validate(given | changed)
