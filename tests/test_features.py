"""The boundary cache and the engines: what is found again, what must not be, and what damage does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tljupyter.backbones.registry import Backbone, random_backbone
from tljupyter.domains.augmentations import Augmentations
from tljupyter.features import boundary as boundary_module
from tljupyter.features.boundary import (
    boundary_engine,
    boundary_features,
    estimate_bytes,
    feature_keys,
    in_order,
)
from tljupyter.features.cache import FeatureCache, FeatureKey
from tljupyter.features.engines import (
    UnusableEngine,
    choose_engine,
    compile_prefix,
    difference,
    engine_for,
    engine_label,
    network_digest,
)
from tljupyter.refusals import Refusal

POOL = 5  # the boundary after the last stage of ResNet-20


class Pictures:
    "Items in memory that count how often each is read."

    def __init__(self, count: int, seed: int = 0):
        self.arrays = list(np.random.default_rng(seed).integers(0, 256, (count, 40, 40, 3), dtype=np.uint8))
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> Image.Image:
        self.reads.append(index)
        return Image.fromarray(self.arrays[index])

    def digest(self, index: int) -> str:
        return hashlib.blake2b(self.arrays[index]).hexdigest()


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("resnet20_cifar", seed=3)


@pytest.fixture
def cache(tmp_path) -> FeatureCache:
    return FeatureCache(tmp_path / "features", max_bytes=2**24)


@pytest.fixture
def images_seen(backbone):
    "How many images each call of the first layer got."
    seen: list[int] = []
    first = next(m for m in backbone.stages[0].module.modules() if isinstance(m, nn.Conv2d))
    hook = first.register_forward_hook(lambda layer, given, output: seen.append(len(output)))
    yield seen
    hook.remove()


# What is found again


def test_a_hit_gives_the_identical_array_and_runs_nothing(backbone, cache, images_seen):
    items = Pictures(20)
    first = boundary_features(backbone, items, POOL, cache=cache, batch_size=8)
    assert images_seen == [8, 8, 4] and len(items.reads) == 20
    images_seen.clear(), items.reads.clear()
    second = boundary_features(backbone, items, POOL, cache=cache, batch_size=8)
    assert np.array_equal(first, second) and first.dtype == second.dtype == np.float32
    assert images_seen == [] and items.reads == []
    assert second.shape == (20, 1, backbone.features)


def test_features_are_those_of_the_network(backbone, cache):
    items = Pictures(5)
    images = torch.from_numpy(np.stack([backbone.input(items[i]) for i in range(5)]))
    for boundary in range(POOL + 1):
        with torch.inference_mode():
            expected = backbone.prefix(boundary)(images).numpy()
        found = boundary_features(backbone, items, boundary, cache=cache)
        assert found.shape == (5, 1, *boundary_module.shape_at(backbone, boundary))
        np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)


def test_only_what_is_missing_is_computed(backbone, cache, images_seen):
    items = Pictures(12)
    some = boundary_features(backbone, items, POOL, [2, 5, 7], cache=cache)
    images_seen.clear()
    all_of_them = boundary_features(backbone, items, POOL, cache=cache)
    assert sum(images_seen) == 9
    np.testing.assert_array_equal(all_of_them[[2, 5, 7]], some)
    np.testing.assert_allclose(all_of_them, boundary_features(backbone, items, POOL), atol=1e-5)


def test_equal_items_are_one_image_wherever_they_are(backbone, cache, images_seen):
    items = Pictures(6)
    items.arrays += [items.arrays[1], items.arrays[4]]
    features = boundary_features(backbone, items, POOL, [7, 1, 6, 0, 1], cache=cache)
    assert sum(images_seen) == 3 and len(items.reads) == 3
    assert np.array_equal(features[1], features[2]) and np.array_equal(features[1], features[4])
    moved = Pictures(6)
    moved.arrays.reverse()
    images_seen.clear()
    again = boundary_features(backbone, moved, POOL, [1, 4, 5], cache=cache)
    assert images_seen == [] and np.array_equal(again, features[[0, 1, 3]])


@pytest.mark.slow
def test_a_new_process_finds_them(backbone, cache):
    expected = boundary_features(backbone, Pictures(4), POOL, cache=cache)
    code = """
