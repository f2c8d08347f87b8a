"""Checks of LoRA Recipe: a saved merge replayed from its sources, and what is refused."""

import json
import shutil

from comfy_execution.graph_utils import ExecutionBlocker
from comfy_inside import (
    BASE,
    LORAS,
    NODES,
    assert_close,
    check,
    load_model,
    merge_ops,
    patched,
    run,
    text_of,
    three_loras,
    weights_of,
    write_lora,
)


def saved_merge(name, **method):
    """A merge of the three LoRAs of SD1.5 saved into the loras folder: its file name, and the merge."""
    stack, *_ = run("LoraAlloyStack", loras=text_of(three_loras("sd15")))
    (chosen,) = run("LoraAlloyMethod", method=method)
    lora, *_ = run("LoraAlloyMerge", stack=stack, method=chosen)
    (written,) = run("LoraAlloySave", lora=lora, filename_prefix=f"loras/{name}", dtype="float32")
    shutil.copy(BASE / "output" / written, LORAS / f"{name}.safetensors")
    return f"{name}.safetensors", lora


@check
def a_recipe_gives_the_merge_again():
    """From the saved file, and from its text: the same weights as the merge that was saved, CLIP included."""
    model, clip = load_model("sd15")
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    for method in (
        {"method": "ties", "density": 0.4},
        {"method": "dare_linear"},
        {"method": "peft", "combination_type": "cat"},
    ):
        name, lora = saved_merge("replayed", **method)
        wanted = weights_of(*run("LoraAlloyApply", model=model, clip=clip, lora=lora, **strengths))
        again, text = run("LoraAlloyRecipe", lora_name=name)
        recipe = json.loads(text)
        assert [source["name"] for source in recipe["sources"]] == ["sd15_a", "sd15_b", "sd15_c"]
        assert recipe["sources"][0]["text_weight"] == 0.4, recipe["sources"]
        assert str(BASE) not in text
        from_text, _ = run("LoraAlloyRecipe", lora_name="none", recipe_json=text)
        for found in (again, from_text):
            weights = weights_of(*run("LoraAlloyApply", model=model, clip=clip, lora=found, **strengths))
            assert_close(weights, wanted, f"replayed {method['method']}", 1e-6)


@check
def a_renamed_source_is_found_and_a_changed_one_is_named():
    """By its SHA-256 first; by its name with a line that says so; else an error that names it."""
    name, _ = saved_merge("moved", method="linear")
    (LORAS / "sub").mkdir(exist_ok=True)
    (LORAS / "sd15_a.safetensors").rename(LORAS / "sub" / "other name.safetensors")
    lora, _ = run("LoraAlloyRecipe", lora_name=name)
    assert [one.name for one in lora.merged.loras] == ["other name", "sd15_b", "sd15_c"]
    assert not lora.merged.report.warnings, lora.merged.report.warnings
    (LORAS / "sub" / "other name.safetensors").unlink()
    before = NODES["LoraAlloyRecipe"].fingerprint_inputs(lora_name=name)
    write_lora("sd15_a", "sd15", 4, 8, 77)
    assert NODES["LoraAlloyRecipe"].fingerprint_inputs(lora_name=name) != before
    lora, _ = run("LoraAlloyRecipe", lora_name=name)
    assert "not the file that the recipe was made from" in lora.merged.report.warnings[0]
    (LORAS / "sd15_a.safetensors").unlink()
    try:
        run("LoraAlloyRecipe", lora_name=name)
    except merge_ops.MergeError as error:
        assert "'sd15_a'" in str(error) and "loras" in str(error) and str(BASE) not in str(error), error
    else:
        raise AssertionError("merged without a source")
    three_loras("sd15")  # other tests find the files as they were


@check
def recipes_of_other_programs_run_in_the_node():
    """A LoRAX request and a mergekit configuration, by the names of files in the loras folder."""
    model, _ = load_model("flux")
    write_lora("lorax_a", "flux", 4, 4, 1)
    write_lora("lorax_b", "flux", 4, 4, 2)
    request = {"ids": ["lorax_a", "lorax_b"], "weights": [1, 1], "merge_strategy": "ties", "density": 0.5}
    config = {
        "merge_method": "ties",
        "models": [{"model": name, "parameters": {"weight": 1}} for name in request["ids"]],
        "parameters": {"density": 0.5},
    }
    method = {"method": "ties", "density": 0.5}
    for given, space in ((request | {"space": "delta"}, "delta"), (config, "delta"), (request, "factors")):
        lora, _ = run("LoraAlloyRecipe", recipe_json=json.dumps(given))
        ours = run("LoraAlloyApply", model=model, lora=lora, strength_model=1.0, strength_clip=1.0)[0]
        text = "<lora:lorax_a:1>\n<lora:lorax_b:1>"
        wanted = run("LoraAlloyLoader", model=model, loras=text, method=method, space=space)[0]
        assert_close(patched(ours), patched(wanted), f"{sorted(given)} in {space}", 1e-6)


@check
def a_recipe_without_replay_only_shows():
    """The text comes out; who uses the LoRA is told why there is none."""
    text = json.dumps({"recipe": 1, "sources": [{"name": "not there at all"}]})
    lora, shown = run("LoraAlloyRecipe", recipe_json=text, replay=False)
    assert isinstance(lora, ExecutionBlocker) and "replay" in lora.message
    assert json.loads(shown)["sources"][0]["name"] == "not there at all"


@check
def recipes_that_are_refused():
    """No recipe, a file without one, a broken one, names that lead out: one sentence each."""
    plain = write_lora("plain", "sd15", 2, 2, 1)
    outside = {"recipe": 1, "sources": [{"name": "../../etc/passwd"}]}
    cases = [
        ({}, "there is no recipe"),
        ({"lora_name": plain}, "has no recipe"),
        ({"lora_name": "gone.safetensors"}, "no LoRA file"),
        ({"recipe_json": "{broken"}, "not valid JSON"),
        ({"recipe_json": json.dumps(outside)}, "'..'"),
        ({"recipe_json": '{"recipe": 2, "sources": []}'}, "version 2"),
        ({"recipe_json": '{"recipe": 1, "sources": [{"name": "missing one"}]}'}, "'missing one'"),
    ]
    for inputs, says in cases:
        try:
            run("LoraAlloyRecipe", **inputs)
        except merge_ops.MergeError as error:
            assert says in str(error) and "\n" not in str(error), (says, str(error))
        else:
            raise AssertionError(f"not refused: {inputs}")
        assert NODES["LoraAlloyRecipe"].fingerprint_inputs(**inputs) is not None
