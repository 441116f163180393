"""Opening a data view of many images: counts, budget and the first page, against listing the folder alone.

Both sides find every file of the folder in order; they take turns and the best of three rounds counts. The page of
thumbnails is a fact of its own, since it costs the same however many images there are.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import Options, Row
from tests.bench.images import make_many_images
from tljupyter.widgets.data_view import DataView

ROUNDS = 3
SLOWER = 6.0  # times


def measure(options: Options) -> list[Row]:
    with tempfile.TemporaryDirectory() as made:
        folder = make_many_images(Path(made), options.many)
        best = {"listing": float("inf"), "opening": float("inf")}
        for _ in range(ROUNDS):
            for name, work in (("listing", lambda: listing(folder)), ("opening", lambda: opening(folder))):
                best[name] = min(best[name], seconds(work))
        view = DataView(folder)
        thumbnails = seconds(lambda: [view.thumbnails[row.item] for row in view.page()])
        turning = seconds(lambda: view.show(label="square").go(view.pages // 2))
        edit = seconds(lambda: view.relabel(int(view.listed[0]), "round"))
    what = f"of {options.many:,} images"
    return [
        Row(
            f"opening a data view {what} / listing them",
            best["opening"] / best["listing"],
            "times",
            at_most=SLOWER,
        ),
        Row(f"opening a data view {what}", best["opening"], "s"),
        Row("its first page of thumbnails", thumbnails, "s", note=f"{view.per_page} images of 448 px"),
        Row("choosing a class and turning to its middle", turning, "s"),
        Row("one edit, on the disk", edit, "s"),
    ]


def listing(folder: Path) -> int:
    return len(sorted(folder.rglob("*.jpg")))


def opening(folder: Path) -> int:
    view = DataView(folder)
    return len(view.counts()) + len(view.budget()) + len(view.page())


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
