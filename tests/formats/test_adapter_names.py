"""Keys that name their adapter, as the state dict of a PEFT model has them, in every role that PEFT has."""

import json

import pytest
import torch
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    get_peft_model,
)
from safetensors.torch import save_file

import merge_ops
from merge_ops.adapters import KINDS
from merge_ops.adapters.named import unnamed
from merge_ops.cli import main
from merge_ops.errors import LoraFormatError
from merge_ops.formats import from_tensors

STEM = "transformer.transformer_blocks.0.attn.to_q"
NAMES = ["default", "default_0", "lightx2v", "my_style", "v1.5", "a.weight.b", "0"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(name, seed=0, rank=4):
    return {f"{STEM}.lora_A.{name}.weight": draw(rank, 12, seed=seed),
            f"{STEM}.lora_B.{name}.weight": draw(10, rank, seed=seed + 1)}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_with_any_name_is_read(name, write):
    lora = merge_ops.load(write(pair(name)))
    (layer,) = lora.layers.values()
    torch.testing.assert_close(layer.delta(), draw(10, 4, seed=1) @ draw(4, 12))
    assert not lora.unmerged and lora.dialect == "diffusers"


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.proj = torch.nn.Embedding(9, 8), torch.nn.Linear(8, 6)
        self.head = torch.nn.Sequential(torch.nn.Linear(6, 4))

    def forward(self, tokens):
        return self.head(self.proj(self.embed(tokens)))


LORA = {"r": 2, "lora_alpha": 6, "init_lora_weights": False}
CONFIGS = [
    LoraConfig(**LORA, target_modules=["proj", "embed"]),
    LoraConfig(**LORA, target_modules=["proj"], use_dora=True, lora_bias=False),
    LoraConfig(**LORA, target_modules=["proj"], lora_bias=True),
    LoraConfig(**LORA, target_modules=["proj"], trainable_token_indices={"embed": [1, 3]}),
    LoraConfig(**LORA, target_modules=["proj"], modules_to_save=["head"]),
    AdaLoraConfig(target_modules=["proj"], init_r=3, lora_alpha=6, total_step=9, init_lora_weights=False),
    LoHaConfig(r=2, alpha=6, target_modules=["proj"], init_weights=False),
    LoKrConfig(r=2, alpha=6, target_modules=["proj"], init_weights=False, decompose_factor=2),
    IA3Config(target_modules=["proj"], feedforward_modules=[], init_ia3_weights=False),
    OFTConfig(target_modules=["proj"], oft_block_size=4, init_weights=False),
    BOFTConfig(target_modules=["proj"], boft_block_size=2, init_weights=False),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_every_role_of_peft(config, tmp_path):
    """The state dict of the model itself, whose keys have the name, reads as the folder that PEFT saves."""
    torch.manual_seed(0)
    model = get_peft_model(Tiny(), config, adapter_name="my_style")
    model.save_pretrained(tmp_path)
    folder = tmp_path / "my_style"
    saved = merge_ops.load(folder)
    named = {
        key: value.contiguous()
        for key, value in model.state_dict().items()
        if ("my_style" in key or "original_module" in key) and "ranknum" not in key
    }
    assert named and {unnamed(key)[1] for key in named if "original" not in key} == {"my_style"}
    save_file(named, folder / "adapter_model.safetensors")
    again = merge_ops.load(folder)
    for held, same in (
        (saved.layers, again.layers),
        (saved.base_dependent, again.base_dependent),
    ):
        assert held.keys() == same.keys()
        for name, part in held.items():
            assert all(map(torch.equal, part.tensors, same[name].tensors))
    assert saved.whole_weights.keys() == again.whole_weights.keys()
    assert all(torch.equal(w.value, again.whole_weights[n].value) for n, w in saved.whole_weights.items())
    assert saved.layers or saved.base_dependent


def test_every_role_of_the_rows_has_a_name():
    """A new role of PEFT needs its twin with ``.default``."""
    roles = {suffix.split(".")[1] for kind in KINDS for suffix in kind.roles if suffix.startswith(".")}
    peft = {role for role in roles if role.startswith(("lora_A", "lora_B", "lora_E", "lora_emb", "lora_mag"))}
    peft |= {role for role in roles if role.startswith(("hada_", "lokr_", "ia3_l", "oft_R", "boft_"))}
    assert all(unnamed(f"x.{role}.name.weight")[1] or unnamed(f"x.{role}.name")[1] for role in peft)
    assert len(peft) > 20


@pytest.mark.parametrize(
    "key",
    [f"{STEM}.lora_A.weight", f"{STEM}.lora_B.bias", f"{STEM}.lora_A", "lora_unet_x.lokr_w1", "x.alpha",
     f"{STEM}.lora_magnitude_vector.weight", f"{STEM}.lora_embedding_A", "x.lora_down.weight", "x.weight"],
)  # fmt: skip
def test_keys_without_a_name(key):
    assert unnamed(key) == (key, "")


def test_two_names_are_refused_with_both(write):
    path = write(pair("lightx2v") | pair("my_style", 5))
    with pytest.raises(LoraFormatError, match=r"^some\.safetensors: .*'lightx2v' and 'my_style'.*adapter="):
        merge_ops.load(path)


def test_a_name_and_none_are_two_adapters(write):
    bare = {key.replace(".x.weight", ".weight"): value for key, value in pair("x", 3).items()}
    with pytest.raises(LoraFormatError, match="'my_style' and one without a name"):
        merge_ops.load(write(bare | pair("my_style")))
    with pytest.raises(LoraFormatError, match="two spellings"):
        merge_ops.load(write(bare | pair("default")))


@pytest.mark.parametrize(("name", "seed"), [("lightx2v", 0), ("my_style", 5)])
def test_one_of_several_is_chosen(name, seed, write):
    path = write(pair("lightx2v") | pair("my_style", 5))
    lora = merge_ops.load(path, adapter=name)
    (layer,) = lora.layers.values()
    torch.testing.assert_close(layer.delta(), draw(10, 4, seed=seed + 1) @ draw(4, 12, seed=seed))
    assert lora.adapter == name


def test_a_name_that_is_not_there(write):
    with pytest.raises(LoraFormatError, match=r"^some\.safetensors: .*did you mean 'my_style'"):
        merge_ops.load(write(pair("my_style") | pair("other")), adapter="my_stile")
    with pytest.raises(LoraFormatError, match="name no adapter"):
        from_tensors("x", {f"{STEM}.diff": draw(4, 4)}, adapter="my_style")


def test_the_command_line_and_recipes_choose_too(write, tmp_path, capsys):
    source = str(write(pair("lightx2v") | pair("my_style", 5), None, "two.safetensors"))
    both, again = tmp_path / "both.safetensors", tmp_path / "again.safetensors"
    assert main(["inspect", source]) == 1
    assert "--adapter lightx2v" in capsys.readouterr().err
    assert main(["inspect", source, "--adapter", "my_style"]) == 0
    choose = ["--adapter", "1=lightx2v", "--adapter", "2=my_style", "--dtype", "float32"]
    assert main(["merge", source, source, *choose, "-o", str(both)]) == 0
    assert (
        main(["recipe", "run", str(both), "--folder", str(tmp_path), "--dtype", "float32", "-o", str(again)])
        == 0
    )
    recipe = json.loads(merge_ops.load(both).metadata["lora_alloy"])
    assert [entry["adapter"] for entry in recipe["sources"]] == ["lightx2v", "my_style"]
    wanted = sum(draw(10, 4, seed=seed + 1) @ draw(4, 12, seed=seed) for seed in (0, 5))
    for path in (both, again):
        (layer,) = merge_ops.load(path).layers.values()
        torch.testing.assert_close(layer.delta(), wanted, rtol=1e-4, atol=1e-4)
    assert main(["resize", source, "--rank", "2", "--adapter", "three=x", "-o", str(tmp_path / "c")]) == 1
    assert "--adapter names no LoRA" in capsys.readouterr().err


def save_two(tmp_path):
    """PEFT saves an adapter that is not called default in a folder of its own."""
    model = get_peft_model(Tiny(), LoraConfig(**LORA, target_modules=["proj"]), adapter_name="ink")
    model.add_adapter("mia", LoraConfig(**LORA, target_modules=["proj"]))
    model.save_pretrained(tmp_path / "both")
    return {name: model.base_model.model.proj.get_delta_weight(name).detach() for name in ("ink", "mia")}


def test_folders_of_several_adapters(tmp_path):
    wanted = save_two(tmp_path)
    with pytest.raises(LoraFormatError, match=r"^both: .*'ink', 'mia'.*adapter='ink'"):
        merge_ops.load(tmp_path / "both")
    for name, delta in wanted.items():
        lora = merge_ops.load(tmp_path / "both", adapter=name)
        (layer,) = lora.layers.values()
        torch.testing.assert_close(layer.delta(), delta)
        assert lora.name == name
    merged = merge_ops.merge([merge_ops.load(tmp_path / "both", adapter=name) for name in wanted])
    merge_ops.save(merged, tmp_path / "sum", format="peft", dtype=torch.float32)
    recipe = merge_ops.read_recipe(tmp_path / "sum")
    again = recipe.run(merge_ops.find_sources(recipe, [tmp_path / "both"]))
    (name,) = again.layers
    torch.testing.assert_close(again.delta(name), sum(wanted.values()))
    with pytest.raises(LoraFormatError, match="name no adapter"):
        merge_ops.load(tmp_path / "both" / "ink", adapter="nia")


def test_a_folder_with_one_adapter_inside(tmp_path):
    get_peft_model(Tiny(), LoraConfig(**LORA, target_modules=["proj"]), adapter_name="ink").save_pretrained(
        tmp_path
    )
    assert merge_ops.load(tmp_path).name == "ink"


def adalora(tmp_path, pattern, alpha=6):
    """An AdaLoRA of real PEFT, and the deltas that PEFT computes after it has loaded it again."""
    torch.manual_seed(0)
    config = AdaLoraConfig(
        target_modules=["proj"], init_r=4, lora_alpha=alpha, total_step=9, rank_pattern=pattern,
        init_lora_weights=False,
    )  # fmt: skip
    model = get_peft_model(Tiny(), config)
    model.save_pretrained(tmp_path / "ada")
    loaded = PeftModel.from_pretrained(Tiny(), tmp_path / "ada")
    return loaded.base_model.model.proj.get_delta_weight("default").detach()


@pytest.mark.parametrize("pattern", [None, {"proj.lora_E": [True, False, True, False]}])
@pytest.mark.parametrize("alpha", [6, 4])
def test_adalora_against_peft(pattern, alpha, tmp_path):
    """Its E scales the rows, and alpha is over the rank that training began with."""
    wanted = adalora(tmp_path, pattern, alpha)
    lora = merge_ops.load(tmp_path / "ada")
    (layer,) = lora.layers.values()
    torch.testing.assert_close(layer.delta(), wanted)
    assert layer.rank == (4 if pattern is None else 2)
    assert lora.warnings == ()
    merge_ops.save(merge_ops.merge([lora]), tmp_path / "out", format="peft", dtype=torch.float32)
    plain = PeftModel.from_pretrained(Tiny(), tmp_path / "out")
    again = plain.base_model.model.proj.get_delta_weight("default").detach()
    torch.testing.assert_close(again, wanted, rtol=1e-4, atol=1e-4)


def test_adalora_without_its_configuration_has_no_scale(tmp_path):
    adalora(tmp_path, None)
    (tmp_path / "ada" / "adapter_config.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(
        LoraFormatError, match=r"^adapter_model\.safetensors: .*AdaLoRA.*adapter_config\.json"
    ):
        merge_ops.load(tmp_path / "ada" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "change",
    [{"init_r": "4"}, {"init_r": 0}, {"rank_pattern": {"proj.lora_E": 3}}, {"rank_pattern": [1]}],
)
def test_a_damaged_configuration_of_adalora(change, tmp_path):
    adalora(tmp_path, None)
    path = tmp_path / "ada" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LoraFormatError, match=r"^ada/adapter_config\.json: "):
        merge_ops.load(tmp_path / "ada")
