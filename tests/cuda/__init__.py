"""The CUDA path on machines without a GPU; see README.md."""
