"""Run by ComfyUI's interpreter: checks of the patched weights, in one process with the real comfy modules.

    python inside.py PACK_FOLDER BASE_FOLDER [PART OF A CHECK'S NAME ...]

Prints one JSON line a check: its name, and what is wrong, if anything.
"""

import asyncio
import importlib.util
import json
import sys
import traceback
from pathlib import Path

PACK, BASE, WANTED = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
sys.path.insert(0, str(Path.cwd()))
sys.argv = ["main.py", "--cpu", "--base-directory", str(BASE)]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

LORAS = BASE / "models" / "loras"
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


NODES = load_pack("alloy_pack")
merge_ops = sys.modules["alloy_pack.merge_ops"]


def check(function):
    CHECKS.append(function)
    return function


def run(node, **inputs):
    """Execute a node and return its outputs."""
    with torch.inference_mode():
        return NODES[node].execute(**inputs).result


_loaded = {}


def load_model(name):
    """``(MODEL, CLIP or None)`` of a tiny checkpoint, by ComfyUI's stock loaders."""
    if name not in _loaded:
        if name == "sd15":
            path = folder_paths.get_full_path_or_raise("checkpoints", "tiny_sd15.safetensors")
            model, clip = comfy.sd.load_checkpoint_guess_config(path, output_vae=False)[:2]
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
    return patched(model) | (patched(clip.patcher) if clip else {})


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


def assert_close(a, b, what, tolerance=0.0):
    """The same weights, relative to the largest entry; half precision adds its rounding."""
    assert a.keys() == b.keys(), f"{what}: {len(a)} weights against {len(b)}"
    for key, weight in a.items():
        allowed = tolerance + (2e-3 if tolerance and weight.dtype != torch.float32 else 0)
        off = (weight.float() - b[key].float()).abs().max().item() / (
            b[key].float().abs().max().item() + 1e-9
        )
        assert off <= allowed, f"{what}: {key} is off by {off}"


for _name in MODELS:

    @check
    def linear_is_the_chain(name=_name):
        """Bit for bit what chained Load LoRA nodes give, for MODEL and CLIP."""
        model, clip = load_model(name)
        rows = three_loras(name)
        ours = run(
            "LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method={"method": "linear"}
        )
        assert_close(weights_of(*ours[:2]), weights_of(*chained(model, clip, rows)), name)

    @check
    def methods_are_base_plus_delta(name=_name):
        """Every other method adds the library's merged delta to the base weight."""
        model, clip = load_model(name)
        rows = three_loras(name)
        base = {
            k: v.float()
            for m in (model, clip.patcher if clip else None)
            if m
            for k, v in m.model.state_dict().items()
        }
        by_name = {stem: target for target, (stem, _) in key_names(model, clip).items()}
        loras = [merge_ops.load(LORAS / row[0]) for row in rows]
        for method in ("ties", "dare_ties", "dare_linear", "magnitude_prune"):
            chosen = {"method": method, "density": 0.4}
            ours = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method=chosen, seed=5)
            merged = merge_ops.merge(
                loras, [r[1] for r in rows], method, text_weights=[r[2] for r in rows], density=0.4, seed=5
            )
            expected = {}
            for layer in merged.layers:
                target = by_name[merged.layer(layer).template.key]
                key, offset, function = (
                    target
                    if not isinstance(target, str) and len(target) == 3
                    else ((target, None, None) if isinstance(target, str) else (*target, None))
                )
                weight = expected.setdefault(key, base[key].clone())
                part = weight if offset is None else weight.narrow(*offset)
                delta = merged.delta(layer).reshape(part.shape)
                part += delta if function is None else function(delta)
            assert_close(weights_of(*ours[:2]), expected, f"{name} {method}", 2e-6)


@check
def peft_types_are_the_library():
    """Method peft with each of PEFT's eleven names gives what the library gives."""
    model, _ = load_model("flux")
    rows = [(write_lora(f"flux_p{i}", "flux", 4, 4, 10 + i), 0.8, 0.8) for i in range(2)]
    loras = [merge_ops.load(LORAS / row[0]) for row in rows]
    for kind in merge_ops.COMBINATION_TYPES:
        method = {
            "method": "peft",
            "combination_type": kind,
            "density": 0.5,
            "svd_rank": 3,
            "svd_clamp": None,
        }
        ours = run("LoraAlloyLoader", model=model, loras=text_of(rows), method=method)
        merged = merge_ops.merge(loras, [0.8, 0.8], combination_type=kind, density=0.5, svd_rank=3)
        norm = sum(float(merged.delta(name).norm()) ** 2 for name in merged.layers) ** 0.5
        base = {k: v.float() for k, v in model.model.state_dict().items()}
        change = sum(float((v - base[k]).norm()) ** 2 for k, v in weights_of(ours[0], None).items()) ** 0.5
        assert abs(change - norm) < 1e-3 * norm, (kind, change, norm)


