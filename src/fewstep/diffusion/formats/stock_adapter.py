"""A script for a new process: calls a base with an adapter by stock diffusers, without fewstep.

python stock_adapter.py OUT.npy NETWORK ADAPTER PART VARIANT CALLS.pt
"""

import json
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch


def main(out: str, network: str, adapter: str, part: str, variant: str, calls: str) -> None:
    """Writes the output of the network in one folder with the adapter in another, for the arguments in `calls`."""
    kind = getattr(diffusers, json.loads((Path(network) / "config.json").read_text())["_class_name"])
    model = kind.from_pretrained(network, local_files_only=True, variant=variant or None, torch_dtype=torch.float32)
    model.load_lora_adapter(adapter, prefix=part, use_safetensors=True)
    given, named = torch.load(calls, weights_only=True)
    with torch.no_grad():
        said = model(*given, **named)
    said = said if isinstance(said, torch.Tensor) else said[0]
    np.save(out, (torch.stack(said) if isinstance(said, list) else said).numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
