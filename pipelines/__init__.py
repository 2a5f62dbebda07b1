"""Who runs which stage: calls `dvc` as a process, imports neither torch nor the library."""
