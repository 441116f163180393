"""The kit's way of training a head on a frozen network, as the benchmarks time it."""

import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tests.bench import Options
from tljupyter.backbones.registry import Backbone
from tljupyter.backbones.weights import load_backbone
from tljupyter.domains.readers import read_folder
from tljupyter.features.boundary import boundary_features
from tljupyter.features.cache import FeatureCache
from tljupyter.features.engines import EngineChoice, choose_engine


def network(options: Options, name: str = "resnet18") -> Backbone:
    "A backbone with random weights: as fast as with any others."
    return load_backbone(name, weights="random", input_size=options.size)


def engine_choice(backbone: Backbone, cache: FeatureCache, options: Options) -> EngineChoice:
    "The measured choice for the whole backbone; leaves the exported network in the cache."
    batch = torch.randn(options.batch_size, 3, options.size, options.size)
    return choose_engine(backbone.prefix(len(backbone.stages)), batch, folder=cache.engines)


def frozen_training(
    backbone: Backbone,
    folder: Path,  # class folders
    cache: FeatureCache,
    options: Options,
    engine: str = "eager",
    seed: int = 0,  # of the draw of labelled images
) -> float:  # seconds
    "Read the folder, features of every image, a solved head on a random half of them, probabilities for the rest."
    start = time.perf_counter()
    domain = read_folder(folder)
    found = boundary_features(
        backbone,
        domain.items,
        len(backbone.stages),
        engine=engine,
        cache=cache,
        batch_size=options.batch_size,
    )
    train, rest = np.array_split(np.random.default_rng(seed).permutation(len(domain)), 2)
    scaler = StandardScaler().fit(found[train, 0])
    head = LogisticRegression(max_iter=1000).fit(scaler.transform(found[train, 0]), domain.labels[train])
    head.predict_proba(scaler.transform(found[rest, 0]))
    return time.perf_counter() - start
