"""Ten thousand merges through the real server: ``make soak``, or LORA_ALLOY_SOAK=MERGES with pytest."""

import os
import sys

import pytest
import torch
from safetensors.torch import save_file

from merge_ops import METHODS
from tests.nodes.pack import one_node
from tests.nodes.test_server_long import resident

MERGES = int(os.environ.get("LORA_ALLOY_SOAK", "0"))
AT_ONCE = 49  # merge nodes of a prompt that only merge; one more merge of it is patched into a model
LEVELS = 10  # how often memory is told
SPARE = 40  # MB that memory may differ by: allocators keep what they have
SHAPES = {"proj_in": (48, 32), "proj_out": (32, 48), "ff_net_0_proj": (64, 32)}

pytestmark = pytest.mark.skipif(not MERGES, reason="takes twenty minutes: make soak")


@pytest.fixture(scope="module")
def small_loras(server):
    """Three files of three small layers."""
    for i, name in enumerate("abc"):
        generator = torch.Generator().manual_seed(i)
        tensors = {}
        for layer, (rows, columns) in SHAPES.items():
            stem = f"lora_unet_mid_block_attentions_0_{layer}"
            tensors[f"{stem}.lora_up.weight"] = torch.randn(rows, 4, generator=generator)
            tensors[f"{stem}.lora_down.weight"] = torch.randn(4, columns, generator=generator)
        save_file(tensors, server.base / "models" / "loras" / f"soak_{name}.safetensors")


def many_merges(prompt):
    """A prompt of fifty merges that no prompt before had: methods, strengths and seeds change."""
    methods = sorted(METHODS)
    workflow = one_node(
        loras=f"<lora:sd15_c:{0.2 + prompt % 97 / 100:.2f}>\n<lora:sd15_a:0.3>", method="ties"
    )
    del workflow["8"], workflow["9"]
    workflow["3"]["inputs"] |= {"steps": 1, "cfg": 1.0}
    for text in ("6", "7"):
        workflow[text]["inputs"]["clip"] = ["4", 1]
    workflow["9"] = {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}}
    for i in range(AT_ONCE):
        count = prompt * AT_ONCE + i
        lines = [f"<lora:soak_{name}:{(count * k) % 191 / 100 - 0.9:.2f}>" for k, name in enumerate("abc", 1)]
        nodes = {
            "stack": ("LoraAlloyStack", {"loras": "\n".join(lines)}),
            "method": ("LoraAlloyMethod", {"method": methods[count % len(methods)]}),
            "merge": (
                "LoraAlloyMerge",
                {
                    "stack": [f"stack{i}", 0],
                    "method": [f"method{i}", 0],
                    "rank": 1 + count % 4,
                    "seed": count,
                },
            ),
            "show": ("PreviewAny", {"source": [f"merge{i}", 1]}),
        }
        for name, (kind, inputs) in nodes.items():
            workflow[f"{name}{i}"] = {"class_type": kind, "inputs": inputs}
    return workflow


def test_memory_stays_flat(server, small_loras):
    """Resident memory of the server after the last merges is that after the first tenth of them."""
    prompts = -(-MERGES // (AT_ONCE + 1))
    sizes = []
    for i in range(prompts):
        entry = server.run(many_merges(i))
        assert entry["status"]["status_str"] == "success", entry["status"]
        server.post("/history", {"clear": True})  # ComfyUI keeps the texts of ten thousand prompts
        if (i + 1) * LEVELS // prompts > i * LEVELS // prompts:
            sizes.append(resident(server.process))
            sys.stdout.write(f"{(i + 1) * (AT_ONCE + 1)} merges: {sizes[-1]:.0f} MB\n")
            sys.stdout.flush()
    assert max(sizes[-3:]) < max(sizes[:2]) + SPARE, sizes
