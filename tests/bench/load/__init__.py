"""How the operator bears many jobs: what bench_operator.py measures."""
