"""Commands for jobs in a cluster, run from a user's machine."""
