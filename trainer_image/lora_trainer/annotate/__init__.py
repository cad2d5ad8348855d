"""The annotation stage: cleans the images of a dataset and writes one caption for each."""
