"""Clean images and captions in, a verified SDXL LoRA adapter out."""
