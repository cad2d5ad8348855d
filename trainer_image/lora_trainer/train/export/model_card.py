"""The model card: a README.md that makes the published folder a model repository for the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCardData

from lora_api.job import JobSpec
from lora_api.keys import file_name_of
from lora_api.manifest import Manifest
from lora_api.profile import HubModel

from ...new_tokens import insert_tokens, opening, trigger
from ..report.snippet import local_name, usage_snippet

FILE_NAME = "README.md"
TAGS = [
    "text-to-image",
    "diffusers",
    "diffusers-training",
    "lora",
    "template:sd-lora",
    "stable-diffusion-xl",
    "stable-diffusion-xl-diffusers",
]
"""Tags that diffusers' SDXL training script sets. The hub needs them to show the widget and the snippet."""
SDXL_LICENSE = "openrail++"
MAX_WIDGETS = 8


def model_card(spec: JobSpec, manifest: Manifest, images: int) -> str:
    """Render the card. It has no captions, because they describe the customer's images; see `output.captions`.

    Args:
        manifest: the manifest, which does not list the card yet.
        images: number of training images.
    """
    concept = spec.concept
    tokens = manifest.embeddings.tokens if manifest.embeddings else []
    data = ModelCardData(
        base_model=_base_name(manifest),
        instance_prompt=opening(concept, tokens),
        library_name="diffusers",
        license=_license(manifest),
        pipeline_tag="text-to-image",
        tags=list(TAGS),
        widget=[*_widgets(manifest)],
        ignore_metadata_errors=False,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_body(spec, manifest, tokens, images)}"


def _body(spec: JobSpec, manifest: Manifest, tokens: Sequence[str], images: int) -> str:
    """Render the Markdown below the front matter."""
    assert manifest.base_model is not None  # set for every training
    training = spec.training
    names = [file_name_of(entry.key) for entry in manifest.files]
    kohya = [name for name in names if name.endswith(".safetensors") and "kohya" in name]
    snippet = usage_snippet(
        manifest.base_model, spec.concept, manifest.adapter.uri.rpartition("/")[2], manifest.embeddings
    )
    note = ""
    if not isinstance(manifest.base_model, HubModel):
        note = f"The base model is not on the hub: put its folder beside this file, as `{local_name(manifest.base_model)}`.\n\n"
    programs = (
        f"## Use it in ComfyUI, Forge or A1111\n\nCopy `{kohya[0]}` to the program's LoRA folder.\n\n"
        if kohya
        else ""
    )
    if manifest.embeddings and kohya:
        # A1111 and Forge find the name in prompts, so that prompts with the concept's token work there unchanged.
        name = spec.concept.token.replace(" ", "-")
        programs += (
            f"The prompts need the embeddings too: copy `{file_name_of(manifest.embeddings.key)}` to the program's folder of "
            f"embeddings as `{name}.safetensors`. In ComfyUI, write `embedding:{name}` in place of `{''.join(tokens)}`; in "
            f"Forge and A1111, `{name}`.\n\n"
        )
    captions = " `captions.jsonl` has the captions of the images." if spec.output.captions else ""
    return f"""# {trigger(spec.concept, [])}

<Gallery />

A LoRA adapter for Stable Diffusion XL, trained on {images} images.

## Trigger

Use `{trigger(spec.concept, tokens)}` in the prompt, for example `{opening(spec.concept, tokens)}, on a beach`.{_new_tokens(manifest)}

## Use it with diffusers

{note}```python
{snippet}```

{programs}## Training

| | |
|---|---|
| Base model | `{_base_name(manifest)}` |
| Method | {training.method} |
| Steps | {manifest.steps} |
| Learning rate | {training.learning_rate} |
| Rank, alpha | {training.rank}, {training.alpha} |
| Resolution | {training.resolution} |
| Seed | {manifest.seed} |

`report.html` has previews, curves and all settings. `manifest.json` has the sha256 of every file.{captions}

## License

The base model's license applies to its weights. Choose a license for this adapter before you publish it.
"""


def _new_tokens(manifest: Manifest) -> str:
    """Describe the new tokens; empty where there are none."""
    if not manifest.embeddings:
        return ""
    tokens, name = "".join(manifest.embeddings.tokens), file_name_of(manifest.embeddings.key)
    return f"\n\n`{tokens}` are new tokens: prompts need `{name}`, which was trained with the adapter."


def _base_name(manifest: Manifest) -> str:
    source = manifest.base_model
    assert source is not None  # set for every training
    return source.repo if isinstance(source, HubModel) else local_name(source)


def _license(manifest: Manifest) -> str:
    name = _base_name(manifest)
    return SDXL_LICENSE if name.startswith("stabilityai/stable-diffusion-xl") else "other"


def _widgets(manifest: Manifest) -> Sequence[dict[str, object]]:
    """Return the last preview of each prompt, in the format of the hub's gallery."""
    tokens, concept = manifest.embeddings.tokens if manifest.embeddings else [], manifest.concept
    last = {preview.prompt: preview.key for preview in manifest.previews}
    return [
        {
            "text": insert_tokens(tokens, prompt, concept.token) if concept else prompt,
            "output": {"url": file_name_of(key)},
        }
        for prompt, key in list(last.items())[:MAX_WIDGETS]
    ]
