"""Run the command line."""

from .pipeline import main

main()
