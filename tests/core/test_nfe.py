from __future__ import annotations

import torch
from torch import nn

from fewstep.core.nfe import count_nfe


class Doubles(nn.Module):
    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        return 2 * x


def test_calls_are_counted_however_the_network_is_called() -> None:
    network, x = Doubles(), torch.zeros(3, 2)
    with count_nfe(network) as nfe:
        network(x)
        network(x=x[:2], scale=torch.tensor(1.0))
        network(scale=torch.tensor(1.0), x=x)  # a tensor without rows comes first
    network(x)
    assert (nfe.calls, nfe.rows) == (3, 8)
