"""The operator: watches the resources, decides about each job, and creates child Jobs."""
