"""Drawings of simple shapes, a small SDXL model trained on them from random weights, its classifier, and test concepts."""
