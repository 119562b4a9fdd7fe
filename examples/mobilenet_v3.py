"""A torchvision classifier with auxiliary branches in a plain training loop.

MobileNetV3-small on the digits of scikit-learn.

python examples/mobilenet_v3.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import mobilenet_v3_small

import dks

EPOCHS, BATCH = 3, 64


def digits() -> tuple[Tensor, Tensor]:
    """1797 images (N, 3, 32, 32) in [-1, 1] and their labels (N,), shuffled."""
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = interpolate(images.float().view(-1, 1, 8, 8) / 8 - 1, size=32, mode="bilinear")
    order = torch.randperm(len(images))
    return images.expand(-1, 3, -1, -1)[order], labels[order]


def main() -> None:
    torch.manual_seed(0)
    images, labels = digits()
    train, test = torch.arange(len(images)).split(1437)

    # torchvision's own batch normalisation averages over 100 steps: too slow for a run of 69.
    model = mobilenet_v3_small(num_classes=10, norm_layer=nn.BatchNorm2d)
    net = dks.attach(model, {"c2": "features.8", "c3": "features.3"}, example=images[:1])
    synergy = dks.SynergyLoss("bidir")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)

    for epoch in range(1, EPOCHS + 1):
        for batch in train.split(BATCH):
            loss = synergy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
        print(
            f"epoch {epoch}: "
            + ", ".join(f"{name} {value.item():.2f}" for name, value in loss.parts.items())
        )

    plain = net.strip().eval()  # the same object as `model`, with nothing left on it
    with torch.no_grad():
        errors = plain(images[test]).argmax(dim=1) != labels[test]
    print(f"top-1 test error of the plain network: {100 * errors.float().mean().item():.2f} %")


if __name__ == "__main__":
    main()
