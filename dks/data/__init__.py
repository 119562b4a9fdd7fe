"""Images: where they come from, how they are augmented and how labels are corrupted."""

from __future__ import annotations

import dataclasses

from dks.config.errors import RequestError
from dks.config.identity import canonical_json
from dks.config.schema import Data
from dks.data.images import Facts, Images
from dks.data.registry import AbsentError, source


def describe(data: Data, absent: list[str] | None = None, notes: list[str] | None = None) -> Data:
    """The configuration with everything filled in that only the files know. No image is decoded.

    Args:
        absent: receives what is not on this machine, a line each, where that is no obstacle: what
            the files will say is known without them. None: the files must be here.
        notes: receives what a person should know of the files, a line each: images that are not
            taken, for one.

    Raises:
        RequestError: files are missing or wrong, or the classifiers have fewer outputs than the
            data has labels.
    """
    facts = _facts(data, absent)
    if notes is not None:
        notes.extend(facts.notes)
    # below 1 is wrong for any data
    if data.num_classes is not None and 1 <= data.num_classes < facts.labels:
        raise RequestError(
            f"data.num_classes={data.num_classes} is below the {facts.labels} labels of "
            f"{facts.name}; drop it"
        )
    return dataclasses.replace(
        data,
        num_classes=data.num_classes or facts.labels,
        name=data.name or facts.name,
        fingerprint=facts.fingerprint,
        # to resize to what it is does nothing
        image_size=None if data.image_size == facts.side else data.image_size,
    )


def _facts(data: Data, absent: list[str] | None) -> Facts:
    origin = source(data.source)
    try:
        facts: Facts = origin.inspect(data)
    except AbsentError as error:
        expected: Facts | None = None if absent is None else origin.expected(data)
        if absent is None or expected is None:
            raise
        absent.extend(error.problems)
        return expected
    return facts


def require(data: Data) -> Facts:
    """What there is to say of the files, which must be those that the configuration was resolved
    with.

    Raises:
        RequestError: they are not, or are missing or wrong.
    """
    facts: Facts = source(data.source).inspect(data)
    if facts.fingerprint != data.fingerprint:
        raise RequestError(
            f"the files in data.root={data.root} are not those that the run was planned with "
            f"(fingerprint {facts.fingerprint}, "
            f"not {data.fingerprint}); put those back, or type the command again, which makes "
            f"other cells"
        )
    return facts


# The runs of a sweep mostly share their data: the last one used stays in memory, under its
#     configuration.
_loaded: dict[str, tuple[Images, Images]] = {}


def load(data: Data) -> tuple[Images, Images]:
    """The whole training set and the test set of a resolved configuration."""
    # the images are the same
    key = canonical_json(dataclasses.asdict(dataclasses.replace(data, holdout=0)))
    if key not in _loaded:
        # it imports torch, which whoever only describes data has no need of
        from dks.data import decoded

        images = decoded.load(data)
        _loaded.clear()
        _loaded[key] = images
    return _loaded[key]
