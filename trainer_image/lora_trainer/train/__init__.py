"""The training stage: trains an SDXL LoRA adapter on annotated images, then verifies and publishes it."""
