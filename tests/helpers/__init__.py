"""Reference results and derivatives, for tests and benchmarks."""
