"""A network that carries auxiliary branches in training and loses them at test time (Figure 1 of
the paper).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dks.config.errors import RequestError


class SupervisedNetwork(nn.Module):
    """A backbone with auxiliary classifiers on some of its inner modules.

    The backbone is left as it is: a branch reads the output of an inner module through a forward
    hook, so any module that computes logits can carry branches, and `strip` has nothing to undo but
    the hooks.

    Args:
        backbone: images (N, C, H, W) -> logits (N, K) of the classifier c1.
        branches: classifier ("c2", "c3", ...) -> module from the tapped feature map to logits (N,
            K).
        taps: classifier -> name of the tapped module inside the backbone, for the same classifiers.
    """

    def __init__(
        self, backbone: nn.Module, branches: Mapping[str, nn.Module], taps: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.branches = nn.ModuleDict({name: branches[name] for name in sorted(branches)})
        self._taps = {name: _Tap(name, taps[name]) for name in self.branches}
        self._hooks = [
            backbone.get_submodule(tap.layer).register_forward_hook(tap)
            for tap in self._taps.values()
        ]

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The names of all classifiers, c1 first, then from deep to shallow."""
        return ("c1", *self.branches)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) -> logits {"c1": (N, K), "c2": (N, K), ...}.

        All in one pass over the backbone.

        Raises:
            RequestError: the backbone gives more than logits in training, or a place is no place
                for a branch in training.
        """
        for tap in self._taps.values():
            tap.begin(self.training)
        output = self.backbone(images)
        if not isinstance(output, Tensor):
            raise RequestError(
                f"in {'training' if self.training else 'evaluation'} the network gives a "
                f"{type(output).__name__}, not logits "
                "(N, K); build it without auxiliary outputs of its own, in torchvision with "
                "aux_logits=False"
            )
        features = {name: tap.take() for name, tap in self._taps.items()}
        return {
            "c1": output,
            **{name: branch(features[name]) for name, branch in self.branches.items()},
        }

    def strip(self) -> nn.Module:
        """The plain backbone, images -> logits (N, K), with no trace of the branches.

        This network is of no use afterwards.
        """
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        return self.backbone


class _Tap:
    """Forward hook that hands over what a layer gives, as it is at that moment.

    A later layer may write over it in place.

    In the first pass it keeps a copy, and from then on only where the output was written over. A
    class, so that networks can be copied and pickled.
    """

    def __init__(self, classifier: str, layer: str) -> None:
        self.classifier, self.layer = classifier, layer
        # in training, in evaluation: is the output written over? Unknown at first
        self.overwritten: dict[bool, bool] = {}
        # of the pass under way; None: a checkpointed block computes again, for nobody here
        self.training: bool | None = None
        self.output: Tensor | None = None
        self.copy: Tensor | None = None
        self.version, self.differentiable = 0, True

    def begin(self, training: bool) -> None:
        """The network begins a pass."""
        self.training = training

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        if self.training is None:
            return
        self.output, self.differentiable = output, torch.is_grad_enabled()
        self.copy = output.clone() if self.overwritten.get(self.training, True) else None
        self.version = output._version if _is_counted(output) else 0

    def take(self) -> Tensor:
        """What the layer gave in the pass that has ended.

        Raises:
            RequestError: it was written over for the first time after many passes, or the gradient
                of the branch ends there.
        """
        output, copy, training = self.output, self.copy, self.training
        self.output = self.copy = self.training = None
        assert output is not None and training is not None, f"the layer {self.layer} ran"
        taken = output if copy is None else copy
        if _is_counted(output):
            overwritten = self.overwritten[training] = output._version != self.version
            if overwritten and copy is None:
                raise RequestError(
                    f"{self.classifier}: what the layer {self.layer} gives was changed in place "
                    f"by a later one, as in no pass "
                    "before; set inplace=False there"
                )
            # without the copy, gradients add up in the order that they always have
            taken = taken if overwritten else output
        if torch.is_grad_enabled() and not (self.differentiable or taken.requires_grad):
            raise RequestError(
                f"{self.classifier}: the layer {self.layer} runs without gradients, as in "
                f"torch.utils.checkpoint with "
                "use_reentrant=True, so its branch could teach nothing before it; set "
                "use_reentrant=False"
            )
        return taken


def _is_counted(output: Tensor) -> bool:
    """Does torch count how often it is written over?"""
    return not torch.compiler.is_compiling() and not output.is_inference()
