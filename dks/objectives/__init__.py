"""What a network is trained towards: the loss terms, their sum, and the teachers.

A further term is one file and its line in `objective.TERMS`.
"""

from dks.objectives.distillation import DistillationLoss
from dks.objectives.loss import Loss
from dks.objectives.synergy import SynergyLoss, matching_pairs

__all__ = ["DistillationLoss", "Loss", "SynergyLoss", "matching_pairs"]
