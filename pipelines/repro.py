"""What `make repro` does: params.yaml checked, DVC run, the table shown.

    python -m pipelines.repro

What shows the table is loaded while DVC runs.
"""

import subprocess
import sys
import threading
from importlib import import_module

from lambdanet.cli import main as lambdanet
from pipelines import cores, warm

CHECK = (sys.executable, "-m", "lambdanet", "check")  # elsewhere: it may load torch, which would stay here
SHOWING = "lambdanet.report.tables"  # takes a second


def main() -> int:
    """Return DVC's exit status, or that of the check; the table is shown whatever DVC's is, if there is one.

    Raises:
        SystemExit: there is no table; with what to do.
    """
    if status := subprocess.call(CHECK):
        return status
    threading.Thread(target=import_module, args=(SHOWING,), daemon=True).start()
    status = warm.main(["dvc", "--wait-for-lock", "repro"], cores.usual_jobs())
    try:
        lambdanet(["show"])
    except SystemExit as end:
        if end.code:
            raise
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
