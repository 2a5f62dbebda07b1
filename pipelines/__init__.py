"""Run the DVC pipeline: `dvc repro` with Prefect tasks, on this machine or on a cluster."""
