"""The control side: watches jobs, decides, and has Kubernetes do the rest."""
