"""Benchmarks: `python -m benchmarks NAME [--json OUT]`; see `benchmarks/README.md`."""
