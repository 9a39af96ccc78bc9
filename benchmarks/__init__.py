"""Benchmarks: `make bench` runs bench_*.py and turns the figures into tables and pictures."""