@check
def the_patch_is_lazy_and_rebuildable():
    """It holds factors and scalars only; a copy made as ComfyUI makes it gives the same bits again."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    ours = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method={"method": "ties"})[0]
    sizes = []

    def tensors(value):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            for item in value:
                yield from tensors(item)
        else:
            assert value is None or isinstance(value, (str, int, float)), type(value)

    for key, patches in ours.patches.items():
        ((strength, adapter, *_),) = patches
        held = sum(t.numel() for t in tensors(adapter.weights))
        sizes.append(held / model.model.state_dict()[key].numel())
        counter = [0]
        comfy.lora.prefetch_prepared_value(adapter, counter, None, None, False)
        copy = type(adapter)(adapter.loaded_keys, adapter.weights)
        weight = torch.zeros_like(model.model.state_dict()[key], dtype=torch.float32)
        first = copy.calculate_weight(weight.clone(), key, strength, 1.0, None, lambda a: a)
        assert torch.equal(
            first, adapter.calculate_weight(weight.clone(), key, strength, 1.0, None, lambda a: a)
        )
    assert sum(sizes) / len(sizes) < 0.2, sum(sizes) / len(sizes)
    again = ours.clone()
    assert_close(patched(again), patched(ours), "clone")


@check
def half_and_fp8_weights():
    """fp16, bf16 and fp8 base weights get the change, within what their precision can hold."""
    model, _ = load_model("flux")
    rows = three_loras("flux")
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 1.5e-2), (torch.float8_e4m3fn, 0.2)):
        path = folder_paths.get_full_path_or_raise("diffusion_models", "tiny_flux.safetensors")
        other = comfy.sd.load_diffusion_model(path, model_options={"dtype": dtype})
        ours = run("LoraAlloyLoader", model=other, loras=text_of(rows), method={"method": "ties"})[0]
        exact = run("LoraAlloyLoader", model=model, loras=text_of(rows), method={"method": "ties"})[0]
        a, b = patched(ours), patched(exact)
        for key in a:
            assert a[key].dtype == dtype, (key, a[key].dtype)
        assert_close(
            {k: v.float() for k, v in a.items()}, {k: v.float() for k, v in b.items()}, str(dtype), tolerance
        )


@check
def save_then_stock_load():
    """What Save LoRA writes, stock Load LoRA reads at strength 1: the merged weights within the error."""
    for name in MODELS:
        model, clip = load_model(name)
        rows = three_loras(name)
        for method, tolerance in (("linear", 1e-3), ("magnitude_prune", 0.6)):
            ours = run(
                "LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method={"method": method}
            )
            path = run("LoraAlloySave", lora=ours[2], filename_prefix=f"loras/{name}_{method}")[0]
            saved = comfy.utils.load_torch_file(str(BASE / "output" / path), safe_load=True)
            stock = comfy.sd.load_lora_for_models(model, clip, saved, 1.0, 1.0)
            a, b = weights_of(*stock), weights_of(*ours[:2])
            base = {
                k: v.float()
                for m in (model, clip.patcher if clip else None)
                if m
                for k, v in m.model.state_dict().items()
            }
            assert a.keys() == b.keys(), (name, method, len(a), len(b))
            off = sum(float((a[k] - b[k]).norm()) ** 2 for k in a) ** 0.5
            change = sum(float((b[k] - base[k]).norm()) ** 2 for k in a) ** 0.5
            assert off <= tolerance * change, (name, method, off / change)


@check
def names_that_stock_does_not_map():
    """Diffusers PEFT with metadata alpha, diffusers 0.21 and PEFT folders, at the right strength."""
    for model_name in ("sd15", "sdxl"):
        model, _ = load_model(model_name)
        names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
        paths = sorted(k[: -len(".weight")] for k in names if k.endswith("to_q.weight"))[:4]
        keys = [f"diffusion_model.{names[path + '.weight']}" for path in paths]
        sd = model.model.state_dict()
        pairs = {
            p: (torch.randn(sd[k].shape[0], 4) * 0.1, torch.randn(4, sd[k].shape[1]) * 0.1)
            for p, k in zip(paths, keys, strict=True)
        }
        a, b = "lora_A.weight", "lora_B.weight"
        new = {f"unet.{p}.{a}": d for p, (u, d) in pairs.items()} | {
            f"unet.{p}.{b}": u for p, (u, d) in pairs.items()
        }
        save_file(
            new,
            LORAS / "new.safetensors",
            {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 12})},
        )
        old = {f"unet.{p}.lora.down.weight": d for p, (u, d) in pairs.items()}
        old |= {f"unet.{p}.lora.up.weight": u * 3 for p, (u, d) in pairs.items()}
        save_file(old, LORAS / "old.safetensors")
        folder = LORAS / "folder"
        folder.mkdir(exist_ok=True)
        peft = {f"base_model.model.{p}.{a}": d for p, (u, d) in pairs.items()}
        save_file(
            peft | {f"base_model.model.{p}.{b}": u for p, (u, d) in pairs.items()},
            folder / "adapter_model.safetensors",
        )
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 12})
        )
        for name in ("new.safetensors", "old", "folder"):
            ours = run(
                "LoraAlloyLoader",
                model=model,
                loras=f"<lora:{name}:0.5>",
                method={"method": "ties", "density": 1.0},
            )[0]
            weights = patched(ours)
            assert sorted(weights) == sorted(keys), (name, len(weights))
            for path, key in zip(paths, keys, strict=True):
                up, down = pairs[path]
                change = weights[key] - sd[key]
                assert torch.allclose(change, 0.5 * 3 * up @ down, atol=1e-4), (name, key)


@check
def composed_nodes_are_the_loader():
    """Stack, Method, Merge and Apply give what the one node gives; stacks of other packs too."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    one = run(
        "LoraAlloyLoader",
        model=model,
        clip=clip,
        loras=text_of(rows),
        method={"method": "ties", "density": 0.3},
    )
    stack, community = run("LoraAlloyStack", loras=text_of(rows))
    (method,) = run("LoraAlloyMethod", method={"method": "ties", "density": 0.3})
    assert community == [(n, s, c) for n, s, c in rows], community
    for given in (stack, community):
        lora, report = run("LoraAlloyMerge", stack=given, method=method)
        assert "ties of 3 LoRAs" in report, report
        applied = run(
            "LoraAlloyApply", model=model, clip=clip, lora=lora, strength_model=1.0, strength_clip=1.0
        )
        assert_close(weights_of(*applied), weights_of(*one[:2]), "composed", 1e-6)
    text, data = run("LoraAlloyInspect", stack=stack)
    assert json.loads(data)["comparison"] and "opposite signs" in text


