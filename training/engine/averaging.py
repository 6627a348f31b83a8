"""The average of weights over the whole run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from ..stages.sharding import is_sharded, let_go, like, whole


class WeightAverage(EMAModel):
    """Exponential moving average of a module's parameters, in their order. Create it after the module is sharded."""

    def __init__(self, module: nn.Module, decay: float):
        self._module = module
        self._parameters = list(module.parameters())
        # Sharded tensors have no `_foreach_copy_`.
        foreach = not any(is_sharded(parameter) for parameter in self._parameters)
        super().__init__(self._parameters, decay=decay, foreach=foreach)

    def update(self) -> None:
        """Moves the average towards the parameters, after each optimiser step."""
        self.step(self._parameters)

    @torch.no_grad()
    def take_over(self, parameter: nn.Parameter, rows: torch.Tensor) -> None:
        """Copies rows (bool, `(C,)`) of a parameter that were replaced, not moved, into its average."""
        (index,) = [index for index, one in enumerate(self._parameters) if one is parameter]
        average = self.shadow_params[index]
        taken_over = torch.where(rows.unsqueeze(-1), whole(parameter), whole(average))
        average.copy_(like(average, taken_over))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the module has the averaged parameters."""
        self.store(self._parameters)
        self.copy_to(self._parameters)
        let_go(self._module)
        try:
            yield
        finally:
            self.restore(self._parameters)
            let_go(self._module)

    def state_dict(self) -> dict[str, Any]:
        """Like diffusers', with whole tensors. All ranks must call it."""
        state = super().state_dict()
        return {**state, "shadow_params": [whole(average) for average in self.shadow_params]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned, to this module's devices and shards."""
        averages = [
            like(average, loaded)
            for average, loaded in zip(self.shadow_params, state_dict["shadow_params"], strict=True)
        ]
        super().load_state_dict({**state_dict, "shadow_params": averages})
