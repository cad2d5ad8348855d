"""Captions by a tiny vision-language model in the stage's own process."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path

import pytest

from lora_api.reasons import Reason

pytest.importorskip("torch")


PHRASES = {"a": "close-up from above", "s": "", "t": "on a green lawn", "g": "soft daylight"}
"""Replies of the model, by the last letter of the prompt, which is the third letter of a field's name."""


def build(folder: Path, *, speaks: bool, template: bool = True) -> Path:
    """A LLaVA of a few thousand weights: random ones, or ones that make each word follow from the one before."""
    import torch
    import transformers as t
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    # Every phrase has words of its own, so that one word decides the next.
    chains = [[f"\u0120{word}{letter}" for word in phrase.split()] for letter, phrase in PHRASES.items()]
    words = [word for chain in chains for word in chain]
    symbols = ["<s>", "</s>", "<pad>", "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *words]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: n for n, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    chat = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}"
        "{{ part['text'].split('Answer with the ')[1][:3] }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    processor = t.LlavaProcessor(
        image_processor=t.CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer=t.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            additional_special_tokens=["<image>"],
        ),
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=chat if template else None,
        num_additional_image_tokens=1,
    )
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    large = {"hidden_size": 288, "intermediate_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = t.LlavaForConditionalGeneration(
        t.LlavaConfig(
            vision_config=t.CLIPVisionConfig(**small, num_hidden_layers=2, image_size=28, patch_size=14),
            text_config=t.LlamaConfig(
                **large,
                num_hidden_layers=1,
                vocab_size=len(symbols),
                max_position_embeddings=8192,
                tie_word_embeddings=False,
            ),
            image_token_index=symbols.index("<image>"),
        )
    )
    if speaks:
        number = symbols.index
        following = {}
        for letter, chain in zip(PHRASES, chains, strict=True):
            path = [letter, *chain, "</s>"]
            following |= {number(a): number(b) for a, b in pairwise(path)}
        layer = model.model.language_model.layers[0]
        with torch.no_grad():
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            model.model.language_model.embed_tokens.weight.copy_(torch.eye(len(symbols), 288))
            model.lm_head.weight.zero_()
            model.lm_head.weight[number("</s>")] = 0.1
            for first, second in following.items():
                model.lm_head.weight[second, first] = 10.0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_captions(make_job, tmp_path):
    job = make_job()
    model = build(tmp_path / "vlm", speaks=True)
    job.llm = {"provider": "transformers", "credentialsDir": "", "model": str(model)}
    code, result = job.run()
    assert code == 0, result.message
    assert job.captions()[0]["text"].startswith("a photo of CUS statue, close-upa froma abovea, ont")
    assert result.captions.usage.requests == 5
    assert result.captions.usage.output_tokens > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_unusable_replies_of_a_local_model_are_not_replaced_by_templates(make_job, tmp_path):
    job = make_job(annotation={"onCaptionFailure": "Template"})
    model = build(tmp_path / "vlm", speaks=False)
    job.llm = {"provider": "transformers", "credentialsDir": "", "model": str(model)}
    code, result = job.run()
    assert (code, result.reason) == (78, Reason.CONFIGURATION_INVALID)
    assert "no reply of the model" in result.message


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_model_without_a_chat_template_is_named_when_it_loads(make_job, tmp_path):
    job = make_job()
    model = build(tmp_path / "vlm", speaks=True, template=False)
    job.llm = {"provider": "transformers", "credentialsDir": "", "model": str(model)}
    code, result = job.run()
    assert (code, result.reason) == (78, Reason.MODEL_UNAVAILABLE)
    assert "chat template" in result.message


def test_a_missing_model_is_named(make_job, tmp_path):
    job = make_job()
    job.llm = {"provider": "transformers", "credentialsDir": "", "model": str(tmp_path / "nothing")}
    code, result = job.run()
    assert (code, result.reason) == (78, Reason.MODEL_UNAVAILABLE)
    assert "nothing" in result.message
