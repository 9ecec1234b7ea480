"""Shared by the demo, the tests, the benchmarks and the training."""
