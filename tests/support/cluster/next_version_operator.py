"""An operator of a later release, whose API version is v1beta1. The version is set before its modules are imported."""

from __future__ import annotations

import sys

import lora_api

# only in a process of its own: tests import this module for its path
if __name__ == "__main__":
    lora_api.VERSION = "v1beta1"
    lora_api.API_VERSION = f"{lora_api.GROUP}/v1beta1"

    from lora_operator import __main__

    sys.exit(__main__.main([]))
