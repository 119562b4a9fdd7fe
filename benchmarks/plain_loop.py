"""The plain training loop that ours is measured against.

What one writes in an afternoon with PyTorch and torchvision.

    python benchmarks/plain_loop.py resnet32 --method dks --images 2048 --epochs 3

prints the seconds of each epoch, its evaluation included. The network and the recipe are those of
`python train.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from workload import METHODS, configuration, random_images

from dks.config.files import choices
from dks.config.schema import Config
from dks.data.images import ImageSet
from dks.models import build_network

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class PlainImages(Dataset):
    """Arrays and labels, as torchvision keeps CIFAR."""

    def __init__(self, data: ImageSet, transform: transforms.Compose) -> None:
        self.arrays = data.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def loader(
    data: ImageSet,
    batch_size: int,
    train: bool,
    device: torch.device,
    pad: int = 4,
    workers: int = 2,
) -> DataLoader:
    """Batches of a set, shuffled and augmented for training."""
    augment = [
        transforms.RandomCrop(data.images.shape[-1], padding=pad),
        transforms.RandomHorizontalFlip(),
    ]
    transform = transforms.Compose(
        [*(augment if train else []), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    return DataLoader(
        PlainImages(data, transform),
        batch_size,
        shuffle=train,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )


def dks_loss(logits: dict[str, Tensor], labels: Tensor, matched: bool) -> Tensor:
    """Equation (4) of the paper as it is written.

    The cross-entropies, and every ordered pair of classifiers.
    """
    loss = sum(F.cross_entropy(z, labels) for z in logits.values())
    if matched:
        for m, teacher in logits.items():
            for n, student in logits.items():
                if m != n:
                    target = F.softmax(teacher.detach(), dim=1)
                    loss = loss - (target * F.log_softmax(student, dim=1)).sum(dim=1).mean()
    return loss


def choose_defaults() -> None:
    """Torch's own, where ours in the same process has chosen otherwise."""
    # else it would import torch's compiler for nothing
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = (
        torch.backends.cuda.matmul.allow_tf32
    ) = False
    torch.backends.cudnn.allow_tf32 = True


class PlainLoop:
    """A network and how it is trained.

    Args:
        config: resolved; its network, method and recipe.
        train, test: images in memory.
        workers: processes of each loader.
    """

    def __init__(
        self,
        config: Config,
        train: ImageSet,
        test: ImageSet,
        device: torch.device,
        workers: int = 2,
    ) -> None:
        recipe = config.recipe
        self.device, self.matched = device, config.matching_strategy.name != "none"
        self.network = build_network(config).to(device)
        self.train_loader = loader(train, recipe.batch_size, True, device, config.data.pad, workers)
        self.test_loader = loader(test, config.eval_batch_size, False, device, workers=workers)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        # without end
        self._batches = itertools.chain.from_iterable(itertools.repeat(self.train_loader))

    def steps(self, count: int) -> float:
        """Take that many steps, without end over the training set; returns the mean loss."""
        choose_defaults()
        self.network.train()
        return sum(self._step(*next(self._batches)) for _ in range(count)) / count

    def epoch(self) -> float:
        """One epoch of training; returns the mean loss."""
        choose_defaults()
        self.network.train()
        return sum(self._step(images, labels) for images, labels in self.train_loader) / len(
            self.train_loader
        )

    @torch.no_grad()
    def evaluate(self) -> float:
        """The top-1 error of c1 on the test set, percent."""
        choose_defaults()
        self.network.eval()
        wrong = total = 0
        for images, labels in self.test_loader:
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            wrong += (self.network(images)["c1"].argmax(dim=1) != labels).sum().item()
            total += len(labels)
        return 100 * wrong / total

    def _step(self, images: Tensor, labels: Tensor) -> float:
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        loss = dks_loss(self.network(images), labels, self.matched)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train plainly on random images; print the seconds of each epoch as JSON."
    )
    parser.add_argument(
        "network", choices=choices("backbone"), metavar="NETWORK", help="as backbone=NETWORK"
    )
    parser.add_argument("--method", choices=METHODS, default="dks")
    parser.add_argument(
        "--images", type=int, default=2048, metavar="N", help="for training (default: 2048)"
    )
    parser.add_argument("--test-images", type=int, default=512, metavar="N", help="(default: 512)")
    parser.add_argument("--epochs", type=int, default=3, metavar="N")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    config = configuration(options.network, options.method)
    train, test = random_images(config, options.images), random_images(config, options.test_images)
    loop = PlainLoop(config, train, test, torch.device(options.device))
    seconds = []
    for _ in range(options.epochs):
        started = time.perf_counter()
        loop.epoch()
        loop.evaluate()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
