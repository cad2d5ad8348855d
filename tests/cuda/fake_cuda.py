"""Fake CUDA: FakeTensorMode on the device "cuda" in a CPU build, for shapes, types, memory and operations.

Import before torch. Tensors have no data. A step of SDXL at 1024 px takes 10 to 20 seconds.
"""

from __future__ import annotations

import ctypes
from typing import Any

from .build import build

ctypes.CDLL(str(build("fake")), mode=ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
import torch.cuda.amp.common  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from torch import Tensor  # noqa: E402

torch.cuda.amp.common.amp_definitely_not_available = lambda: False
torch.cuda.is_bf16_supported = lambda *_, **__: True
_on_cpu = F.scaled_dot_product_attention


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Choose the kernel that CUDA chooses: flash attention in 16 bits, the memory-efficient one in float32."""
    if not query.is_cuda:
        return _on_cpu(query, key, value, *args, **kwargs)
    if torch.is_autocast_enabled("cuda") and query.dtype == torch.float32:
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    ops = torch.ops.aten
    if query.dtype in (torch.float16, torch.bfloat16):
        result: Tensor = ops._scaled_dot_product_flash_attention(query, key, value, 0.0, False, False)[0]
    else:
        result = ops._scaled_dot_product_efficient_attention(query, key, value, None, True, 0.0, False)[0]
    return result


F.scaled_dot_product_attention = _attention
