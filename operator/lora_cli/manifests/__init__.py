"""Manifests of jobs: read with the rules of kubectl, and checked with the rules of the API server."""
