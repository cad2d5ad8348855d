"""The trained parameters as one flat float32 tensor, with a 16-bit copy that the modules compute with.

Every GPU operation has a cost, however small its operands. An adapter on SDXL has 1,120 matrices. With one flat tensor,
the optimizer's step, the gradient's norm and the conversion to 16 bits are a single operation each; autocast would
convert each matrix at each use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import Parameter

LARGE = 2**28
"""Number of elements from which each gradient is collected as soon as it is computed, because all gradients together
would take too much memory. An adapter has fewer elements, a fine-tuned UNet has more."""
MAX_SEGMENT = 2**30
"""Largest number of elements of a segment. bitsandbytes' kernels count elements in 32 bits, and crash on the
2.6 billion elements of a fine-tuned UNet. The number is a multiple of bitsandbytes' block size, so that splitting does not change
its quantized states."""


class FlatParameters:
    """Parameters of modules, stored in one flat tensor.

    The modules hold the float32 values, except between `use_compute_copy` and `use_float32`, when they hold the
    16-bit copy.
    """

    def __init__(
        self, parameters: Mapping[str, Parameter], groups: Sequence[Sequence[Parameter]], dtype: torch.dtype
    ) -> None:
        """Move the parameters' values into one tensor; the parameters become views of it.

        Args:
            parameters: parameters by name, all on one device.
            groups: the same parameters, grouped as in the optimizer. Each group is contiguous in the flat tensor, and
                within it the parameters of each shape.
            dtype: number format that the modules compute in. No copy is made for float32.
        """
        names = {id(parameter): name for name, parameter in parameters.items()}
        groups = [sorted(group, key=lambda parameter: tuple(parameter.shape)) for group in groups]
        self._parameters = [parameter for group in groups for parameter in group]
        device = self._parameters[0].device
        self.values = torch.empty(sum(p.numel() for p in self._parameters), device=device)
        """float32, (n,): the values of all parameters."""
        self.gradient = torch.zeros_like(self.values)
        """float32, (n,): sum of the gradients that were collected since it was last set to zero."""
        self.compute_copy = None if dtype == torch.float32 else torch.empty_like(self.values, dtype=dtype)
        """`dtype`, (n,): the copy that the modules compute with; None for float32."""
        self._views = self._split(self.values)
        self._copies = self._split(self.compute_copy) if self.compute_copy is not None else self._views
        self._gradients = self._split(self.gradient)
        self._uses_compute_copy = False
        self._names = [names[id(parameter)] for parameter in self._parameters]
        by_name: dict[str, Parameter] = {}
        parts = zip(self._names, self._parameters, self._views, self._gradients, strict=True)
        for name, parameter, view, gradient in parts:
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = None
            by_name[name] = _with_gradient(view, gradient)
        self.named = {name: by_name[name] for name in parameters}
        """The parameters by name, with gradients: views of `values` and `gradient`, in float32."""
        sizes = [sum(parameter.numel() for parameter in group) for group in groups]
        self.segments = [
            [
                _with_gradient(value, gradient)
                for value, gradient in zip(
                    values.split(MAX_SEGMENT), gradients.split(MAX_SEGMENT), strict=True
                )
            ]
            for values, gradients in zip(self.values.split(sizes), self.gradient.split(sizes), strict=True)
        ]
        """Views of each group's values as flat parameters of at most `MAX_SEGMENT` elements, with gradients."""
        self.stacks = [list(self._stacks_of(group)) for group in groups]
        """Views of each group's values as one parameter for all matrices of a shape: (number, *shape), with gradients.
        Vectors are parameters of their own."""
        self._collects_early = self.values.numel() >= LARGE
        self._hooks = (
            [
                parameter.register_post_accumulate_grad_hook(partial(_move_gradient, gradient))
                for parameter, gradient in zip(self._parameters, self._gradients, strict=True)
            ]
            if self._collects_early
            else []
        )

    @torch.no_grad()
    def use_compute_copy(self) -> None:
        """Copy the current values to the 16-bit copy, and make the modules compute with it."""
        if self.compute_copy is not None:
            self.compute_copy.copy_(self.values)
            if not self._uses_compute_copy:
                self._uses_compute_copy = True
                self._assign(self._copies)

    def use_float32(self) -> None:
        """Make the modules hold the float32 values again, for generation, comparison and export."""
        if self._uses_compute_copy:
            self._uses_compute_copy = False
            self._assign(self._views)

    def release(self, kept: Iterable[Parameter]) -> None:
        """Give parameters that are used further memory of their own, so that the rest can be freed.

        This object must not be used afterwards.

        Args:
            kept: the parameters that are used further. They hold the float32 values.
        """
        self.use_float32()
        for hook in self._hooks:
            hook.remove()
        for parameter in kept:
            parameter.grad = None
            parameter.data = parameter.data.clone()

    @contextmanager
    def swapped(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Replace the values that the modules hold within the block; `values` stays the same."""
        own = self._copies if self._uses_compute_copy else self._views
        self._assign([values[name].to(mine.dtype) for name, mine in zip(self._names, own, strict=True)])
        try:
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of a backward pass to `gradient`, and remove them from the modules' parameters."""
        if self._collects_early:
            return  # the hooks have collected them
        parts = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in self._parameters
        ]
        self.gradient += torch.cat([part.reshape(-1) for part in parts])
        self.discard()

    def discard(self) -> None:
        """Remove the gradients of a backward pass from the modules' parameters."""
        for parameter in self._parameters:
            parameter.grad = None

    def _stacks_of(self, group: Sequence[Parameter]) -> Iterator[Parameter]:
        # A parameter's data is a view of `values`, whose offset is its place in `gradient` too.
        for shape, run in groupby(group, key=lambda parameter: tuple(parameter.shape)):
            matrices = list(run)
            counts = [len(matrices)] if len(shape) > 1 else [1] * len(matrices)
            start = matrices[0].data.storage_offset()
            for count in counts:
                size = count * math.prod(shape)
                views = (flat[start : start + size] for flat in (self.values, self.gradient))
                value, gradient = (view.view(count, *shape) if len(shape) > 1 else view for view in views)
                yield _with_gradient(value, gradient)
                start += size

    def _split(self, flat: Tensor) -> list[Tensor]:
        sizes = [parameter.numel() for parameter in self._parameters]
        return [
            part.view(parameter.shape)
            for part, parameter in zip(flat.split(sizes), self._parameters, strict=True)
        ]

    def _assign(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.grad = None
            parameter.data = value


def _with_gradient(value: Tensor, gradient: Tensor) -> Parameter:
    parameter = Parameter(value)
    parameter.grad = gradient
    return parameter


@torch.no_grad()
def _move_gradient(gradient: Tensor, parameter: Tensor) -> None:
    if parameter.grad is not None:
        gradient += parameter.grad
        parameter.grad = None
