"""The measurements of bench_operator.py: the operator under many jobs."""
