"""Every kind of adapter of stock PEFT, read from its folder beside the base model: what PEFT applies."""

import copy

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops import IncompatibleLoraError, ParameterError
from merge_ops.merging import merge
from merge_ops.models.diffusers import patched

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from transformers.pytorch_utils import Conv1D  # noqa: E402


class Net(torch.nn.Module):
    """One layer of each type that PEFT adapts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(30, 16)
        self.first = torch.nn.Linear(16, 32)
        self.square = torch.nn.Linear(32, 32, bias=False)
        self.turned = Conv1D(24, 32)
        self.conv = torch.nn.Conv2d(24, 8, 3, padding=1)
        self.norm = torch.nn.LayerNorm(8)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, tokens):
        x = self.turned(self.square(self.first(self.words(tokens))).relu())
        x = self.conv(x.transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)
        return self.head(self.norm(x))


PLAIN = ["first", "square", "conv"]
CONFIGS = {
    "dora": ("LoraConfig", {"use_dora": True, "target_modules": PLAIN}),
    "dora, embedding": ("LoraConfig", {"use_dora": True, "target_modules": ["words", "first"]}),
    "dora, Conv1D": (
        "LoraConfig",
        {"use_dora": True, "target_modules": ["turned"], "fan_in_fan_out": True},
    ),
    "rank-stabilised dora": (
        "LoraConfig",
        {"use_dora": True, "target_modules": PLAIN, "use_rslora": True, "alpha_pattern": {"conv": 3}},
    ),
    "bias of the LoRA": ("LoraConfig", {"lora_bias": True, "target_modules": ["first", "conv"]}),
    "trained biases": ("LoraConfig", {"bias": "all", "target_modules": ["first"]}),
    "biases of LoRA layers": ("LoraConfig", {"bias": "lora_only", "target_modules": ["first", "conv"]}),
    "loha": ("LoHaConfig", {"alpha": 3, "target_modules": PLAIN}),
    "loha, effective": (
        "LoHaConfig",
        {"alpha": 3, "target_modules": PLAIN, "use_effective_conv2d": True, "alpha_pattern": {"first": 7}},
    ),
    "lokr": ("LoKrConfig", {"alpha": 3, "target_modules": PLAIN, "rank_pattern": {"square": 2}}),
    "lokr, effective": (
        "LoKrConfig",
        {"alpha": 3, "r": 2, "target_modules": PLAIN, "use_effective_conv2d": True, "decompose_both": True},
    ),
    "lokr, full": ("LoKrConfig", {"alpha": 3, "r": 64, "target_modules": PLAIN}),
    "(ia)3": ("IA3Config", {"target_modules": [*PLAIN, "head"], "feedforward_modules": ["square", "head"]}),
    "(ia)3 of a convolution's inputs": (
        "IA3Config",
        {"target_modules": ["conv"], "feedforward_modules": ["conv"]},
    ),
    "(ia)3, Conv1D": (
        "IA3Config",
        {"target_modules": ["turned"], "feedforward_modules": [], "fan_in_fan_out": True},
    ),
    "oft": ("OFTConfig", {"r": 0, "oft_block_size": 4, "target_modules": ["first", "square"]}),
    "oft, exact and shared": (
        "OFTConfig",
        {
            "r": 0, "oft_block_size": 4, "target_modules": ["first", "square"], "use_cayley_neumann": False,
            "block_share": True,
        },
    ),
    "oft, three terms": (
        "OFTConfig",
        {"r": 0, "oft_block_size": 8, "target_modules": ["square"], "num_cayley_neumann_terms": 3},
    ),
    "oft, constrained": (
        "OFTConfig",
        {"r": 0, "oft_block_size": 4, "target_modules": ["square"], "coft": True, "eps": 0.3},
    ),
    "oft, convolution": ("OFTConfig", {"r": 0, "oft_block_size": 4, "target_modules": ["conv"]}),
    "boft": ("BOFTConfig", {"boft_block_size": 4, "target_modules": ["first", "square"]}),
    "boft, convolution": ("BOFTConfig", {"boft_block_size": 4, "target_modules": ["conv"]}),
}  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """``(folder, base model, model with the adapter)``, the adapter's weights random."""

    def make(name, config=None, seed=0):
        cls, options = CONFIGS.get(name, (None, None)) if config is None else config
        size = {} if cls in ("IA3Config", "OFTConfig", "BOFTConfig") else {"r": 4}
        base = Net()
        model = peft.get_peft_model(copy.deepcopy(base), getattr(peft, cls)(**(size | options)))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        folder = tmp_path / f"{name.replace(' ', '-').replace(',', '')}{seed}"
        model.save_pretrained(folder)
        return folder, base, model.eval()

    return make