@check
def core_lora_models_in_and_out():
    """Core's LORA_MODEL goes into our nodes, and ours into core's loader and saver."""
    import comfy_extras.nodes_train as core

    model, _ = load_model("flux")
    name = write_lora("core", "flux", 4, 2, 3)
    trained = load_file(LORAS / name)
    stack, _ = run("LoraAlloyStack", loras="", lora={"lora0": trained, "lora1": None})
    lora, _ = run("LoraAlloyMerge", stack=stack)
    ours = run("LoraAlloyApply", model=model, lora=lora, strength_model=1.0, strength_clip=1.0)[0]
    stock = core.LoraModelLoader.execute(model, trained, 1.0).result[0]
    through_core = core.LoraModelLoader.execute(model, lora, 1.0).result[0]
    assert_close(patched(ours), patched(stock), "into ours")
    assert_close(patched(through_core), patched(stock), "into core's", 1e-5)
    core.SaveLoRA.execute(lora, "loras/by_core")
    direct = run("LoraAlloyApply", model=model, lora=trained, strength_model=1.0, strength_clip=1.0)[0]
    assert_close(patched(direct), patched(stock), "a plain state dict")


@check
def core_merging_nodes_take_our_patches():
    """ModelMergeSimple and Extract and Save Lora see a lazily merged model as any other."""
    import comfy_extras.nodes_lora_extract as extract
    import comfy_extras.nodes_model_merging as merging

    model, _ = load_model("flux")
    rows = three_loras("flux")
    ours = run("LoraAlloyLoader", model=model, loras=text_of(rows), method={"method": "ties"})[0]
    weights = patched(ours)
    with torch.inference_mode():
        half = merging.ModelMergeSimple().merge(model, ours, 0.5)[0]
        mixed = patched(half)
        difference = merging.ModelSubtract().merge(ours, model, 1.0)[0]
        changes = patched(difference)
        base = model.model.state_dict()
        for key, weight in weights.items():
            middle = (weight + base[key].float()) / 2
            assert torch.allclose(mixed[key], middle, atol=1e-5), f"{key}: the middle of two models"
            assert torch.allclose(changes[key], weight - base[key].float(), atol=1e-5), (
                f"{key}: the difference"
            )
        extract.LoraSave.execute("loras/extracted", 64, "full_diff", False, model_diff=difference)
    (saved,) = (BASE / "output" / "loras").glob("extracted_*.safetensors")
    for key, diff in load_file(saved).items():
        name = key.removesuffix(".diff") + ".weight"
        change = changes[name] if name in changes else torch.zeros_like(diff, dtype=torch.float32)
        assert torch.allclose(diff.float(), change, atol=2e-3), key


