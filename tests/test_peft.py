"""PEFT 0.21.2's own ``add_weighted_adapter`` is the oracle for all eleven ``combination_type`` names."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

peft = pytest.importorskip("peft", minversion="0.21.2")
pytest.importorskip("transformers")
from peft import LoraConfig, get_peft_model  # noqa: E402
from peft.utils import merge_utils  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

from merge_ops import COMBINATION_TYPES, load  # noqa: E402
from merge_ops.merging import merge  # noqa: E402
from merge_ops.merging.fingerprint import fingerprint  # noqa: E402
from merge_ops.merging.svd import svd_of_product  # noqa: E402
from merge_ops.methods.masks import MaskGenerator, mask_key  # noqa: E402

FACTOR_TYPES = ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
SVD_TYPES = ["svd", *(f"{name}_svd" for name in FACTOR_TYPES[1:])]
STACKS = [(("one", "two"), (0.7, -0.4)), (("one", "two", "three"), (0.7, -0.4, 1.3))]


class Plain(nn.Module):
    """Linear, convolution (1x1 and 3x3) and embedding; ``fc2`` is large enough for the iterative SVD."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(40, 24)
        self.conv3 = nn.Conv2d(6, 10, 3)
        self.conv1 = nn.Conv2d(10, 8, 1)
        self.fc1 = nn.Linear(32, 48)
        self.fc2 = nn.Linear(128, 96)


class Transposed(nn.Module):
    """GPT-2's kind of layers, whose weight is stored as ``(in, out)``."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(30, 20)
        self.c_attn = Conv1D(54, 18)
        self.c_proj = Conv1D(18, 36)


PLAIN = ["emb", "conv3", "conv1", "fc1", "fc2"]
CONFIGS = {  # "two" misses a layer; the others have an alpha pattern or rank-stabilised scaling
    Plain: {
        "one": {"lora_alpha": 8, "target_modules": PLAIN, "alpha_pattern": {"fc2": 2, "conv3": 12}},
        "two": {"lora_alpha": 4, "target_modules": [n for n in PLAIN if n != "conv1"]},
        "three": {"lora_alpha": 3, "target_modules": PLAIN, "alpha_pattern": {"emb": 1}, "use_rslora": True},
    },
    Transposed: {
        "one": {
            "lora_alpha": 8,
            "target_modules": ["wte", "c_attn", "c_proj"],
            "alpha_pattern": {"c_attn": 2},
        },
        "two": {"lora_alpha": 4, "target_modules": ["wte", "c_attn"]},
        "three": {"lora_alpha": 3, "target_modules": ["c_attn", "c_proj"]},
    },
}


def build(net, folder):
    """A PEFT model with the adapters of ``CONFIGS``, random in both factors, and their folders read back."""
    torch.manual_seed(0)
    configs = {
        name: LoraConfig(r=4, fan_in_fan_out=net is Transposed, **own) for name, own in CONFIGS[net].items()
    }
    model = get_peft_model(net(), configs["one"], adapter_name="one")
    model.add_adapter("two", configs["two"])
    model.add_adapter("three", configs["three"])
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.normal_()
    model.save_pretrained(folder)
    return model, {name: load(folder / name) for name in configs}


@pytest.fixture(scope="module", params=[Plain, Transposed], ids=["plain", "transposed"])
def zoo(request, tmp_path_factory):
    return build(request.param, tmp_path_factory.mktemp(request.param.__name__))


def layer_of(model, name):
    return model.base_model.model.get_submodule(name)


def oracle(model, adapters, weights, combination_type, **more):
    """Deltas by PEFT of every layer that one of the adapters has."""
    if combination_type.endswith("svd"):
        more["svd_full_matrices"] = False  # spares PEFT a basis that it does not use
    model.add_weighted_adapter(list(adapters), list(weights), "merged", combination_type, **more)
    try:
        names = {n for a in adapters for n in CONFIGS[type(model.base_model.model)][a]["target_modules"]}
        return {n: layer_of(model, n).get_delta_weight("merged").detach() for n in sorted(names)}
    finally:
        model.delete_adapter("merged")


def ours(zoo, adapters, weights, combination_type, **more):
    return merge([zoo[1][a] for a in adapters], weights, combination_type=combination_type, **more)


def relative(found, wanted):
    return float(
        torch.linalg.vector_norm(found.double() - wanted.double()) / torch.linalg.vector_norm(wanted)
    )


def method_of(combination_type):
    """PEFT's name of what is done before the SVD."""
    return {"svd": "linear", "cat": "linear"}.get(combination_type, combination_type.removesuffix("_svd"))


