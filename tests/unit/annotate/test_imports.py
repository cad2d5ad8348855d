"""The annotation image has no torch: nothing of the step may want it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
for name in ("torch", "torchvision", "transformers", "scipy", "typer", "kubernetes", "lora_operator"):
    sys.modules[name] = None  # importing it is an ImportError
import lora_trainer.annotate.stage
import lora_trainer.annotate.providers.anthropic
import lora_trainer.annotate.providers.openai
from lora_trainer.annotate.providers.factory import make_provider
from lora_trainer.errors import BadSetupError
from lora_trainer.annotate.segmentation import Segmenter
from lora_api.stages import LLMAccess
try:
    make_provider(LLMAccess(provider="transformers", credentials_dir="", model="any"))
except BadSetupError as error:
    assert "training image" in str(error), error
else:
    raise AssertionError("a local model without torch")
try:
    Segmenter("any", "dog")
except BadSetupError as error:
    assert "training image" in str(error), error
else:
    raise AssertionError("a segmentation model without torch")
"""


def test_the_step_needs_no_torch():
    subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], check=True)
