"""Benchmarks as data: one row per result, with the machine and versions it was measured on."""