def settings(combination_type):
    """Both densities and both votes, where a type has them."""
    method = method_of(combination_type)
    densities = [{}] if method == "linear" else [{"density": 0.3}, {"density": 0.5}]
    votes = [{"majority_sign_method": v} for v in ("total", "frequency")] if "ties" in method else [{}]
    return [{**d, **v} for d, v in itertools.product(densities, votes)]


def inject_our_masks(monkeypatch, zoo, seed):
    """Make PEFT draw our masks: it is told by its values which LoRA, layer and part a tensor is."""
    model, loras = zoo
    masks = {}
    for adapter, lora in loras.items():
        who = f"{fingerprint(lora)}.0"
        for name, layer in lora.layers.items():
            target = layer_of(model, name)
            if layer.layout == "embedding":
                down, up = target.lora_embedding_A[adapter], target.lora_embedding_B[adapter]
            else:
                down, up = target.lora_A[adapter].weight, target.lora_B[adapter].weight
            delta = target.get_delta_weight(adapter)
            rows, columns = layer.matrix_shape
            shapes = {"up": (rows, layer.rank), "down": (layer.rank, columns), "delta": (rows, columns)}
            for part, tensor in (("up", up), ("down", down), ("delta", delta)):
                masks[tensor.detach().numpy().tobytes()] = (
                    layer,
                    part,
                    mask_key(seed, name, who, part),
                    shapes[part],
                )

    def random_pruning(tensor, density, rescale):
        layer, part, key, shape = masks[tensor.detach().numpy().tobytes()]
        mask = MaskGenerator([key]).masks(torch.empty(1, *shape), density)[0].bool()
        mask = layer.as_weight(mask) if part == "delta" else mask.reshape(tensor.shape)
        assert rescale
        return tensor * mask / density

    monkeypatch.setattr(merge_utils, "random_pruning", random_pruning)


def test_all_names_of_peft_are_known():
    assert set(COMBINATION_TYPES) == {"cat", *FACTOR_TYPES, *SVD_TYPES}


def test_the_folders_are_read_as_peft_means_them(zoo):
    """The premise of all that follows: one adapter's delta is PEFT's delta, in the weight's shape."""
    model, loras = zoo
    for adapter, lora in loras.items():
        assert set(lora.layers) == set(CONFIGS[type(model.base_model.model)][adapter]["target_modules"])
        for name, layer in lora.layers.items():
            wanted = layer_of(model, name).get_delta_weight(adapter).detach()
            assert layer.delta().shape == wanted.shape == layer_of(model, name).weight.shape
            assert relative(layer.delta(), wanted) < 1e-6


@pytest.mark.parametrize(("adapters", "weights"), STACKS, ids=["two", "three"])
@pytest.mark.parametrize("combination_type", ["cat", *FACTOR_TYPES])
def test_exact_and_factor_types_agree(zoo, adapters, weights, combination_type, monkeypatch):
    inject_our_masks(monkeypatch, zoo, seed=5)
    for more in settings(combination_type):
        wanted = oracle(zoo[0], adapters, weights, combination_type, **more)
        merged = ours(zoo, adapters, weights, combination_type, seed=5, **more)
        assert set(merged.layers) == set(wanted)
        for name, delta in wanted.items():
            assert merged.delta(name).shape == delta.shape
            assert relative(merged.delta(name), delta) < 1e-5, (name, more)


