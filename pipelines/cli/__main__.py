"""`python -m pipelines.cli` is `headgate`, for a process that starts another."""

from pipelines.cli import main

main()
