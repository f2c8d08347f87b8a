"""Checks of the nodes: file names, composed nodes, core's nodes, refusals, changed files."""

import json
import sys

import comfy.utils
import torch
from comfy_inside import (
    BASE,
    LOADED,
    LOADED_IN,
    LORAS,
    NODES,
    assert_close,
    check,
    load_model,
    load_pack,
    merge_ops,
    patched,
    run,
    text_of,
    three_loras,
    weights_of,
    write_lora,
    write_unfit,
)
from safetensors.torch import load_file, save_file


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
    stack, community, *_ = run("LoraAlloyStack", loras=text_of(rows))
    (method,) = run("LoraAlloyMethod", method={"method": "ties", "density": 0.3})
    assert community == [(n, s, c) for n, s, c in rows], community
    for given in (stack, community):
        lora, report, *_ = run("LoraAlloyMerge", stack=given, method=method)
        assert "ties of 3 LoRAs" in report, report
        applied = run(
            "LoraAlloyApply", model=model, clip=clip, lora=lora, strength_model=1.0, strength_clip=1.0
        )
        assert_close(weights_of(*applied), weights_of(*one[:2]), "composed", 1e-6)
    text, data, image = run("LoraAlloyInspect", stack=stack)
    assert json.loads(data)["comparison"] and "opposite signs" in text
    assert image.shape[0] == 1 and image.shape[2:] == (960, 3) and 0 <= image.min() < image.max() <= 1
    dark = run("LoraAlloyInspect", stack=stack, theme="dark")[2]
    assert dark.shape == image.shape and dark[0, 0, 0].max() < 0.2 < 0.9 < image[0, 0, 0].min()


@check
def the_loader_gives_what_it_merged_as_a_stack():
    """The LoRAs of its input, then those of its list that are on; another merge of them is the same."""
    model, _ = load_model("sd15")
    rows = three_loras("sd15")
    first = run("LoraAlloyStack", loras=text_of(rows[:1]))[0]
    _, _, _, stack, *_ = run(
        "LoraAlloyLoader", model=model, loras=f"{text_of(rows[1:])}\n# <lora:gone:1>", stack=first
    )
    assert [(e.lora_name, e.strength, e.strength_clip) for e in stack] == rows, stack
    again = run("LoraAlloyLoader", model=model, loras="", stack=stack)[0]
    whole = run("LoraAlloyLoader", model=model, loras=text_of(rows))[0]
    assert_close(patched(again), patched(whole), "from the stack")
    assert json.loads(run("LoraAlloyInspect", stack=stack)[1])["loras"]
    assert run("LoraAlloyLoader", model=model, loras="# <lora:gone:1>")[3] == ()


@check
def a_part_that_is_not_connected_is_kept():
    """Without CLIP the text encoder's layers are merged and saved all the same, and the node says so."""
    model, clip = load_model("sd15")
    rows = three_loras("sd15")
    chosen = {"method": "ties", "density": 0.3}
    both = run("LoraAlloyLoader", model=model, clip=clip, loras=text_of(rows), method=chosen)[2]
    (method,) = run("LoraAlloyMethod", method=chosen)
    for given in ({"model": model}, {"clip": clip}, {}):
        stack = run("LoraAlloyStack", loras=text_of(rows))[0]
        lora, *_ = run("LoraAlloyMerge", stack=stack, method=method, **given)
        applied = run(
            "LoraAlloyApply", model=model, clip=clip, lora=lora, strength_model=1.0, strength_clip=1.0
        )
        whole = run(
            "LoraAlloyApply", model=model, clip=clip, lora=both, strength_model=1.0, strength_clip=1.0
        )
        assert_close(weights_of(*applied), weights_of(*whole), str(sorted(given)), 1e-5)
        assert len(lora) == len(both), (len(lora), len(both))  # SD1.5 has two names for one projection
    with torch.inference_mode():
        out = NODES["LoraAlloyLoader"].execute(model=model, loras=text_of(rows), method=chosen)
    assert "CLIP is not connected" in out.ui.as_dict()["text"][0], out.ui.as_dict()


@check
def core_lora_models_in_and_out():
    """Core's LORA_MODEL goes into our nodes, and ours into core's loader and saver."""
    import comfy_extras.nodes_train as core

    model, _ = load_model("flux")
    name = write_lora("core", "flux", 4, 2, 3)
    trained = load_file(LORAS / name)
    stack, *_ = run("LoraAlloyStack", loras="", lora={"lora0": trained, "lora1": None})
    lora, *_ = run("LoraAlloyMerge", stack=stack)
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
    write_unfit()
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
        ({"loras": "<lora:good:1>", "method.density": 0.5}, "method linear has no parameter 'density'"),
        ({"loras": "<lora:good:1>", "density": 0.5}, "did you mean 'method.density'"),
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
def the_pack_loads_in_a_quarter_of_a_second():
    """Of processor time: other programs on the machine do not count. What only a run needs comes with it."""
    assert LOADED_IN < 0.25, LOADED_IN
    own = {name for name in LOADED if name.startswith("alloy_pack.")}
    later = (
        "merge_ops.formats.read",
        "merge_ops.merging.merge",
        "merge_ops.saving.save",
        "merge_ops.adapters",
    )
    later += ("nodes.model.patches.patch", "nodes.model.places.fitting", "nodes.model.jobs.one_model")
    assert not own & {f"alloy_pack.{name}" for name in later}, own


@check
def the_pack_loads_twice_without_a_clash():
    """Under a second name it has its own registry, and works; neither load needs diffusers or PEFT."""
    assert not {"diffusers", "peft"} & LOADED, "loaded by the pack"
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
