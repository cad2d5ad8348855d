"""The folder of a result is a model repository. The snippet in its model card runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from huggingface_hub import ModelCard
from PIL import Image

from tests.support.quickstart import environment, result_of


def test_the_snippet_of_the_model_card_runs_as_pasted(home: Path, model: Path, tmp_path: Path) -> None:
    result = result_of(home)
    card = ModelCard.load(result / "README.md")
    for widget in card.data.widget:
        assert (result / widget["output"]["url"]).is_file()
    assert list(result.glob("events.out.tfevents*"))
    found = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert found
    (tmp_path / "adapter.safetensors").symlink_to(result / "adapter.safetensors")
    (tmp_path / card.data.base_model).symlink_to(model)
    code = found[1].replace("num_inference_steps=25", "num_inference_steps=2, height=64, width=64")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=True, timeout=300)
    with Image.open(tmp_path / "image.png") as image:
        assert image.size == (64, 64)
