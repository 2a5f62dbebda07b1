"""`python -m benchmarks`: everything that report.py puts together."""

from benchmarks.report import main

main(prog_name="python -m benchmarks")
