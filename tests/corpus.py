"""Bad specs, one list for both guards: the models and, on a real API server, the CRD.

Each is (what is wrong, a change to the least spec, a word that the error must hold).
"""

from __future__ import annotations

from typing import Any

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("no prefix", {"dataset": {}}, "prefix"),
    ("empty prefix", {"dataset": {"prefix": ""}}, "prefix"),
    ("absolute prefix", {"dataset": {"prefix": "/etc/"}}, "prefix"),
    ("control character in the prefix", {"dataset": {"prefix": "a\nb"}}, "prefix"),
    ("more images at least than at most", {"dataset": {"prefix": "p/", "minImages": 30}}, "minImages"),
    ("no images", {"dataset": {"prefix": "p/", "minImages": 0}}, "minImages"),
    ("unknown policy", {"dataset": {"prefix": "p/", "onBadImage": "Ignore"}}, "onBadImage"),
    ("empty token", {"concept": {"token": "", "className": "statue"}}, "token"),
    ("token with shell characters", {"concept": {"token": "$(reboot)", "className": "statue"}}, "token"),
    ("token that looks like an option", {"concept": {"token": "--rank", "className": "statue"}}, "token"),
    ("class with a quote", {"concept": {"token": "CUS", "className": "a'b"}}, "className"),
    ("long token", {"concept": {"token": "x" * 65, "className": "statue"}}, "token"),
    ("unknown mode", {"annotation": {"mode": "Magic"}}, "mode"),
    ("long instructions", {"annotation": {"instructions": "x" * 2001}}, "instructions"),
    ("no digest", {"annotation": {"approvedCaptions": "yes"}}, "approvedCaptions"),
    ("negative cost", {"annotation": {"limits": {"maxCostUSD": "-1"}}}, "maxCostUSD"),
    ("no steps", {"training": {"maxSteps": 0}}, "maxSteps"),
    ("negative steps", {"training": {"maxSteps": -5}}, "maxSteps"),
    ("huge steps", {"training": {"maxSteps": 1_000_001}}, "maxSteps"),
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
    ("string for a flag", {"runPolicy": {"suspend": "yes"}}, "suspend"),
]
