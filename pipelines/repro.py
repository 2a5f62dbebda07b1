"""What `make repro` does, in one process: params.yaml checked, DVC run, the table shown.

    python -m pipelines.repro

What shows the table is loaded while DVC runs.
"""

import sys
import threading
from importlib import import_module

from lambdanet.cli import main as lambdanet
from pipelines import cores, warm

SHOWING = "lambdanet.report.tables"  # takes a second


def main() -> int:
    """Return DVC's exit status; the table is shown whatever it is, if there is one.

    Raises:
        SystemExit: params.yaml is not valid, or there is no table; with what to do.
    """
    lambdanet(["check"], standalone_mode=False)
    sys.stdout.flush()
    threading.Thread(target=import_module, args=(SHOWING,), daemon=True).start()
    status = warm.main(["dvc", "--wait-for-lock", "repro"], cores.usual_jobs())
    lambdanet(["show"], standalone_mode=False)
    return status


if __name__ == "__main__":
    sys.exit(main())
