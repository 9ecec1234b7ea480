"""Run the training."""

from .train import main

main()
