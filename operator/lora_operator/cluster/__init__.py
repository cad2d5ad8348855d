"""Jobs in a cluster, from a person's machine: the commands beside `lora run`."""
