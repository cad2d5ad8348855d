"""The command `lora`: local runs, cluster commands, captions and estimates."""
