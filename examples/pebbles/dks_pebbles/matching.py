"""`matching_strategy=neighbours`: a classifier teaches, and learns from, those next to it."""

from dks import extend


@extend.matching_strategy("neighbours", version="1")
def neighbours(classifiers: list[str], *, distance: int = 1) -> list[tuple[str, str]]:
    """Pairs (m, n), m teaches n, of classifiers that are at most `distance` apart in depth."""
    depth = {name: number for number, name in enumerate(classifiers)}
    return [
        (m, n) for m in classifiers for n in classifiers if 0 < abs(depth[m] - depth[n]) <= distance
    ]
