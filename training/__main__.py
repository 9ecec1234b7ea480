"""Run :mod:`training.train`."""

from .train import main

main()
