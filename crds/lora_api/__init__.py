"""The contract of the LoRA training operator: everything that crosses a process border.

The operator, the annotation step, the training step, local mode and the command line meet only here:
in the resource (`job`, `status`), in the administrator's profiles (`profile`), in the file that
configures a step and the message it ends with (`steps`, `exits`, `reasons`), in object keys (`keys`)
and in the manifest that marks a publication as complete (`manifest`).

It needs pydantic and nothing else, and imports nothing of the other packages.
"""

GROUP = "lora-training.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LoraTrainingJob"
PLURAL = "loratrainingjobs"

__version__ = "0.1.0"