import sys
import numpy as np
from test_features import POOL, Pictures, FeatureCache, Path, boundary_features, random_backbone
items = Pictures(4)
np.save(sys.argv[2], boundary_features(random_backbone("resnet20_cifar", seed=3), items, POOL, cache=FeatureCache(Path(sys.argv[1]))))
assert not items.reads
"""
    out = cache.folder / "found.out.npy"
    run_here(code, cache.folder, out)
    assert np.array_equal(np.load(out), expected)


def run_here(code: str, *arguments: object) -> None:
    "Run code in a process of its own, beside this file."
    command = [sys.executable, "-c", code, *map(str, arguments)]
    subprocess.run(command, cwd=Path(__file__).parent, check=True, timeout=300)


# What must not be found


def changed_weights(backbone: Backbone) -> Backbone:
    other = backbone.copy()
    with torch.no_grad():
        next(other.stages[1].module.parameters()).view(-1)[0] += 1e-6
    return other


def changed_statistics(backbone: Backbone) -> Backbone:
    other = backbone.copy()
    next(m for m in other.stages[2].module.modules() if isinstance(m, nn.BatchNorm2d)).running_mean[0] += 1e-3
    return other


def test_trained_stages_are_computed_again(backbone, cache, images_seen):
    items = Pictures(3)
    before = boundary_features(backbone, items, POOL, cache=cache)
    for change in (changed_weights, changed_statistics):
        other = change(backbone)
        reads = len(items.reads)
        after = boundary_features(other, items, POOL, cache=cache)
        assert len(items.reads) == reads + 3
        assert not np.array_equal(before, after)


def test_stages_after_the_boundary_do_not_matter(backbone, cache, images_seen):
    items = Pictures(3)
    boundary_features(backbone, items, 2, cache=cache)
    images_seen.clear(), items.reads.clear()
    boundary_features(changed_statistics(backbone), items, 2, cache=cache)
    assert items.reads == []


@pytest.mark.parametrize(
    "change",
    [{"boundary": 3}, {"dtype": "float16"}, {"engine": "jit"}, {"input": 24}],
    ids=lambda change: next(iter(change)),
)
def test_another_cut_format_engine_or_preparation_is_a_miss(backbone, cache, change):
    items = Pictures(3)
    boundary_features(backbone, items, POOL, cache=cache)
    items.reads.clear()
    given = {"boundary": POOL, "dtype": "float32", "engine": "eager"} | {
        k: v for k, v in change.items() if k != "input"
    }
    other = (
        random_backbone("resnet20_cifar", backbone.input.at(24), seed=3) if "input" in change else backbone
    )
    found = boundary_features(other, items, cache=cache, **given)
    assert sorted(items.reads) == [0, 1, 2] and found.dtype == given["dtype"]


def test_the_version_of_the_engine_is_part_of_the_key(backbone):
    assert torch.__version__ in feature_keys(backbone, POOL)[0].engine
    assert feature_keys(backbone, POOL, engine="jit") != feature_keys(backbone, POOL)


# Views


def augmentations() -> Augmentations:
    return Augmentations(("horizontal_flip", "noise"))


def test_views_are_seeded_by_content_and_read_once(backbone, cache):
    items = Pictures(4)
    given = {"views": 3, "augmentations": augmentations(), "seed": 5}
    features = boundary_features(backbone, items, POOL, cache=cache, **given)
    assert features.shape[:2] == (4, 3) and len(items.reads) == 4
    assert np.array_equal(features[:, :1], boundary_features(backbone, items, POOL, cache=cache))
    assert len(items.reads) == 4  # the plain view was there
    alone = boundary_features(backbone, items, POOL, [2], **given)
    np.testing.assert_allclose(alone[0], features[2], atol=1e-5)  # not by place in the list
    other = boundary_features(backbone, items, POOL, cache=cache, **given | {"seed": 6})
    assert np.array_equal(other[:, 0], features[:, 0]) and not np.allclose(other[:, 1:], features[:, 1:])
    more = boundary_features(backbone, items, POOL, cache=cache, **given | {"views": 4})
    assert np.array_equal(more[:, :3], features)


def test_views_without_augmentations_are_refused(backbone):
    with pytest.raises(Refusal, match="views = 2"):
        boundary_features(backbone, Pictures(2), POOL, views=2)


# Damage


def segments(cache: FeatureCache) -> list[Path]:
    return sorted(cache.folder.rglob("*.npy"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 4
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "a flipped bit": lambda path: flip_a_bit(path),
    "a truncated file": lambda path: cut_short(path),
    "an empty file": lambda path: path.write_bytes(b""),
    "a foreign file": lambda path: path.write_bytes(b"not an array"),
    "an index that is no JSON": lambda path: path.with_suffix(".json").write_text("{"),
    "an index of something else": lambda path: path.with_suffix(".json").write_text("[1]"),
    "an index without rows": lambda path: path.with_suffix(".json").write_text("{}"),
    "a flipped bit in the index": lambda path: flip_a_bit(path.with_suffix(".json")),
    "rows that are gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_computed_again(backbone, cache, damage):
    items = Pictures(6)
    first = boundary_features(backbone, items, POOL, cache=cache).copy()
    (path,) = segments(cache)
    DAMAGES[damage](path)
    items.reads.clear()
    second = boundary_features(backbone, items, POOL, cache=cache)
    assert sorted(items.reads) == list(range(6)) and np.array_equal(first, second)
    items.reads.clear()
    boundary_features(backbone, items, POOL, cache=cache)
    assert items.reads == []


def test_a_pickle_in_the_cache_is_never_loaded(cache, tmp_path):
    key = FeatureKey("n", "c", "p", "e")
    cache.put(key, ["a"], np.zeros((1, 3), np.float32))
    (path,) = segments(cache)
    np.save(path, np.array([{"code": 1}], dtype=object), allow_pickle=True)
    assert cache.find(key, ["a"]) == {}


def test_an_interrupted_run_keeps_what_it_has(backbone, cache):
    items = Pictures(30)

    def stop(there: int, total: int) -> None:
        if there >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        boundary_features(backbone, items, POOL, cache=cache, batch_size=8, progress=stop)
    items.reads.clear()
    told: list[tuple[int, int]] = []
    boundary_features(
        backbone,
        items,
        POOL,
        cache=cache,
        batch_size=8,
        progress=lambda there, total: told.append((there, total)),
    )
    assert sorted(items.reads) == list(range(16, 30)) and told == [(24, 30), (30, 30)]


# Room


def test_the_bound_holds_and_the_least_recently_used_go(tmp_path):
    cache = FeatureCache(tmp_path, max_bytes=10_000)
    key = FeatureKey("n", "c", "p", "e")
    rows = np.ones((1, 500), np.float32)  # 2,128 bytes in a file
    for name in "abcd":
        cache.put(key, [name], rows)
    assert set(cache.find(key, ["a"])) == {"a"}  # now b is the one that was not used for longest
    for name in "ef":
        cache.put(key, [name], rows)
        assert cache.size() <= 10_000
    assert set(cache.find(key, "abcdef")) == set("adef")


def test_what_was_read_stays_readable_after_eviction(tmp_path):
    cache = FeatureCache(tmp_path, max_bytes=5_000)
    key = FeatureKey("n", "c", "p", "e")
    kept = cache.put(key, ["a"], np.ones((1, 500), np.float32))
    for name in "bcd":
        cache.put(key, [name], np.zeros((1, 500), np.float32))
    assert cache.find(key, ["a"]) == {} and (kept == 1).all()


def test_too_small_a_cache_warns_once_and_computes(backbone, tmp_path):
    cache = FeatureCache(tmp_path / "small", max_bytes=500)
    with pytest.warns(UserWarning, match="cache_gib") as warned:
        features = boundary_features(backbone, Pictures(40), POOL, cache=cache, batch_size=8)
    assert len(warned) == 1 and cache.size() == 0
    np.testing.assert_allclose(features, boundary_features(backbone, Pictures(40), POOL), atol=1e-5)


def test_an_unwritable_cache_folder_does_not_stop_a_run(backbone, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="not kept on disk") as warned:
        features = boundary_features(
            backbone, Pictures(4), POOL, cache=FeatureCache(tmp_path / "file" / "cache")
        )
    assert len(warned) == 1 and features.shape == (4, 1, 64)


@pytest.mark.slow
def test_a_full_disk_does_not_stop_a_run(cache):
    code = """
