"""A merge in a diffusers pipeline against stock diffusers: the same weights, and the same pictures."""

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import merge_ops
from merge_ops.models.diffusers import patched
from tests.laws import merge

UNET_TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def write_lora(pipe, folder, name, rank, alpha, seed):
    """A LoRA on every model of the pipeline, made by PEFT with random factors, written by stock diffusers."""
    torch.manual_seed(seed)
    saved = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        model = getattr(pipe, part, None)
        if model is None:
            continue
        targets = UNET_TARGETS if part == "unet" else TEXT_TARGETS
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
        model.add_adapter(config, adapter_name=name)
        for key, parameter in model.named_parameters():
            if f".{name}." in key:
                parameter.data = torch.randn_like(parameter) * 0.1
        saved[f"{part}_lora_layers"] = get_peft_model_state_dict(model, adapter_name=name)
        saved[f"{part}_lora_adapter_metadata"] = model.peft_config[name].to_dict()
        if part == "unet":
            model.delete_adapters(name)
        else:
            model.delete_adapter(name)
    for key in [k for k in saved if k.endswith("metadata")]:
        saved[key] = {k: sorted(v) if isinstance(v, set) else v for k, v in saved[key].items()}
    pipe.save_lora_weights(folder, weight_name=f"{name}.safetensors", **saved)
    return folder / f"{name}.safetensors"


def draw(pipe, prompt="a b c"):
    """A picture (16, 16, 3) in [0, 1], always from the same noise."""
    generator = torch.Generator().manual_seed(3)
    size = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "pt"}
    return pipe(prompt, generator=generator, guidance_scale=3.0, **size).images[0]


def weights_of(pipe):
    return {
        f"{part}.{key}": value.clone()
        for part in ("unet", "text_encoder", "text_encoder_2")
        if getattr(pipe, part, None) is not None
        for key, value in getattr(pipe, part).state_dict().items()
    }


def assert_same_weights(pipe, before):
    after = weights_of(pipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.fixture(params=["sd15", "sdxl"])
def pipe(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def files(pipe, tmp_path):
    return [
        write_lora(pipe, tmp_path, "ink", rank=4, alpha=8, seed=1),
        write_lora(pipe, tmp_path, "mia", rank=2, alpha=1, seed=2),
    ]


def test_linear_draws_what_set_adapters_draws(pipe, files):
    """``linear`` equals ``load_lora_weights`` and ``set_adapters`` on the same files, in image space."""
    merged = merge_ops.merge([merge_ops.load(file) for file in files], weights=[0.7, -0.4])
    before = weights_of(pipe)
    plain = draw(pipe)
    with patched(pipe, merged) as patch:
        ours = draw(pipe)
        assert patch.unmatched == ()
    assert_same_weights(pipe, before)
    assert torch.equal(draw(pipe), plain)
    for file in files:
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=file.stem)
    pipe.set_adapters(["ink", "mia"], [0.7, -0.4])
    stock = draw(pipe)
    assert (ours - plain).abs().max() > 0.02, "the LoRAs must be seen in the picture"
    assert (ours - stock).abs().max() < 1e-4


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_saved_merge_draws_the_same_in_stock_diffusers(pipe, files, tmp_path, form):
    """What we save, stock diffusers loads at strength 1, for UNet, convolutions and text encoders."""
    merged = merge_ops.merge([merge_ops.load(file) for file in files], weights=[0.7, 0.6])
    merge_ops.save(merged, tmp_path / "merged.safetensors", format=form, dtype=torch.float32)
    with patched(pipe, merged):
        ours = draw(pipe)
    pipe.load_lora_weights(tmp_path, weight_name="merged.safetensors")
    assert (ours - draw(pipe)).abs().max() < 1e-4


def test_switching_methods_needs_no_files(pipe, files):
    """Each method draws its own picture, in any order, and the weights come back bit for bit."""
    loras = [merge_ops.load(file) for file in files]
    for file in files:
        file.unlink()
    merges = {name: merge(loras, method=name) for name in merge_ops.METHODS}
    before = weights_of(pipe)
    with patched(pipe, merges["linear"]) as patch:
        pictures = {"linear": draw(pipe)}
        for name in [name for name in merges if name != "linear"]:
            patch.replace(merges[name])
            pictures[name] = draw(pipe)
        patch.replace(merges["linear"])
        assert torch.equal(draw(pipe), pictures["linear"])
    assert_same_weights(pipe, before)
    assert len({picture.sum().item() for picture in pictures.values()}) == len(merges)


@pytest.mark.parametrize("method", sorted(merge_ops.METHODS))
def test_the_weight_gets_exactly_the_delta(sd15, tmp_path, method):
    """Weight after = weight before + strength * delta, for one model given instead of the pipeline."""
    lora = merge_ops.load(write_lora(sd15, tmp_path, "a", 4, 4, seed=5))
    merged = merge([lora, lora], [0.5, 0.25], method)
    modules = dict(sd15.unet.named_modules())
    before = {name: module.weight.clone() for name, module in modules.items() if hasattr(module, "weight")}
    with patched(sd15.unet, merged, strength=0.5) as patch:
        assert all(name.startswith("text_encoder.") for name in patch.unmatched)
        for name in patch.matched:
            path = name.removeprefix("unet.")
            expected = before[path] + 0.5 * merged.delta(name)
            assert torch.allclose(modules[path].weight, expected, atol=1e-7, rtol=1e-6), name


def test_half_precision_is_restored_bit_for_bit(sd15, tmp_path):
    """Adding and subtracting would not bring fp16 weights back; the kept originals do."""
    lora = merge_ops.load(write_lora(sd15, tmp_path, "a", 4, 4, seed=5))
    sd15.unet.half()
    before = weights_of(sd15)
    projection = sd15.unet.down_blocks[0].attentions[0].proj_in
    plain = projection.weight.clone()
    patch = patched(sd15, merge_ops.merge([lora]))
    assert not torch.equal(projection.weight, plain)
    patch.restore()
    patch.restore()
    assert_same_weights(sd15, before)


def test_another_base_model_is_refused_and_nothing_changes(sd15, sdxl, tmp_path):
    """A LoRA for SDXL on SD1.5: one sentence, and the weights as they were."""
    lora = merge_ops.load(write_lora(sdxl, tmp_path, "xl", 2, 2, seed=5))
    before = weights_of(sd15)
    with pytest.raises(merge_ops.IncompatibleLoraError, match="for another base model"):
        patched(sd15, merge_ops.merge([lora]))
    assert_same_weights(sd15, before)
    other = merge_ops.Lora("other", {"transformer.blocks.0.to_q": lora.layers[next(iter(lora.layers))]})
    with pytest.raises(merge_ops.IncompatibleLoraError, match="none of the 1 merged layers"):
        patched(sd15, merge_ops.merge([other]))


def test_an_error_half_way_restores(sd15, tmp_path, monkeypatch):
    """If the tenth layer fails, the nine before it are put back."""
    lora = merge_ops.load(write_lora(sd15, tmp_path, "a", 4, 4, seed=5))
    merged = merge_ops.merge([lora])
    before = weights_of(sd15)
    made = []

    def failing(name, **options):
        made.append(name)
        if len(made) == 10:
            raise KeyboardInterrupt
        return original(name, **options)

    original = merged.delta
    monkeypatch.setattr(merged, "delta", failing)
    with pytest.raises(KeyboardInterrupt):
        patched(sd15, merged)
    assert_same_weights(sd15, before)