@check
def patching_again_and_again_changes_nothing():
    """Load, unload and load a patched model: the same bits each time, and the base as it was."""
    model, _ = load_model("wan")
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    text = text_of(three_loras("wan"))
    ours = run("LoraAlloyLoader", model=model, loras=text, method={"method": "dare_ties"})[0]
    seen = []
    with torch.inference_mode():
        for _ in range(2):
            ours.patch_model(ours.load_device)
            seen.append({key: weight.clone() for key, weight in ours.model.state_dict().items()})
            ours.unpatch_model(ours.offload_device)
    assert all(torch.equal(weight, before[key]) for key, weight in model.model.state_dict().items())
    assert all(torch.equal(seen[0][key], seen[1][key]) for key in before)
    changed = {key for key in before if not torch.equal(seen[0][key], before[key])}
    # ComfyUI loads patches of modules' weights; Wan's bare parameters ("modulation") it leaves to nobody
    expected = {key for key in ours.patches if key.endswith(".weight")}
    assert changed == expected, changed ^ expected


@check
def refusals_are_one_sentence():
    """Wrong base model, unknown method or parameter, missing file, NaN: an error, the model untouched."""
    model, clip = load_model("sd15")
    write_lora("flux_only", "flux", 4, 4, 1)
    bad = load_file(LORAS / write_lora("nan", "sd15", 2, 2, 1))
    bad[max(bad)].view(-1)[0] = float("nan")
    save_file(bad, LORAS / "nan.safetensors")
    good = write_lora("good", "sd15", 2, 2, 1)
    wide = {
        k: torch.cat((v, v), dim=1) if "lora_down" in k else v for k, v in load_file(LORAS / good).items()
    }
    save_file(wide, LORAS / "wide.safetensors")
    cases = [
        ({"loras": "<lora:flux_only:1>"}, "another base model"),
        ({"loras": "<lora:wide:1>"}, "another base model"),
        ({"loras": "<lora:nan:1>"}, "NaN"),
        ({"loras": "<lora:gone:1>"}, "no LoRA file"),
        ({"loras": "nonsense"}, "line 1"),
        ({"loras": "<lora:good:1>", "method": "tise"}, "did you mean 'ties'"),
        (
            {"loras": "<lora:good:1>", "method": {"method": "ties"}, "method.densty": 0.5},
            "did you mean 'density'",
        ),
        ({"loras": "<lora:good:1>", "method": {"method": "ties", "density": 1.5}}, "outside [0, 1]"),
    ]
    for inputs, says in cases:
        inputs = {"method": {"method": "linear"}, **inputs}
        try:
            run("LoraAlloyLoader", model=model, clip=clip, **inputs)
        except merge_ops.MergeError as error:
            assert says in str(error), (says, str(error))
            assert "\n" not in str(error)
        else:
            raise AssertionError(f"not refused: {inputs}")
    assert not model.patches
    for inputs in ({"loras": ""}, {"loras": "# <lora:good:1>"}, {"loras": "<lora:good:0>"}):
        out = run("LoraAlloyLoader", model=model, clip=clip, method={"method": "ties"}, **inputs)
        assert out[0] is model and out[1] is clip and dict(out[2]) == {}


@check
def the_pack_loads_twice_without_a_clash():
    """Under a second name it has its own registry, and works."""
    other = load_pack("alloy_again")
    assert other["LoraAlloyLoader"] is not NODES["LoraAlloyLoader"]
    assert sys.modules["alloy_again.merge_ops"].METHODS.keys() == merge_ops.METHODS.keys()


@check
def a_changed_file_is_read_again():
    """The fingerprint of a node follows the file, and so does what is read."""
    model, _ = load_model("flux")
    name = write_lora("changing", "flux", 4, 4, 1)
    loader = NODES["LoraAlloyLoader"]
    before, weights = loader.fingerprint_inputs(loras=f"<lora:{name}:1>"), []
    for seed in (1, 2):
        write_lora("changing", "flux", 4, 4, seed)
        weights.append(
            patched(
                run("LoraAlloyLoader", model=model, loras=f"<lora:{name}:1>", method={"method": "ties"})[0]
            )
        )
    assert loader.fingerprint_inputs(loras=f"<lora:{name}:1>") != before
    assert not all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


LORAS.mkdir(parents=True, exist_ok=True)
for function in CHECKS:
    label = function.__name__ + (f"[{function.__defaults__[0]}]" if function.__defaults__ else "")
    if not any(part in label for part in (WANTED or [""])):
        continue
    try:
        function()
        wrong = ""
    except Exception:
        wrong = traceback.format_exc()
    print(json.dumps({"check": label, "wrong": wrong}), flush=True)  # noqa: T201