def true_merge(model, name, adapters, weights, method, **more):
    """PEFT's elementwise merge of the true deltas, in float32 as PEFT has it, before any SVD."""
    target = layer_of(model, name)
    having = [(a, w) for a, w in zip(adapters, weights, strict=True) if a in target.scaling]
    tensors = [target.get_delta_weight(a).detach() for a, _ in having]
    call = merge_utils.task_arithmetic if method == "linear" else getattr(merge_utils, method)
    return call(tensors, torch.tensor([w for _, w in having]), **more)


@pytest.mark.parametrize("svd_rank", [None, 3])
@pytest.mark.parametrize(("adapters", "weights"), STACKS, ids=["two", "three"])
@pytest.mark.parametrize("combination_type", SVD_TYPES)
def test_svd_types_are_the_best_of_their_rank(
    zoo, adapters, weights, combination_type, svd_rank, monkeypatch
):
    """Within 1 % of the least Frobenius error that any matrix of that rank has, which is PEFT's."""
    inject_our_masks(monkeypatch, zoo, seed=2)
    method = method_of(combination_type)
    for more in settings(combination_type):
        merged = ours(zoo, adapters, weights, combination_type, svd_rank=svd_rank, seed=2, **more)
        theirs = oracle(zoo[0], adapters, weights, combination_type, svd_rank=svd_rank, **more)
        assert set(merged.layers) == set(theirs)
        for name, delta in theirs.items():
            full = true_merge(zoo[0], name, adapters, weights, method, **more).double()
            s = torch.linalg.svdvals(full.flatten(1))
            best, rounding = float(torch.linalg.vector_norm(s[svd_rank or 4 :])), 1e-5 * float(s.norm())
            error = float(torch.linalg.vector_norm(merged.delta(name) - full))
            assert error <= 1.01 * best + rounding, (name, more)
            assert float(torch.linalg.vector_norm(delta - full)) <= best + rounding
            assert merged.layer(name).fixed.rank == (svd_rank or 4)


@pytest.mark.parametrize("combination_type", SVD_TYPES)
def test_svd_types_at_full_rank_are_the_full_merge(zoo, combination_type, monkeypatch):
    """``svd`` needs the sum of the ranks, the others all of it; a rank above min(out, in) is clamped."""
    adapters, weights = STACKS[1]
    inject_our_masks(monkeypatch, zoo, seed=0)
    rank = 12 if combination_type == "svd" else 128
    for more in settings(combination_type):
        merged = ours(zoo, adapters, weights, combination_type, svd_rank=rank, **more)
        for name in merged.layers:
            full = true_merge(zoo[0], name, adapters, weights, method_of(combination_type), **more)
            assert relative(merged.delta(name), full) < 1e-5, (name, more)
            rows, columns = merged.layer(name).template.matrix_shape
            assert merged.factors(name)[0].shape[1] <= min(rows, columns)


@pytest.mark.parametrize("clamp", [0.6, 0.9, 1.0])
def test_svd_clamp_cuts_both_factors_at_one_quantile(zoo, clamp):
    """Signs of singular vectors are arbitrary, and with them the quantile: so numpy on our own SVD."""
    adapters, weights = STACKS[1]
    merged = ours(zoo, adapters, weights, "svd", svd_rank=3, svd_clamp=clamp)
    exact = ours(zoo, adapters, weights, "cat")
    for name in merged.layers:
        found = svd_of_product(*exact.layer(name).factors(), 3)
        up, down = (found.u * found.s).numpy(), found.vh.numpy()
        limit = np.quantile(np.concatenate((up.ravel(), down.ravel())), clamp)
        wanted = np.clip(up, -limit, limit) @ np.clip(down, -limit, limit)
        assert relative(merged.layer(name).matrix(), torch.from_numpy(wanted)) < 1e-5
        assert merged.factors(name)[0].abs().max() <= limit * (1 + 1e-6)
