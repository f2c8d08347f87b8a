"""Two random LoRAs with prompts on the tiny SD1.5, recorded once for the checks of learning."""

import comfy.model_management
import torch
from comfy_inside import LORAS, key_names, load_sd15, run
from safetensors.torch import save_file

PACK = "alloy_pack."
SMALL = {"width": 64, "height": 64, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
PROMPTS = {"learn_a": ("a cat",), "learn_b": ("ink on paper", "ink: a boat")}


def write(name, model, seed, size=0.2, only=""):
    """A LoRA of rank 4 on each fourth layer of the diffusion model, or on those whose name has a part."""
    generator = torch.Generator().manual_seed(seed)
    unet = [(stem, shape) for key, (stem, shape) in key_names(model, None).items()]
    names = [(stem, shape) for stem, shape in sorted(unet) if only in stem][:: 1 if only else 4]
    tensors = {}
    for stem, shape in names:
        up, down = (shape[0], 4), (4, *shape[1:])
        up = up if len(shape) == 2 else (*up, *(1 for _ in shape[2:]))
        fan = max(1, torch.Size(shape[1:]).numel())
        tensors[f"{stem}.lora_up.weight"] = torch.randn(up, generator=generator) * size
        tensors[f"{stem}.lora_down.weight"] = torch.randn(down, generator=generator) / fan**0.5
    save_file(tensors, LORAS / f"{name}.safetensors")


_made = {}


def fresh():
    """``(model, clip)`` loaded in inference mode, as nodes are run: all weights are inference tensors."""
    if not _made:
        with torch.inference_mode():
            _made["sd15"] = load_sd15()
        model = _made["sd15"][0]
        write("learn_a", model, 1, 0.25, only="attn1")
        write("learn_b", model, 2, 0.15, only="attn2")
        assert all(weight.is_inference() for weight in model.model.parameters())
    return _made["sd15"]


def text(strengths=(1, 1)):
    rows = zip(PROMPTS.items(), strengths, strict=True)
    return "\n".join(f"<lora:{name}:{s}:0:prompt={'|'.join(own)}>" for (name, own), s in rows)


def record(**inputs):
    """The recording of two LoRAs, made once; with inputs, another one."""
    if inputs or "recording" not in _made:
        model, clip = fresh()
        made = run("LoraAlloyRecord", model=model, clip=clip, loras=text(), **{**SMALL, **inputs})
        if inputs:
            return made[0]
        _made["recording"] = made[0]
    return _made["recording"]


def state(part):
    """Every weight: its object, where it lies, and its bits."""
    module = getattr(part, "patcher", part).model
    return {
        name: (id(weight), weight.data_ptr(), weight.requires_grad, weight.detach().clone())
        for name, weight in module.named_parameters()
    }


def assert_as_before(part, before, objects=True):
    """The same bits in the same memory, the same objects, and no hook left."""
    module = getattr(part, "patcher", part).model
    after = state(part)
    assert after.keys() == before.keys()
    for name, (number, place, needs, bits) in before.items():
        assert torch.equal(bits, after[name][3]), name
        assert (place, needs) == after[name][1:3], name
        assert not objects or number == after[name][0], name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert not getattr(part, "patcher", part).patches
    assert not comfy.model_management.in_training
