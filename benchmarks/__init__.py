"""Benchmarks: `python -m benchmarks --help`. Figures go to `results/`, with the machine's name in them."""
