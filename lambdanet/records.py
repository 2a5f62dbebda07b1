"""Read what `provenance.Log` wrote: records of how results came about. Loads without torch.

Not a dependency in DVC: the log is no output.
"""

import json
from pathlib import Path

TRAININGS = "trainings.json"  # of a report: the score of each training in it, and how it was trained


def read_records(path: Path) -> list[dict]:
    """The records of a log, oldest first; none where it is missing or damaged."""
    try:
        records = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return records if isinstance(records, list) else []


def find_record(path: Path, **details: object) -> dict | None:
    """The newest record of a log that has these details.

    A run's log outlives its outputs: DVC may restore those of an earlier training from its cache.
    """
    for record in reversed(read_records(path)):
        if all(record.get(key) == value for key, value in details.items()):
            return record
    return None