import resource, sys, warnings
import numpy as np
from test_features import POOL, Pictures, FeatureCache, Path, boundary_features, random_backbone
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # from here on, a larger file fails as on a full disk
backbone, items = random_backbone("resnet20_cifar"), Pictures(20)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    found = boundary_features(backbone, items, POOL, cache=FeatureCache(Path(sys.argv[1])), batch_size=8)
assert ["not kept on disk" in str(w.message) for w in warned] == [True], warned
assert np.array_equal(found, boundary_features(backbone, items, POOL, batch_size=8))
"""
    run_here(code, cache.folder)
    assert not list(cache.folder.rglob("*.npy*"))


def test_left_overs_of_a_killed_process_are_swept_away(tmp_path):
    cache, key = FeatureCache(tmp_path, max_bytes=3_000), FeatureKey("n", "c", "p", "e")
    cache.put(key, ["a"], np.ones((1, 500), np.float32))
    (path,) = segments(cache)
    old = [path.with_name("old.npy.partial"), path.with_name("old.npy")]
    for left in (*old, path.with_name("new.npy.partial")):
        left.write_bytes(b"half")
    for left in old:
        os.utime(left, (0, 0))
    cache.put(key, ["b"], np.ones((1, 500), np.float32))
    assert not any(left.exists() for left in old) and path.with_name("new.npy.partial").exists()
    assert set(cache.find(key, "ab")) == {"b"}


def test_estimates_are_exact(backbone, cache):
    for boundary, dtype in ((POOL, "float32"), (2, "float16"), (0, "float32")):
        found = boundary_features(backbone, Pictures(3), boundary, dtype=dtype, cache=cache)
        assert estimate_bytes(backbone, boundary, 3, dtype=dtype) == found.nbytes


def test_half_precision_is_close_and_says_when_it_cannot_be(backbone, cache):
    items = Pictures(4)
    exact, half = (
        boundary_features(backbone, items, 2, dtype=dtype, cache=cache) for dtype in ("float32", "float16")
    )
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, exact, rtol=1e-3, atol=1e-3)
    loud = backbone.copy()
    with torch.no_grad():
        for norm in loud.stages[0].module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.mul_(1e7)
    with pytest.raises(Refusal, match="float16"):
        boundary_features(loud, items, 1, dtype="float16", cache=cache)


def test_large_results_lie_in_a_file(backbone, cache, monkeypatch):
    monkeypatch.setattr(boundary_module, "BLOCK_BYTES", 10_000)
    items = Pictures(12)
    spread = boundary_features(
        backbone, items, 2, cache=cache, batch_size=4
    )  # many segments, so it is gathered
    assert len(segments(cache)) > 1
    owner = spread
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    assert not isinstance(owner, np.ndarray)  # a mapping of a file
    np.testing.assert_allclose(spread, boundary_features(backbone, items, 2), atol=1e-5)


def test_results_are_read_only_wherever_they_lie(backbone, cache):
    for found in (
        boundary_features(backbone, Pictures(2), POOL),
        boundary_features(backbone, Pictures(2), POOL, cache=cache),
        boundary_features(backbone, Pictures(2), POOL, [1, 0], cache=cache),
    ):
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 0


# Two at once


@pytest.mark.slow
def test_two_processes_at_once(backbone, cache, tmp_path):
    code = """
