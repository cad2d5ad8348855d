"""The same resource without a cluster: a Job becomes a process, the store a SeaweedFS on loopback."""
