"""Cross-field checks, all made before anything runs. Each problem is one line: what is wrong, and what would be right."""

from dks.validation.batches import lone_image_problems as lone_image_problems
from dks.validation.checks import tracking_problems as tracking_problems
from dks.validation.resolver import Resolver as Resolver
from dks.validation.resolver import resolve as resolve