def close(found, wanted, tolerance=2e-5):
    return float((found - wanted).norm()) <= tolerance * max(1.0, float(wanted.norm()))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_is_as_peft_merges_it(name, made):
    """Weights and biases of the model that PEFT makes by ``merge_and_unload``."""
    folder, base, model = made(name)
    merged_by_peft = dict(model.merge_and_unload().named_parameters())
    lora = merge_ops.load(folder)
    assert not lora.unmerged
    merged = merge([lora], base=base)
    before, changed = dict(base.named_parameters()), set()
    for key, value in merged_by_peft.items():
        layer = key.removesuffix(".weight")
        wanted = value.detach() - before[key].detach()
        if layer in merged.layers:
            assert close(merged.delta(layer), wanted), layer
            changed.add(layer)
        else:
            assert not wanted.any(), key
    assert changed == set(merged.layers)
    assert not merged.whole_weights


@pytest.mark.parametrize("name", ["dora", "trained biases", "bias of the LoRA", "(ia)3", "lokr", "oft"])
def test_the_patched_model_computes_what_peft_does(name, made):
    """The model with our merge on it, against the model with PEFT's adapter, and exact restore."""
    folder, base, model = made(name)
    tokens = torch.arange(20).reshape(2, 10)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    with torch.no_grad():
        wanted = model(tokens)
        with patched(base, merge([merge_ops.load(folder)], base=base)):
            assert close(base(tokens), wanted, 1e-4)
    assert all(torch.equal(before[key], value) for key, value in base.state_dict().items())


@pytest.mark.parametrize("name", ["bias of the LoRA", "trained biases", "loha", "lokr"])
def test_saved_as_a_folder_it_does_the_same_in_stock_peft(name, made, tmp_path):
    folder, base, model = made(name)
    merged = merge([merge_ops.load(folder)], base=None if name == "trained biases" else base)
    merge_ops.save(merged, tmp_path / "saved", rank=32, format="peft", dtype=torch.float32)
    tokens = torch.arange(20).reshape(2, 10)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "saved").eval()
    with torch.no_grad():
        assert close(loaded(tokens), model(tokens), 1e-4)


HEADS = ("LoraConfig", {"target_modules": ["first"], "modules_to_save": ["head"]})


def test_heads_are_passed_or_refused(made, tmp_path):
    """One head is passed on, two equal ones too; different ones are refused until one is named."""
    (one, base, model), (two, *_) = made("one", HEADS), made("two", HEADS, seed=1)
    first, second = merge_ops.load(one), merge_ops.load(two)
    assert set(first.whole_weights) == {"head", "head.bias"}
    merged = merge([first], base=None)
    assert {row.name for row in merged.report.layers if row.status == "passed"} == {"head", "head.bias"}
    merge_ops.save(merged, tmp_path / "saved", format="peft", dtype=torch.float32)
    tokens = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        wanted = model(tokens)
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "saved").eval()
        assert close(loaded(tokens), wanted, 1e-4)
        with patched(base, merged):
            assert close(base(tokens), wanted, 1e-4)
    with pytest.raises(IncompatibleLoraError, match=r"different weights for head.*keep='one0'"):
        merge([first, second])
    kept = merge([first, second], keep="two1")
    assert torch.equal(kept.whole_weights["head"].value, second.whole_weights["head"].value)
    with pytest.raises(ParameterError, match="did you mean 'two1'"):
        merge([first, second], keep="two")


def test_a_head_that_another_adapter_trains_on_is_refused(made):
    """Its LoRA was made for the head of the base model."""
    one, *_ = made("one", HEADS)
    two, *_ = made("two", ("LoraConfig", {"target_modules": ["head"]}))
    loras = [merge_ops.load(one), merge_ops.load(two)]
    with pytest.raises(IncompatibleLoraError, match="keep='one0'"):
        merge(loras)
    assert "head" in merge(loras, keep="one0").layers


def test_several_butterfly_factors_are_refused(tmp_path):
    """PEFT computes them on CUDA only."""
    save_file(
        {
            "base_model.model.q.boft_R": torch.zeros(2, 4, 4, 4),
            "base_model.model.q.boft_s": torch.ones(16, 1),
        },
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "BOFT"}')
    with pytest.raises(merge_ops.LoraFormatError, match="butterfly"):
        merge_ops.load(tmp_path)