import sys, time
import numpy as np
from test_features import POOL, Pictures, FeatureCache, Path, boundary_features, random_backbone, torch
torch.set_num_threads(1)
backbone, cache = random_backbone("resnet20_cifar", seed=3), FeatureCache(Path(sys.argv[1]), max_bytes=100_000)
Path(sys.argv[2]).touch()
while not Path(sys.argv[3]).exists():
    time.sleep(0.001)
for repeat in range(4):
    for first in (0, 30, 60):
        found = boundary_features(backbone, Pictures(90), POOL, range(first, first + 60 - first // 2), cache=cache, batch_size=16)
        np.save(f"{sys.argv[4]}-{first}.npy", found)
"""
    command = [sys.executable, "-c", code, cache.folder]
    files = [(tmp_path / f"ready{i}", tmp_path / "go", tmp_path / f"out{i}") for i in range(2)]
    running = [subprocess.Popen([*command, *paths], cwd=Path(__file__).parent) for paths in files]
    while not all(ready.exists() for ready, _, _ in files) and all(r.poll() is None for r in running):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    items = Pictures(90)
    for first in (0, 30, 60):
        expected = boundary_features(backbone, items, POOL, range(first, first + 60 - first // 2))
        for i in range(2):
            np.testing.assert_allclose(np.load(tmp_path / f"out{i}-{first}.npy"), expected, atol=1e-5)
    assert cache.size() <= 2 * 100_000 and not list(cache.folder.rglob("*.partial"))


# The stream


def test_decoding_never_runs_far_ahead():
    started: list[int] = []
    lock = threading.Lock()

    def work(task: int) -> int:
        with lock:
            started.append(task)
        return task

    for done, result in enumerate(in_order(work, range(500), threads=2, ahead=10)):
        assert result == done and len(started) <= done + 12


def test_an_unreadable_item_stops_the_run_and_keeps_the_rest(backbone, cache):
    class OneBad(Pictures):
        def __getitem__(self, index: int) -> Image.Image:
            if index == 9:
                raise Refusal("picture 9 is not an image")
            return super().__getitem__(index)

    with pytest.raises(Refusal, match="picture 9"):
        boundary_features(backbone, OneBad(12), POOL, cache=cache, batch_size=4)
    items = Pictures(12)
    boundary_features(backbone, items, POOL, cache=cache, batch_size=4)
    assert sorted(items.reads) == [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("given", "says"),
    [({"boundary": 9}, "5 stages"), ({"dtype": "float8"}, "float16"), ({"engine": "onnx"}, "onnxruntime")],
)
def test_wrong_arguments_are_refused(backbone, given, says):
    with pytest.raises(Refusal, match=says):
        boundary_features(backbone, Pictures(2), **{"boundary": POOL} | given)


def test_no_items_give_no_rows(backbone):
    assert boundary_features(backbone, Pictures(3), POOL, []).shape == (0, 1, 64)


# Engines


@pytest.fixture(scope="module")
def prefix() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    return torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["jit", "onnxruntime"])
def test_engines_give_equal_outputs_for_any_number_of_images(backbone, batch, engine):
    prefix = backbone.prefix(POOL)
    eager, compiled = (compile_prefix(prefix, batch[:3], name) for name in ("eager", engine))
    for count in (1, 2, 9):
        given = batch[:count].numpy()
        assert difference(compiled(given), eager(given)) <= 1e-4


class OnlyEager(nn.Module):
    "Whether it adds depends on the values, which no trace can say; and bincount has no counterpart in ONNX."

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((1, 2, 3))
        counts = torch.bincount((means > 0).long(), minlength=2)
        return torch.stack([m + counts[0] if float(m) > 0 else m - counts[1] for m in means])[:, None]


@pytest.mark.slow
def test_a_network_that_others_cannot_run_stays_eager(batch):
    choice = choose_engine(OnlyEager().eval(), batch)
    assert choice.engine == "eager" and set(choice.images_per_second) == {"eager"}
    with pytest.raises(UnusableEngine, match='choose "eager"'):
        compile_prefix(OnlyEager().eval(), batch, "onnxruntime")


def test_outputs_that_differ_are_not_accepted(batch):
    class Batchwise(nn.Module):
        "The trace fixes the number of images that was seen."

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) * len(x)

    with pytest.raises(UnusableEngine, match="differ"):
        compile_prefix(Batchwise().eval(), batch, "jit")


@pytest.mark.slow
def test_a_missing_library_leaves_the_engine_out(tmp_path):
    code = """
import sys
sys.modules["onnxruntime"] = None
import importlib.metadata
real = importlib.metadata.version
def version(name):
    if name == "onnxruntime":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
from test_features import POOL, UnusableEngine, choose_engine, compile_prefix, random_backbone, torch
prefix, batch = torch.nn.Conv2d(3, 4, 3).eval(), torch.randn(4, 3, 32, 32)
assert set(choose_engine(prefix, batch).images_per_second) <= {"eager", "jit"}
try:
    compile_prefix(prefix, batch, "onnxruntime")
except UnusableEngine as refusal:
    assert "pip install" in str(refusal)
else:
    raise AssertionError("an engine that is not there was accepted")
"""
    run_here(code)


@pytest.mark.slow
def test_little_work_is_eager_and_a_measured_choice_is_remembered(prefix, batch, tmp_path, monkeypatch):
    assert engine_for(prefix, batch, 100, tmp_path).engine == "eager" and not list(tmp_path.iterdir())
    measured = engine_for(prefix, batch, 10**9, tmp_path)
    assert set(measured.images_per_second) >= {"eager"}
    monkeypatch.setattr("tljupyter.features.engines.choose_engine", None)  # a second measurement would fail
    assert engine_for(prefix, batch, 10**9, tmp_path) == measured
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"engine": "steam"}))
    with pytest.raises(TypeError):  # an unreadable memory is no memory
        engine_for(prefix, batch, 10**9, tmp_path)


@pytest.mark.slow
def test_an_exported_network_is_kept_and_a_damaged_one_replaced(prefix, batch, tmp_path, monkeypatch):
    eager = compile_prefix(prefix, batch)(batch.numpy())
    compile_prefix(prefix, batch, "onnxruntime", tmp_path)
    (path,) = tmp_path.glob("*.onnx")
    exported = path.read_bytes()
    flip_a_bit(path)
    assert difference(compile_prefix(prefix, batch, "onnxruntime", tmp_path)(batch.numpy()), eager) <= 1e-4
    path.write_bytes(exported[:1000])
    assert difference(compile_prefix(prefix, batch, "onnxruntime", tmp_path)(batch.numpy()), eager) <= 1e-4
    assert len(path.read_bytes()) > 1000
    monkeypatch.setattr(torch.onnx, "export", None)  # from here on, nothing can be exported
    assert difference(compile_prefix(prefix, batch, "onnxruntime", tmp_path)(batch.numpy()), eager) <= 1e-4


@pytest.mark.slow
def test_exported_networks_count_and_may_be_evicted(backbone, tmp_path):
    cache = FeatureCache(tmp_path / "c", max_bytes=2**21)
    boundary_features(backbone, Pictures(3), POOL, engine="onnxruntime", cache=cache)
    (exported,) = cache.engines.glob("*.onnx")
    assert cache.size() > exported.stat().st_size
    cache.put(FeatureKey("n", "c", "p", "e"), ["a"], np.ones((1, 2**21 // 4 - 1000), np.float32))
    assert not exported.exists() and cache.size() <= 2**21


@pytest.mark.slow
def test_the_engine_for_a_boundary_is_the_one_that_is_used(backbone, cache):
    choice = boundary_engine(backbone, POOL, 10**9, cache)
    features = boundary_features(backbone, Pictures(3), POOL, engine=choice.engine, cache=cache)
    np.testing.assert_allclose(features, boundary_features(backbone, Pictures(3), POOL), atol=1e-4)
    assert boundary_engine(backbone, 0, 10**9, cache).engine == "eager"


def test_training_mode_is_not_compiled(backbone):
    trained = backbone.copy().prefix(POOL).train()
    with pytest.raises(ValueError, match="eval"):
        compile_prefix(trained, torch.randn(2, 3, 32, 32))


@pytest.mark.slow
def test_compiling_is_quiet(prefix, batch, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile_prefix(prefix, batch, "onnxruntime")
        compile_prefix(prefix, batch, "jit")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_labels_and_digests_are_stable(backbone):
    assert engine_label("eager") == f"eager torch {torch.__version__}"
    code = f"""
from test_features import network_digest, random_backbone
assert network_digest(random_backbone("resnet20_cifar", seed=3).prefix(3)) == "{network_digest(backbone.prefix(3))}"
"""
    run_here(code)


# The benchmarks


@pytest.mark.slow
def test_the_bench_prints_one_object():
    command = [sys.executable, "-m", "tests.bench", "import_time", "--json"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=300
    )
    report = json.loads(done.stdout)
    assert report["command"].endswith("tests.bench import_time --json") and report["tljupyter"]
    rows = report["benchmarks"]["import_time"]
    assert done.returncode == (0 if all(row["met"] for row in rows) else 1)
    assert [row["target"] for row in rows] == ["at most 0.3 s", "at most 0"]
