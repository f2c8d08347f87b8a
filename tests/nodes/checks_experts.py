"""Checks of one list for two models: each is what a node of its own gives, and CLIP has every LoRA once."""

from comfy_inside import (
    OF_EACH_KIND,
    assert_close,
    chained,
    check,
    load_model,
    patched,
    run,
    some_methods,
    weights_of,
)
from experts_inside import LINEAR, TIES, alone, both, chain_of, files, low_of, pair, refused, rows


@check
def each_model_is_a_node_of_its_own():
    """Bit for bit, by every kind of method, MODEL and LORA_MODEL; the LoRAs differ in rank and layers."""
    high, low, _ = pair()
    text, on_high, on_low = rows()
    for method, density in (("linear", {}), *some_methods(OF_EACH_KIND)):
        chosen = {"method": method, **density}
        found, _ = both(text, method=chosen, seed=7, strength=0.9)
        for model, lora, base, listed in (
            ("model", "lora", high, on_high), ("model_low", "lora_low", low, on_low),
        ):  # fmt: skip
            wanted = alone(base, listed, method=chosen, seed=7, strength=0.9)
            assert_close(patched(found[model]), wanted, f"{method} {model}")
            applied = run(
                "LoraAlloyApply", model=base, lora=found[lora], strength_model=1.0, strength_clip=1.0
            )
            theirs = run("LoraAlloyLoader", model=base, loras=listed, method=chosen, seed=7, strength=0.9)[2]
            wanted = run("LoraAlloyApply", model=base, lora=theirs, strength_model=1.0, strength_clip=1.0)
            assert_close(patched(applied[0]), patched(wanted[0]), f"{method} {lora}")


@check
def linear_is_a_chain_on_each_model():
    """Of ComfyUI's own Load LoRA, bit for bit."""
    high, low, _ = pair()
    style, style_low, char, ink, _ = files()
    text = f"<lora:{style}:0.8>\n<lora:{style_low}:0.7>\n<lora:{char}:-0.6>\n<lora:{ink}:0.5:on=low>"
    found, _ = both(text, method=LINEAR)
    assert_close(patched(found["model"]), chain_of(high, [(style, 0.8), (char, -0.6)]), "high")
    wanted = chain_of(low, [(style_low, 0.7), (char, -0.6), (ink, 0.5)])
    assert_close(patched(found["model_low"]), wanted, "low")


@check
def the_node_says_which_lora_is_where_and_why():
    """One line for each model; a hint where a name has a word for one of them; no warning about experts."""
    text, *_ = rows()
    _, told = both(text)
    lines = told.splitlines()
    assert lines[0].startswith("high-noise model: ties of 3 LoRAs, "), told
    assert lines[0].endswith(": wan_style_high_noise (by its name), wan_char, wan_ink (on=high)"), told
    assert lines[1].startswith("low-noise model: ties of 3 LoRAs, "), told
    ending = ": wan_char, wan_style_low_noise (by its name), wan_wash_low_noise (by its name)"
    assert lines[1].endswith(ending), told
    assert told.count("wan_char: blocks ") == 1 and "experts" not in told and "expert of" not in told, told
    char, _ = files(names=("char_HIGH", "other"))
    _, told = both(f"<lora:{char}:1>")
    assert "wan_char_HIGH is merged for both models" in told and "write :on=high in its row" in told, told
    for on in ("high", "both"):
        _, told = both(f"<lora:{char}:1:on={on}>")
        assert "is merged for both models" not in told and f"wan_char_HIGH (on={on})" in told, told
    _, told = both(f"<lora:{char}:1>", sweep=run("LoraAlloySweep", parameter="density", values="0.2")[0][0])
    assert told.startswith("high-noise model: density=0.2: ties of 1 LoRA"), told


@check
def clip_has_every_lora_once():
    """As a node with the whole list: the LoRAs of either model, those of both not twice, LCM behind them."""
    high, low, clip = pair("sd15")
    text, on_high, on_low = rows("sd15")
    (fast,) = files("sd15", names=("lcm_low_noise",))
    text, on_low = (f"{each}\n<lora:{fast}:0.5:0.8>" for each in (text, on_low))
    for method, density in some_methods(("linear", "ties", "dare_ties")):
        chosen = {"method": method, **density}
        found, told = both(text, "sd15", chosen, seed=3)
        whole = run("LoraAlloyLoader", model=high, clip=clip, loras=text, method=chosen, seed=3)
        assert_close(weights_of(None, found["clip"]), weights_of(None, whole[1]), method)
        assert_close(patched(found["model"]), alone(high, on_high, clip, chosen, seed=3), f"{method} high")
        assert_close(patched(found["model_low"]), alone(low, on_low, clip, chosen, seed=3), f"{method} low")
        assert (method == "linear") != ("sd15_lcm_low_noise is a step-distillation LoRA" in told), told
    style, style_low, char, *_ = files("sd15")
    text = f"<lora:{style}:0.8:0.5>\n<lora:{style_low}:0.7:0.6>\n<lora:{char}:-0.6:0.9>"
    listed = [(style, 0.8, 0.5), (style_low, 0.7, 0.6), (char, -0.6, 0.9)]
    found, _ = both(text, "sd15", LINEAR)
    wanted = chained(high, clip, listed)[1]
    assert_close(weights_of(None, found["clip"]), weights_of(None, wanted), "Load LoRA")
    found, _ = both(text.replace(">", ":blocks=te:0>"), "sd15", TIES)
    assert not weights_of(None, found["clip"]), "te:0"
    lines = text.splitlines()
    lines[0] = lines[0].replace(">", ":blocks=te:0>")
    found, _ = both("\n".join(lines), "sd15", TIES)
    whole = run("LoraAlloyLoader", model=high, clip=clip, loras="\n".join(lines), method=TIES)[1]
    assert_close(weights_of(None, found["clip"]), weights_of(None, whole), "te:0 of one")
    found, told = both(text, "sd15", LINEAR, clip=None)
    assert found["clip"] is None and told.count("CLIP is not connected") == 1, told


