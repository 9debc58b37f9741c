"""Measurements side by side: this library, its peers, and what a user would write by hand.

``python -m benchmarks`` runs all of them in one process against one server, in turns, and prints
medians and their ratios. docs/benchmarks.md says what the numbers mean.
"""
