"""Benchmarks against named peers: one file each."""
