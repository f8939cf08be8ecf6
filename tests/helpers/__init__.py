"""What a result should be, and gradients by autodiff: for tests and benchmarks."""
