"""Overrides of Prodigy and of its schedule-free variant that do not wait for the GPU by themselves.

Both find their step size from sums over the gradients, which the libraries read back in the middle or at the end of a
step. Here the training loop reads them together with the loss, before it steps the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import prodigyopt
import prodigyplus
import torch
from torch import Tensor

State = dict[str, Any]


class _TakesSums:
    """An optimizer whose sums are read before its step."""

    _read: Sequence[float] = ()

    def sums(self) -> list[Tensor]:
        """Return the sums that the next step needs: float32, ()."""
        raise NotImplementedError

    def use(self, sums: Sequence[float]) -> None:
        """Give the next step the values of `sums`. Without them, it reads them itself."""
        self._read = sums

    def _take(self) -> list[float]:
        """Return the values that `use` gave, or read them now."""
        read = list(self._read or torch.stack(self.sums()).tolist())
        self._read = ()
        return read


class Prodigy(_TakesSums, prodigyopt.Prodigy):  # type: ignore[misc]
    """prodigyopt's Prodigy, with the same results.

    Supported are the options of `build_optimizer`: bias correction and its safeguard for a warm-up, decoupled weight
    decay, the default beta3, growth rate and slices.
    """

    @torch.no_grad()
    def sums(self) -> list[Tensor]:
        """Compute the sums that the next step needs from the current gradients, two for each parameter.

        Returns:
            The products of gradients and distances from the initial values, then the absolute sums of the averaged
            gradients: float32, ().
        """
        products, sizes = [], []
        for group, parameter, state in self._parameters():
            gradient = parameter.grad.flatten()
            products.append(torch.dot(gradient, state["p0"] - parameter.flatten()))
            averaged = state["s"].mul(_beta3(group)).add_(gradient, alpha=_gradient_factor(group))
            sizes.append(averaged.abs_().sum())
        return [*products, *sizes]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Step all parameters that have a gradient.

        Args:
            closure: not supported; the parameter is that of `torch.optim.Optimizer`.
        """
        assert closure is None
        trained = list(self._parameters())
        first = self.param_groups[0]
        rate = first["lr"]  # all groups have the same, or 0: see the rules of the job
        if not trained or rate == 0:
            return
        read = self._take()
        products, size = read[: len(trained)], sum(read[len(trained) :])
        d = first["d"]
        step_rate = d * rate * _bias_correction(first)
        for group, parameter, state in trained:
            _, beta2 = group["betas"]
            state["exp_avg"].mul_(group["betas"][0]).add_(parameter.grad, alpha=d * (1 - group["betas"][0]))
            state["exp_avg_sq"].mul_(beta2).addcmul_(
                parameter.grad, parameter.grad, value=d * d * (1 - beta2)
            )
            state["s"].mul_(_beta3(group)).add_(parameter.grad.flatten(), alpha=_gradient_factor(group))
        if size == 0:
            return  # all gradients are zero
        numerator = first["d_numerator"] * _beta3(first)
        numerator += sum((d / first["d0"]) * step_rate * product for product in products)
        estimate = first["d_coef"] * numerator / size
        largest = max(first["d_max"], estimate)
        d = min(largest, (max(d, estimate) if d == first["d0"] else d) * first["growth_rate"])
        for group in self.param_groups:
            group |= {"d_numerator": numerator, "d_denom": size, "d_hat": estimate, "d_max": largest, "d": d}
        for group, parameter, state in trained:
            state["step"] += 1
            std = state["exp_avg_sq"].sqrt().add_(d * group["eps"])
            parameter.add_(parameter, alpha=-group["weight_decay"] * step_rate)
            parameter.addcdiv_(state["exp_avg"], std, value=-step_rate)
        for group in self.param_groups:
            group["k"] += 1

    def _parameters(self) -> Iterator[tuple[State, Any, State]]:
        """Yield each parameter that has a gradient and a learning rate, with its group and its state."""
        for group in self.param_groups:
            if group["lr"] == 0:  # its training has ended, or a warm-up begins
                continue
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    start = parameter.detach().flatten()
                    state |= {
                        "step": 0,
                        "s": torch.zeros_like(start),
                        # Weights that start at zero need no copy.
                        "p0": start.clone() if start.any() else torch.zeros((), device=start.device),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
                yield group, parameter, state


def _beta3(group: State) -> float:
    return math.sqrt(group["betas"][1])


def _gradient_factor(group: State) -> float:
    return float(group["d"] / group["d0"] * group["d"])


def _bias_correction(group: State) -> float:
    (beta1, beta2), count = group["betas"], group["k"] + 1
    return float((1 - beta2**count) ** 0.5 / (1 - beta1**count))


class ProdigyScheduleFree(_TakesSums, prodigyplus.ProdigyPlusScheduleFree):  # type: ignore[misc]
    """prodigyplus' schedule-free Prodigy, with the same results.

    The sums of a step determine the step size of the next one, so they stay on the device until then.
    """

    @torch.no_grad()
    def sums(self) -> list[Tensor]:
        """Return the sums of the last step, two for each group of parameters: float32, ()."""
        return [group[name] for group in self._measured() for name in _RUNNING]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Find the step size, and step all parameters that have a gradient.

        Args:
            closure: not supported; the parameter is that of `torch.optim.Optimizer`.
        """
        assert closure is None
        read = self._take()
        for group in self._measured():
            on_device = {name: group[name] for name in _RUNNING}
            # On the CPU the library reads them without a wait.
            group.update({name: torch.tensor(read.pop(0)) for name in _RUNNING})
            super().update_d_stats_and_reset(group)
            super().calculate_d(group)
            group.update({name: tensor.zero_() for name, tensor in on_device.items()})
        super().step()

    def update_d_stats_and_reset(self, group: State) -> None:
        """Do nothing at the end of a step: see `step`."""

    def calculate_d(self, group: State) -> None:
        """Do nothing at the end of a step: see `step`."""

    def get_running_values_for_group(self, group: State) -> tuple[Tensor, Tensor]:
        """Return a group's sums where they are."""
        own = group if group["split_groups"] else self.param_groups[0]
        return own[_RUNNING[0]], own[_RUNNING[1]]

    def _measured(self) -> list[State]:
        """Return the groups that have sums, which are moved to the parameters' device after a restart."""
        groups: list[State] = [group for group in self.param_groups if _RUNNING[0] in group]
        for group in groups:
            group.update({name: group[name].to(group["params"][0].device) for name in _RUNNING})
        return groups


_RUNNING = "running_d_numerator", "running_d_denom"
"""Names of a group's sums in the library."""
