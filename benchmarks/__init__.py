"""Measurements, apart from the tests: ratios against a named peer in one run. `python -m benchmarks NAME`."""
