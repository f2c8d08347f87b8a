"""The real comfy modules in this process, the pack loaded as ComfyUI loads it, and tiny models with LoRAs.

Imported by ``inside.py`` and its checks; reads the command line of that script.
"""

import asyncio
import gc
import importlib.util
import sys
import time
from importlib import import_module
from pathlib import Path

PACK, BASE, WANTED = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
sys.path.insert(0, str(Path.cwd()))
sys.argv = ["main.py", "--cpu", "--base-directory", str(BASE)]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402 a running ComfyUI has these before it loads packs
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import comfy_api.latest  # noqa: E402, F401
import folder_paths  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

LORAS = BASE / "models" / "loras"
LORAS.mkdir(parents=True, exist_ok=True)
MODELS = ("sd15", "sdxl", "flux", "sd3", "wan")
CHECKS = []


def load_pack(name):
    """Load the pack as ComfyUI does, under a module name of its own."""
    spec = importlib.util.spec_from_file_location(
        name, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    return {node.__name__: node for node in asyncio.run(extension.get_node_list())}


BEFORE = set(sys.modules)
gc.collect()  # of what ComfyUI and torch left, which may else fall into the time of the pack
_begin = time.process_time()
NODES = load_pack("alloy_pack")
LOADED_IN = time.process_time() - _begin  # seconds of processor time
LOADED = sys.modules.keys() - BEFORE
merge_ops = import_module("alloy_pack.merge_ops")


def check(function):
    CHECKS.append(function)
    return function


OF_EACH_KIND = ("ties", "dare_ties", "breadcrumbs", "sce", "even", "np", "knots_ties")


def some_methods(names=None):
    """``(name, parameters)`` of methods, or of all but linear that need no recording, at density 0.4."""
    return [
        (name, {p.name: 0.4 for p in method.params if p.name == "density"})
        for name, method in merge_ops.METHODS.items()
        if (name in names if names else not method.linear and not method.needs_recording)
    ]


def run(node, **inputs):
    """Execute a node and return its outputs."""
    with torch.inference_mode():
        return NODES[node].execute(**inputs).result


_loaded = {}


def load_sd15():
    """``(MODEL, CLIP)`` of the tiny checkpoint, loaded anew."""
    path = folder_paths.get_full_path_or_raise("checkpoints", "tiny_sd15.safetensors")
    model, clip = comfy.sd.load_checkpoint_guess_config(path, output_vae=False)[:2]
    with torch.no_grad():  # the checkpoint lacks it, and so it is whatever the memory held, even NaN
        clip.cond_stage_model.clip_l.transformer.text_projection.weight.zero_()
    return model, clip


def load_model(name):
    """``(MODEL, CLIP or None)`` of a tiny checkpoint, by ComfyUI's stock loaders, without patches in it."""
    comfy.model_management.unload_all_models()  # a clone that an earlier check left loaded shares the weights
    if name not in _loaded:
        if name == "sd15":
            model, clip = load_sd15()
        else:
            path = folder_paths.get_full_path_or_raise("diffusion_models", f"tiny_{name}.safetensors")
            model, clip = comfy.sd.load_diffusion_model(path), None
        _loaded[name] = model, clip
    return _loaded[name]


def key_names(model, clip):
    """One of ComfyUI's own names for each weight that it maps, slices included."""
    unet = comfy.lora.model_lora_keys_unet(model.model, {})
    text = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}) if clip else {}
    shapes = {k: tuple(v.shape) for k, v in model.model.state_dict().items()}
    shapes |= {k: tuple(v.shape) for k, v in clip.patcher.model.state_dict().items()} if clip else {}
    found = {}
    for name, target in (unet | text).items():
        key = target if isinstance(target, str) else target[0]
        # names of a whole fused weight overlap with those of its slices; the slices are the harder case
        if key in shapes and len(shapes[key]) > 1 and not name.startswith("base_model"):
            shape = list(shapes[key])
            if not isinstance(target, str) and target[1] is not None:
                shape[target[1][0]] = target[1][2]
            found[target] = (name, tuple(shape))
    whole = {t if isinstance(t, str) else t[0] for t in found if not isinstance(t, str)}
    return {target: value for target, value in found.items() if target not in whole}


def write_lora(name, model_name, rank, alpha, seed, every=1):
    """A LoRA file on every ``every``-th weight, under ComfyUI's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    names = sorted(key_names(*load_model(model_name)).values())
    for stem, shape in names[::every]:
        up, down = (shape[0], rank), (rank, *shape[1:])
        up = up if len(shape) == 2 else (*up, *(1 for _ in shape[2:]))
        tensors[f"{stem}.lora_up.weight"] = (torch.randn(up, generator=generator) * 0.05).half()
        tensors[f"{stem}.lora_down.weight"] = (torch.randn(down, generator=generator) * 0.05).half()
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(float(alpha))
    save_file(tensors, LORAS / f"{name}.safetensors")
    return f"{name}.safetensors"


def patched(patcher):
    """Every patched weight of a ModelPatcher, as ComfyUI computes it, the model itself untouched."""
    with torch.inference_mode():
        return {
            key: patcher.patch_weight_to_device(key, return_weight=True).clone()
            for key in sorted(patcher.patches)
        }


def weights_of(model, clip):
    return (patched(model) if model else {}) | (patched(clip.patcher) if clip else {})


def chained(model, clip, rows):
    """Stock Load LoRA, one after the other."""
    for name, strength, strength_clip in rows:
        lora = comfy.utils.load_torch_file(str(LORAS / name), safe_load=True)
        model, clip = comfy.sd.load_lora_for_models(model, clip, lora, strength, strength_clip)
    return model, clip


def text_of(rows):
    return "\n".join(f"<lora:{name}:{s}:{c}>" for name, s, c in rows)


def three_loras(name):
    return [
        (write_lora(f"{name}_a", name, 4, 8, 1), 0.7, 0.4),
        (write_lora(f"{name}_b", name, 8, None, 2), -0.5, 0.9),
        (write_lora(f"{name}_c", name, 2, 1, 3, every=2), 1.1, -0.3),
    ]


def write_unfit():
    """Files that the sd15 model refuses: for another model, with NaN, of other widths."""
    write_lora("flux_only", "flux", 4, 4, 1)
    bad = load_file(LORAS / write_lora("nan", "sd15", 2, 2, 1))
    bad[max(bad)].view(-1)[0] = float("nan")
    save_file(bad, LORAS / "nan.safetensors")
    good = load_file(LORAS / write_lora("good", "sd15", 2, 2, 1))
    wide = {k: torch.cat((v, v), dim=1) if "lora_down" in k else v for k, v in good.items()}
    save_file(wide, LORAS / "wide.safetensors")


def assert_close(a, b, what, tolerance=0.0):
    """The same weights, relative to the largest entry; half precision adds its rounding."""
    assert a.keys() == b.keys(), f"{what}: {len(a)} weights against {len(b)}"
    for key, weight in a.items():
        allowed = tolerance + (2e-3 if tolerance and weight.dtype != torch.float32 else 0)
        off = (weight.float() - b[key].float()).abs().max().item() / (
            b[key].float().abs().max().item() + 1e-9
        )
        assert off <= allowed, f"{what}: {key} is off by {off}"
