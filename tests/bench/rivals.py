"""The two loops that people know, and one plain forward pass: written here, by their own documentation."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

from tests.bench import Options


def loader(folder: Path, options: Options, shuffle: bool) -> DataLoader:
    "Images resized, cropped and normalised as torchvision's networks expect them; no augmentation."
    preparation = transforms.Compose(
        [
            transforms.Resize(options.size * 256 // 224),
            transforms.CenterCrop(options.size),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = ImageFolder(folder, preparation)
    return DataLoader(images, options.batch_size, shuffle=shuffle, num_workers=options.workers)


def seconds_of(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def one_pass(folder: Path, options: Options) -> float:
    "Seconds of one eager forward pass in inference mode, channels last, files read and decoded."
    network = resnet18(weights=None).eval().to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode():
            for images, _ in loader(folder, options, shuffle=False):
                network(images.contiguous(memory_format=torch.channels_last))

    return seconds_of(run)


def tutorial(folder: Path, options: Options) -> float:
    "Seconds of the loop of PyTorch's transfer-learning tutorial, network frozen, without its validation phase."
    network = resnet18(weights=None)
    for parameter in network.parameters():
        parameter.requires_grad = False
    network.fc = nn.Linear(network.fc.in_features, 2)
    optimiser = torch.optim.SGD(network.fc.parameters(), lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, step_size=7, gamma=0.1)
    loss_of = nn.CrossEntropyLoss()
    batches = loader(folder, options, shuffle=True)

    def run() -> None:
        network.train()
        for _ in range(options.epochs):
            for images, labels in batches:
                optimiser.zero_grad()
                loss_of(network(images), labels).backward()
                optimiser.step()
            schedule.step()

    return seconds_of(run)


def fastai(folder: Path, options: Options) -> float | None:
    "Seconds of fastai's `vision_learner`, frozen, without validation; None where fastai is not installed."
    try:
        from fastai.vision.all import (
            CategoryBlock,
            DataBlock,
            ImageBlock,
            IndexSplitter,
            Resize,
            get_image_files,
            parent_label,
            vision_learner,
        )
    except ImportError:
        return None
    images = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=get_image_files,
        get_y=parent_label,
        splitter=IndexSplitter([]),
        item_tfms=Resize(options.size),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaders = images.dataloaders(folder, bs=options.batch_size, num_workers=options.workers, device="cpu")
        learner = vision_learner(loaders, resnet18, pretrained=False, n_out=2)
        learner.freeze()
        with learner.no_bar(), learner.no_logging():
            return seconds_of(lambda: learner.fit_one_cycle(options.epochs))
