"""A world of simple drawn things: a small SDXL trained on it from nothing, a judge, and concepts to teach."""