@check
def a_list_for_one_model_leaves_the_other():
    """It passes through as it came, with an empty LORA_MODEL and no hook; so it does without any LoRA."""
    high, low, _ = pair()
    style, style_low, char, *_ = files()
    found, told = both(f"<lora:{style_low}:1>\n<lora:{char}:1:on=low>")
    assert found["model"] is high and found["lora"].merged is None and not found["hooks"].hooks
    assert told.splitlines()[0] == "high-noise model: no LoRA", told
    wanted = alone(low, f"<lora:{style_low}:1>\n<lora:{char}:1>")
    assert_close(patched(found["model_low"]), wanted, "low")
    found, told = both(f"<lora:{style}:1>")
    assert found["model_low"] is low and found["lora_low"].merged is None and not found["hooks_low"].hooks
    assert told.splitlines()[1] == "low-noise model: no LoRA", told
    assert_close(patched(found["model"]), alone(high, f"<lora:{style}:1>"), "high")
    for text, inputs in (("", {}), (f"# <lora:{style}:1>", {}), (f"<lora:{style}:1>", {"strength": 0.0})):
        found, told = both(text, **inputs)
        assert found["model"] is high and found["model_low"] is low and "No LoRA is on" in told, told
        assert found["lora"].merged is None and found["lora_low"].merged is None


@check
def one_model_alone_is_as_before():
    """Names decide nothing, on=high changes nothing, and on=low is refused; no second output."""
    high, *_ = pair()
    style, style_low, char, *_ = files()
    plain = f"<lora:{style_low}:0.7>\n<lora:{char}:0.5>"
    wanted = run("LoraAlloyLoader", model=high, loras=plain, method=TIES)
    assert len(patched(wanted[0])) > 1
    assert wanted[6] is None and wanted[7].merged is None and not wanted[8].hooks
    for more in (":on=high", ":on=both"):
        assert_close(alone(high, plain.replace(">", f"{more}>")), patched(wanted[0]), more)
    stack = run("LoraAlloyStack", loras=f"<lora:{char}:0.5:on=low>")[0]
    loader = {"model": high, "loras": "", "method": TIES}
    for node, given in (("LoraAlloyLoader", loader), ("LoraAlloyMerge", {"model": high})):
        with refused("wan_char is for the low-noise model (on=low): connect model_low"):
            run(node, stack=stack, **given)
    told = run(
        "LoraAlloyMerge", stack=run("LoraAlloyStack", loras=f"<lora:{style}:1>\n<lora:{style_low}:1>")[0]
    )
    assert "merge the LoRAs of each on their own" in told[1], told[1]


@check
def wrong_models_are_named():
    """A low-noise model of another architecture, one that no LoRA is for, and one model at both inputs."""
    high, low, _ = pair()
    style, style_low, char, *_ = files()
    flux, _ = load_model("flux")
    with refused("low-noise model (model_low): wan_char does not fit this model", "looks like a Wan LoRA"):
        both(f"<lora:{style}:1>\n<lora:{char}:1>", model_low=flux)
    with refused("high-noise model (model): wan_char does not fit this model"):
        both(f"<lora:{char}:1>", model=flux)
    found, _ = both(f"<lora:{style}:1>", model_low=flux)
    assert found["model_low"] is flux
    text = f"<lora:{style}:0.8>\n<lora:{style_low}:-0.7>\n<lora:{char}:0.5>"
    found, _ = both(text, model_low=high)
    lines = text.splitlines()
    assert_close(patched(found["model"]), alone(high, "\n".join(lines[::2])), "high")
    assert_close(patched(found["model_low"]), alone(high, "\n".join(lines[1:])), "low")
    assert low is low_of("wan") and not high.patches and not low.patches


@check
def a_sweep_varies_one_lora_of_the_list():
    """By its place in the whole list, or by its name; the other model stays."""
    high, low, _ = pair()
    style, style_low, char, *_ = files()
    text = f"<lora:{style}:0.8>\n<lora:{style_low}:0.7>\n<lora:{char}:0.5>"
    for parameter in ("strength 2", "strength wan_style_low_noise"):
        choice = run("LoraAlloySweep", parameter=parameter, values="0.25")[0][0]
        found, told = both(text, sweep=choice)
        assert_close(patched(found["model"]), alone(high, f"<lora:{style}:0.8>\n<lora:{char}:0.5>"), "high")
        wanted = alone(low, f"<lora:{style_low}:0.25>\n<lora:{char}:0.5>")
        assert_close(patched(found["model_low"]), wanted, "low")
    choice = run("LoraAlloySweep", parameter="strength 2", values="0")[0][0]
    found, told = both(f"<lora:{style}:0.8>\n<lora:{style_low}:0.7>", sweep=choice)
    assert found["model_low"] is low and "low-noise model: no LoRA" in told, told
