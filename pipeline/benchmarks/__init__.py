"""Labelled benchmarks: reading, splitting, few-shot draws, cached features, accuracy and
harmonic mean.
"""
