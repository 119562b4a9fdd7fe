"""A network that carries auxiliary branches in training and loses them at test time (Figure 1 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class SupervisedNetwork(nn.Module):
    """A backbone with auxiliary classifiers on some of its inner modules.

    The backbone is left as it is: a branch reads the output of an inner module through a forward hook, so any module that
    computes logits can carry branches, and `strip` has nothing to undo but the hooks.

    Args:
        backbone: images (N, C, H, W) -> logits (N, K) of the classifier c1.
        branches: classifier ("c2", "c3", ...) -> module from the tapped feature map to logits (N, K).
        taps: classifier -> name of the tapped module inside the backbone, for the same classifiers.
    """

    def __init__(self, backbone: nn.Module, branches: Mapping[str, nn.Module], taps: Mapping[str, str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.branches = nn.ModuleDict({name: branches[name] for name in sorted(branches)})
        self._features: dict[str, Tensor] = {}
        self._hooks = [
            backbone.get_submodule(taps[name]).register_forward_hook(_Tap(self._features, name)) for name in self.branches
        ]

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The names of all classifiers, c1 first, then from deep to shallow."""
        return ("c1", *self.branches)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) -> logits {"c1": (N, K), "c2": (N, K), ...}, all in one pass over the backbone."""
        logits = {"c1": self.backbone(images)}
        for name, branch in self.branches.items():
            logits[name] = branch(self._features.pop(name))
        return logits

    def strip(self) -> nn.Module:
        """The plain backbone, images -> logits (N, K), with no trace of the branches. This network is of no use afterwards."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        return self.backbone


class _Tap:
    """Forward hook that hands a module's output over; a class, so that networks can be copied and pickled."""

    def __init__(self, features: dict[str, Tensor], name: str) -> None:
        self.features, self.name = features, name

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.features[self.name] = output
