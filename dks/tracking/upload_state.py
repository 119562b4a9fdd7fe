"""`mlflow.json` in the folder of a run: how far the store has come."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from dks.config.reading import read_text
from dks.runs.record import RunFolder, write_atomically

RUNNING = "RUNNING"


@dataclass
class UploadState:
    """The content of `mlflow.json`."""

    uri: str
    run_id: str
    experiment_id: str
    epoch: int = 0  # the last one that the store has
    time: str | None = None  # of its line in the journal
    attempts: int = 0  # that the store knows of
    status: str = RUNNING  # in the store
    ended: str | None = None  # when the attempt ended whose end the store has
    pictured: str | None = None  # when the attempt ended of which the store has pictures
    superseded: bool = False  # in the store
    cell_id: str = ""  # in the store; "": it was uploaded by an earlier version

    @classmethod
    def read(cls, folder: RunFolder) -> UploadState | None:
        """None where there is none, or none that can be read."""
        try:
            values = json.loads(read_text(folder.mlflow_file))
            known = {field.name for field in dataclasses.fields(cls)}
            return cls(**{name: value for name, value in values.items() if name in known})
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return None

    def write(self, folder: RunFolder) -> None:
        write_atomically(folder.mlflow_file, json.dumps(dataclasses.asdict(self)) + "\n")
