"""What the demo, the tests, the benchmarks and the training share."""
