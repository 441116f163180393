"""Image files for the benchmarks: JPEG, larger than any network's input, in two class folders."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_images(folder: Path, count: int, side: int = 320) -> Path:
    "`count` different JPEG files in two classes: soft random textures, some 20 kB each."
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        path = folder / ("round", "square")[number % 2] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)
    return folder


def make_many_images(folder: Path, count: int, different: int = 50) -> Path:
    "`count` files with different content, cheaply: copies of a few pictures, each with its number behind the picture."
    pictures = [
        p.read_bytes() for p in sorted(make_images(folder / "pictures", different, side=448).rglob("*.jpg"))
    ]
    for number in range(count):
        path = folder / "many" / ("round", "square")[number % 2] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures[number % different] + number.to_bytes(8))
    return folder / "many"
