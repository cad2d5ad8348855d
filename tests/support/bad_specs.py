"""Invalid specs, which the models refuse and, on a real API server, the CRD.

Each has a description, a change of the minimal spec, and a word that the error must contain.
"""

from __future__ import annotations

from typing import Any

PRODIGY = {"optimizer": "Prodigy"}
EXTRACT = {"method": "DreamBoothExtract"}
CONFLICTS: list[tuple[dict[str, Any], str]] = [
    ({"training": {"extraction": {"rankEnergy": "0.5"}}}, "training.extraction is for method"),
    ({"training": {**EXTRACT, "quantizeBase": "NF4"}}, "training.quantizeBase is not supported with method"),
    ({"training": {**EXTRACT, "adapter": {"useDoRA": True}}}, "training.adapter is not supported"),
    (
        {"training": {"method": "LoRA", "priorPreservation": {"enabled": True}}},
        "training.priorPreservation.enabled is not",
    ),
    (
        {"training": {"priorPreservation": {"numClassImages": 7}}},
        "training.priorPreservation: numClassImages",
    ),
    ({"training": {"adapter": {"factor": 4}}}, "training.adapter.factor is for type LoKr"),
    ({"training": {"quantizeBase": "Int8", "adapter": {"useDoRA": True}}}, "not supported with DoRA"),
    ({"training": {"adapter": {"convolutionRank": 4}}}, "training.adapter.convolutionRank needs"),
    ({"training": {"adapter": {"rankDropout": "0.1", "useDoRA": True}}}, "training.adapter.rankDropout"),
    (
        {"training": {"adapter": {"useRSLoRA": True, "blocks": [{"block": "mid_block", "rank": 2}]}}},
        "training.adapter.useRSLoRA",
    ),
    (
        {"training": {"compile": "Always"}, "resources": {"train": {"gpus": 0}}},
        "training.compile: Always needs a GPU",
    ),
    (
        {"training": {"compile": "Always", "textEncoder": {"train": True}}},
        "training.compile: Always is not supported",
    ),
    ({"training": {**EXTRACT, "loraPlusRatio": "4"}}, "training.loraPlusRatio is for"),
    ({"training": {**PRODIGY, "loraPlusRatio": "4"}}, "which takes one rate"),
    (
        {
            "training": {
                **PRODIGY,
                "adapter": {"blocks": [{"block": "mid_block", "learningRateScale": "2"}]},
            }
        },
        "blocks[].learningRateScale",
    ),
    ({"training": {**PRODIGY, "learningRate": "1e-4"}}, "training.learningRate must be at least 0.1"),
    (
        {"training": {**PRODIGY, "textEncoder": {"train": True, "learningRate": "0.5"}}},
        "training.textEncoder.learningRate must equal",
    ),
    ({"training": {"textEncoder": {"learningRate": "1e-3"}}}, "training.textEncoder.learningRate needs"),
    (
        {"training": {**EXTRACT, "tokenEmbeddings": {"train": True}}},
        "training.tokenEmbeddings.train is not supported with method",
    ),
    (
        {"training": {"tokenEmbeddings": {"train": True}, "textEncoder": {"train": True}}},
        "training.tokenEmbeddings.train is not supported with textEncoder.train",
    ),
    (
        {
            "training": {
                "tokenEmbeddings": {"train": True},
                "from": {"key": "studio/a.safetensors", "sha256": "0" * 64},
            }
        },
        "training.tokenEmbeddings.train is not supported with training.from",
    ),
    (
        {"training": {"tokenEmbeddings": {"train": True}, "optimizer": "ProdigyScheduleFree"}},
        "training.tokenEmbeddings.train is not supported with ProdigyScheduleFree",
    ),
    (
        {"training": {"tokenEmbeddings": {"train": True}, "captionDropout": "1.0"}},
        "training.captionDropout must be below 1 with tokenEmbeddings.train",
    ),
    (
        {"training": {**EXTRACT, "maxSteps": 9, "lrWarmupSteps": 1, "extraction": {"factorSteps": 8}}},
        "training.extraction.factorSteps must leave more than one step",
    ),
    ({"training": {"tokenEmbeddings": {"tokens": 3}}}, "training.tokenEmbeddings: tokens, initializer"),
    ({"training": {"tokenEmbeddings": {"stopAfter": "1"}}}, "training.tokenEmbeddings: tokens, initializer"),
    (
        {"training": {**PRODIGY, "tokenEmbeddings": {"train": True, "learningRate": "0.5"}}},
        "training.tokenEmbeddings.learningRate must equal",
    ),
    (
        {"training": {"tokenEmbeddings": {"learningRate": "1e-3"}}},
        "training.tokenEmbeddings.learningRate needs",
    ),
    (
        {"training": {"optimizer": "ProdigyScheduleFree", "textEncoder": {"learningRate": "0.5"}}},
        "training.textEncoder.learningRate needs",
    ),
    (
        {
            "training": {
                "optimizer": "ProdigyScheduleFree",
                "textEncoder": {"train": True, "learningRate": "1e-4"},
            }
        },
        "training.textEncoder.learningRate must be at least 0.1",
    ),
    (
        {"training": {"priorPreservation": {"enabled": True, "weight": "0"}}},
        "training.priorPreservation.weight must be above 0",
    ),
    ({"training": {"optimizer": "ProdigyScheduleFree", "lrScheduler": "cosine"}}, "which takes no schedule"),
    ({"training": {"optimizer": "ProdigyScheduleFree", "emaDecay": "0.9"}}, "training.emaDecay is not"),
    ({"training": {"maxSteps": 50, "lrWarmupSteps": 50}}, "training.lrWarmupSteps must be below"),
    ({"training": {"lrScheduler": "constant_with_warmup"}}, "training.lrWarmupSteps must be above 0"),
    ({"training": {"lrSchedulerCycles": 4}}, "training.lrSchedulerCycles is for"),
    ({"training": {"lrScheduler": "linear", "lrSchedulerPower": "3"}}, "training.lrSchedulerPower is for"),
    ({"training": {"lrSchedulerEndRatio": "0.1"}}, "training.lrSchedulerEndRatio is for"),
    ({"training": {"loss": {"huberC": "0.2"}}}, "training.loss: huberC"),
    ({"training": {"snrGamma": "1", "loss": {"weighting": "Debiased"}}}, "training.snrGamma is not used"),
    ({"training": {"timesteps": {"std": "2"}}}, "training.timesteps: mean and std"),
    (
        {"training": {**EXTRACT, "from": {"key": "studio/a.safetensors", "sha256": "0" * 64}}},
        "training.from is for",
    ),
    (
        {"training": {**EXTRACT, "validation": {"everySteps": 9, "publish": "BestScore"}}},
        "scores and publish BestScore are not supported",
    ),
    ({"training": {"augmentation": {"cropVariants": 8}}}, "training.augmentation.cropVariants needs"),
    ({"training": {"augmentation": {"extraResolutions": [768, 1024]}}}, "extraResolutions must be below"),
    ({"training": {"timesteps": {"min": "0.9", "max": "0.5"}}}, "training.timesteps.min must be below"),
    ({"training": {"validation": {"heldOutImages": 2}}}, "heldOutImages need everySteps"),
    ({"training": {"variants": [{"name": "a", "rank": 4}]}}, "training.variants needs validation.everySteps"),
    (
        {"training": {**EXTRACT, "validation": {"everySteps": 9}, "variants": [{"name": "a", "rank": 4}]}},
        "training.variants is not supported with method DreamBoothExtract",
    ),
    (
        {
            "training": {
                "validation": {"everySteps": 9},
                "augmentation": {"cropJitter": "0.1"},
                "variants": [{"name": "a", "seed": 4}],
            }
        },
        "training.variants: seed is not supported with",
    ),
    (
        {
            "training": {
                "validation": {"everySteps": 9},
                "variants": [{"name": "a", "seed": 4}, {"name": "a", "seed": 5}],
            }
        },
        "training.variants",
    ),
    (
        {"training": {"lrScheduler": "cosine_with_restarts", "maxSteps": 6, "lrWarmupSteps": 1}},
        "training.lrSchedulerCycles must be at most half",
    ),
    (
        {
            "training": {
                "adapter": {
                    "blocks": [
                        {"block": "mid_block", "rank": 2},
                        {"block": "mid_block", "learningRateScale": "2"},
                    ]
                }
            }
        },
        "training.adapter.blocks",
    ),
    (
        {"training": {"adapter": {"blocks": [{"block": "mid_block", "learningRateScale": "1"}]}}},
        "training.adapter.blocks: each entry must set",
    ),
    (
        {"training": {"adapter": {"blocks": [{"block": "mid_block", "rank": 0, "learningRateScale": "2"}]}}},
        "no learningRateScale with rank 0",
    ),
    *[
        (
            {
                "training": {
                    "from": {"key": "studio/a.safetensors", "sha256": "0" * 64},
                    "validation": {"everySteps": 9},
                    "variants": [{"name": "a"}, {"name": "b", **change}],
                }
            },
            "training.variants: rank, alpha and targets are not supported with training.from",
        )
        for change in ({"rank": 4}, {"alpha": 4}, {"targets": "Full"})
    ],
    (
        {"resources": {"train": {"gpus": 0}}},
        "training.mixedPrecision: fp16 does not run on a CPU",
    ),
    (
        {"training": {"augmentation": {"extraResolutions": [512, 512]}}},
        "training.augmentation.extraResolutions",
    ),
    (
        {"training": {"preview": {"prompts": ["a CUS statue", "a CUS statue"]}}},
        "training.preview.prompts",
    ),
    ({"output": {"formats": ["kohya", "kohya"]}}, "output.formats"),
    (
        {"training": {"validation": {"everySteps": 9, "heldOutImages": 20}}},
        "training.validation.heldOutImages must be below dataset.maxImages",
    ),
    ({"annotation": {"approvedCaptions": "a" * 64}}, "annotation.approvedCaptions needs approval"),
    ({"annotation": {"mode": "Template", "model": "m"}}, "annotation: model, instructions"),
    (
        {"annotation": {"mode": "Existing", "existingCaptions": "Overwrite"}},
        "annotation.existingCaptions must",
    ),
    ({"annotation": {"mode": "Template", "onCaptionFailure": "Skip"}}, "annotation.onCaptionFailure is not"),
    (
        {
            "annotation": {"masks": "GrabCut"},
            "concept": {"token": "CUS", "className": "watercolor", "type": "Style"},
        },
        "annotation.masks must be Own with concept.type Style",
    ),
    (
        {"annotation": {"masks": "GrabCut"}, "training": {"masking": {"outsideWeight": "1"}}},
        "annotation.masks must be Own with training.masking.outsideWeight 1",
    ),
    (
        {"annotation": {"masks": "Model"}, "training": {"masking": {"outsideWeight": "1.0"}}},
        "annotation.masks must be Own with training.masking.outsideWeight 1",
    ),
]
"""Settings that do not go together, each with the beginning of the rule's message."""

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("no prefix", {"dataset": {}}, "prefix"),
    ("empty prefix", {"dataset": {"prefix": ""}}, "prefix"),
    ("absolute prefix", {"dataset": {"prefix": "/etc/"}}, "prefix"),
    ("control character in the prefix", {"dataset": {"prefix": "a\nb"}}, "prefix"),
    ("C1 control character in the prefix", {"dataset": {"prefix": "a\x9bb"}}, "prefix"),
    ("text that runs backwards in the prefix", {"dataset": {"prefix": "a\u202eb"}}, "prefix"),
    ("line separator in the prefix", {"dataset": {"prefix": "a\u2028b"}}, "prefix"),
    ("escape sequence in the profile", {"profile": "\x1b[2J"}, "profile"),
    ("bidirectional mark in the model", {"annotation": {"model": "a\u2066b"}}, "model"),
    ("escape sequence in a prompt", {"training": {"preview": {"prompts": ["a\x1b[0m"]}}}, "prompts"),
    ("folder above in the prefix", {"dataset": {"prefix": "../a/"}}, "prefix"),
    ("this folder in the prefix", {"dataset": {"prefix": "a/./b/"}}, "prefix"),
    ("folder above at the end of the prefix", {"dataset": {"prefix": "a/.."}}, "prefix"),
    ("prefix that is too long with a slash", {"dataset": {"prefix": "a" * 512}}, "prefix"),
    ("more images at least than at most", {"dataset": {"prefix": "p/", "minImages": 30}}, "minImages"),
    ("no images", {"dataset": {"prefix": "p/", "minImages": 0}}, "minImages"),
    ("unknown policy", {"dataset": {"prefix": "p/", "onBadImage": "Ignore"}}, "onBadImage"),
    ("empty token", {"concept": {"token": "", "className": "statue"}}, "token"),
    ("token with shell characters", {"concept": {"token": "$(reboot)", "className": "statue"}}, "token"),
    ("token that looks like an option", {"concept": {"token": "--rank", "className": "statue"}}, "token"),
    ("class with a quote", {"concept": {"token": "CUS", "className": "a'b"}}, "className"),
    ("class with a space at its end", {"concept": {"token": "CUS", "className": "statue "}}, "className"),
    ("class with another space", {"concept": {"token": "CUS", "className": "a\u00a0b"}}, "className"),
    ("class with an invisible joiner", {"concept": {"token": "CUS", "className": "a\u200db"}}, "className"),
    ("class with a private character", {"concept": {"token": "CUS", "className": "a\ue000"}}, "className"),
    ("long token", {"concept": {"token": "x" * 65, "className": "statue"}}, "token"),
    ("unknown mode", {"annotation": {"mode": "Magic"}}, "mode"),
    ("long instructions", {"annotation": {"instructions": "x" * 2001}}, "instructions"),
    ("no digest", {"annotation": {"approvedCaptions": "yes"}}, "approvedCaptions"),
    ("negative cost", {"annotation": {"limits": {"maxCostUSD": "-1"}}}, "maxCostUSD"),
    ("no steps", {"training": {"maxSteps": 0}}, "maxSteps"),
    ("negative steps", {"training": {"maxSteps": -5}}, "maxSteps"),
    ("huge steps", {"training": {"maxSteps": 1_000_001}}, "maxSteps"),
    ("patience for nothing", {"training": {"validation": {"patience": 2}}}, "everySteps"),
    ("best of nothing", {"training": {"validation": {"publish": "LowestHeldOutLoss"}}}, "everySteps"),
    ("unknown adapter", {"training": {"adapter": {"type": "OFT"}}}, "type"),
    ("DoRA of no LoRA", {"training": {"adapter": {"type": "LoHa", "useDoRA": True}}}, "useDoRA"),
    ("LoKr for diffusers", {"training": {"adapter": {"type": "LoKr"}}}, "formats"),
    ("no average", {"training": {"emaDecay": "1"}}, "emaDecay"),
    ("no energy", {"training": {"extraction": {"rankEnergy": "0"}}}, "rankEnergy"),
    ("nothing is fine-tuned", {"training": {"maxSteps": 9, "extraction": {"factorSteps": 9}}}, "factorSteps"),
    ("rank zero", {"training": {"rank": 0}}, "rank"),
    ("huge rank", {"training": {"rank": 100_000}}, "rank"),
    ("odd resolution", {"training": {"resolution": 1001}}, "resolution"),
    ("zero learning rate", {"training": {"learningRate": "0"}}, "learningRate"),
    ("negative learning rate", {"training": {"learningRate": "-1e-4"}}, "learningRate"),
    ("huge learning rate", {"training": {"learningRate": "1e9"}}, "learningRate"),
    ("learning rate NaN", {"training": {"learningRate": "nan"}}, "learningRate"),
    ("infinite learning rate", {"training": {"learningRate": "inf"}}, "learningRate"),
    ("a number where a string must be", {"training": {"learningRate": 0.1}}, "learningRate"),
    ("empty learning rate", {"training": {"learningRate": ""}}, "learningRate"),
    ("unknown scheduler", {"training": {"lrScheduler": "warp"}}, "lrScheduler"),
    ("unknown optimizer", {"training": {"optimizer": "SGD"}}, "optimizer"),
    ("precision `no`", {"training": {"mixedPrecision": "no"}}, "mixedPrecision"),
    ("dropout above one", {"training": {"captionDropout": "1.5"}}, "captionDropout"),
    ("negative seed", {"training": {"seed": -1}}, "seed"),
    ("empty preview prompt", {"training": {"preview": {"prompts": [""]}}}, "prompts"),
    ("too many preview prompts", {"training": {"preview": {"prompts": ["x"] * 17}}}, "prompts"),
    ("no format", {"output": {"formats": []}}, "formats"),
    ("unknown format", {"output": {"formats": ["pickle"]}}, "formats"),
    ("negative GPUs", {"resources": {"train": {"gpus": -1}}}, "gpus"),
    ("quantity", {"resources": {"train": {"memory": "a lot"}}}, "memory"),
    ("negative back-off", {"runPolicy": {"backoffLimit": -1}}, "backoffLimit"),
    ("zero deadline", {"runPolicy": {"activeDeadlineSeconds": 0}}, "activeDeadlineSeconds"),
    ("unknown toleration", {"scheduling": {"tolerations": [{"operator": "Maybe"}]}}, "operator"),
    ("deadline beyond 32 bits", {"runPolicy": {"activeDeadlineSeconds": 10**12}}, "activeDeadlineSeconds"),
    ("start deadline beyond 32 bits", {"runPolicy": {"startDeadlineSeconds": 2**31}}, "startDeadlineSeconds"),
    (
        "child TTL beyond 32 bits",
        {"runPolicy": {"childTTLSecondsAfterFinished": 2**31}},
        "childTTLSecondsAfterFinished",
    ),
    ("TTL beyond 32 bits", {"runPolicy": {"ttlSecondsAfterFinished": 2**31}}, "ttlSecondsAfterFinished"),
    ("huge node selector key", {"scheduling": {"nodeSelector": {"x" * 5000: "y"}}}, "nodeSelector"),
    ("node selector value", {"scheduling": {"nodeSelector": {"x": "no label"}}}, "nodeSelector"),
    ("toleration key", {"scheduling": {"tolerations": [{"key": "no key", "operator": "Exists"}]}}, "key"),
    ("node selector key", {"scheduling": {"nodeSelector": {"no key": "x"}}}, "nodeSelector"),
    ("long node selector key", {"scheduling": {"nodeSelector": {"x" * 64: "y"}}}, "nodeSelector"),
    ("toleration of nothing", {"scheduling": {"tolerations": [{}]}}, "operator must be Exists"),
    (
        "value of a taint that may have any",
        {"scheduling": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
        "value must be empty",
    ),
    (
        "seconds for a taint that evicts nothing",
        {"scheduling": {"tolerations": [{"key": "a", "tolerationSeconds": 5}]}},
        "tolerationSeconds needs",
    ),
    ("long toleration key", {"scheduling": {"tolerations": [{"key": "x" * 64}]}}, "key must be"),
    *[
        (f"GPU resource {name[:30]}", {"resources": {"train": {"gpuResource": name}}}, "extended resource")
        for name in (
            "kubernetes.io/gpu",
            "a.kubernetes.io/gpu",
            "requests.nvidia.com/gpu",
            "-nvidia.com/gpu",
            "nvidia..com/gpu",
            "nvidia.com/gpu-",
            f"nvidia.com/{'x' * 64}",
        )
    ],
    *[
        (
            f"adapter to start from {key[:30]!r}",
            {"training": {"from": {"key": key, "sha256": "0" * 64}}},
            "training.from.key",
        )
        for key in ("/a", "a/", "a//b", "../a", "a/./b", "a/..", "a\\b", "a\nb", "a\u202eb", "é" * 600)
    ],
    ("priority class", {"scheduling": {"priorityClassName": "No Class"}}, "priorityClassName"),
    ("runtime class", {"scheduling": {"runtimeClassName": "../x"}}, "runtimeClassName"),
    ("queue", {"scheduling": {"queueName": "a/b"}}, "queueName"),
    ("piecewise schedule", {"training": {"lrScheduler": "piecewise_constant"}}, "lrScheduler"),
    *[(f"conflict: {word}", change, word) for change, word in CONFLICTS],
    ("string for a flag", {"runPolicy": {"suspend": "yes"}}, "suspend"),
]
