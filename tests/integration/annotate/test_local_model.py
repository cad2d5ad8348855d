"""Captions by a vision-language model in the step's own process: a tiny one of random weights, built here."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lora_api.reasons import Reason

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    import transformers as t
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    symbols = ["<s>", "</s>", "<pad>", "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: n for n, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
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
        chat_template=template,
        num_additional_image_tokens=1,
    )
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = t.LlavaForConditionalGeneration(
        t.LlavaConfig(
            vision_config=t.CLIPVisionConfig(**size, num_hidden_layers=2, image_size=28, patch_size=14),
            text_config=t.LlamaConfig(
                **size, num_hidden_layers=1, vocab_size=len(symbols), max_position_embeddings=8192
            ),
            image_token_index=symbols.index("<image>"),
        )
    )
    folder = tmp_path_factory.mktemp("tiny-vlm")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_captions(make_job, tiny_model):
    job = make_job(annotation={"onCaptionFailure": "Template"})
    job.llm = {"provider": "transformers", "credentialsDir": "", "model": str(tiny_model)}
    code, result = job.run()
    assert code == 0
    assert all(row["text"].startswith("a photo of CUS statue, ") for row in job.captions())
    assert result.captions.usage.requests == 5
    assert result.captions.usage.output_tokens > 0


def test_a_model_that_is_not_there_is_named(make_job, tmp_path):
    job = make_job()
    job.llm = {"provider": "transformers", "credentialsDir": "", "model": str(tmp_path / "nothing")}
    code, result = job.run()
    assert (code, result.reason) == (78, Reason.MODEL_UNAVAILABLE)
    assert "nothing" in result.message
