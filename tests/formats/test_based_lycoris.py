"""Adapters that depend on the base weight: stock LyCORIS makes the files and says what it applies."""

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from merge_ops import IncompatibleLoraError
from merge_ops.merging import merge

pytest.importorskip("lycoris")

from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule

from tests.laws import WITHOUT_RECORDING

LINEAR = torch.nn.Linear(48, 64, bias=False)
CONV = torch.nn.Conv2d(24, 32, 3, bias=False)
SQUARE = torch.nn.Linear(48, 48, bias=False)
NAMES = {
    LINEAR: "unet.mid_block.attentions.0.proj_in",
    CONV: "unet.mid_block.resnets.0.conv1",
    SQUARE: "unet.conv_in",
}
STEMS = {base: f"lora_{name.replace('.', '_')}" for base, name in NAMES.items()}
DORA = {"weight_decompose": True, "lora_dim": 4, "alpha": 2.0}
KINDS = {
    "dora linear": (LoConModule, LINEAR, DORA),
    "dora linear, by inputs": (LoConModule, LINEAR, DORA | {"wd_on_out": False}),
    "dora square": (LoConModule, SQUARE, DORA),
    "dora square, by inputs": (LoConModule, SQUARE, DORA | {"wd_on_out": False}),
    "dora conv": (LoConModule, CONV, DORA),
    "dora conv, by inputs": (LoConModule, CONV, DORA | {"wd_on_out": False}),
    "dora on loha": (LohaModule, LINEAR, DORA),
    "dora on lokr": (LokrModule, LINEAR, DORA | {"factor": 4}),
    "dora on lokr conv": (LokrModule, CONV, DORA | {"factor": 4}),
    "glora linear": (GLoRAModule, LINEAR, {"lora_dim": 4, "alpha": 2.0}),
    "glora square": (GLoRAModule, SQUARE, {"lora_dim": 4, "alpha": 2.0}),
    "glora conv": (GLoRAModule, CONV, {"lora_dim": 4, "alpha": 2.0}),
    "glora conv, Tucker": (GLoRAModule, CONV, {"lora_dim": 4, "alpha": 2.0, "use_tucker": True}),
    "oft linear": (DiagOFTModule, LINEAR, {"lora_dim": 8}),
    "oft conv": (DiagOFTModule, CONV, {"lora_dim": 8}),
    "oft, bounded": (DiagOFTModule, LINEAR, {"lora_dim": 8, "constraint": 0.01}),
    "oft, rescaled": (DiagOFTModule, LINEAR, {"lora_dim": 8, "rescaled": True}),
    "oft conv, rescaled": (DiagOFTModule, CONV, {"lora_dim": 8, "rescaled": True}),
    "boft linear": (ButterflyOFTModule, LINEAR, {"lora_dim": 4}),
    "boft conv": (ButterflyOFTModule, CONV, {"lora_dim": 4}),
    "boft, bounded and rescaled": (
        ButterflyOFTModule,
        LINEAR,
        {"lora_dim": 4, "constraint": 0.02, "rescaled": True},
    ),
    "(ia)3 linear": (IA3Module, LINEAR, {}),
    "(ia)3 linear, on inputs": (IA3Module, LINEAR, {"train_on_input": True}),
    "(ia)3 conv": (IA3Module, CONV, {}),
    "(ia)3 conv, on inputs": (IA3Module, CONV, {"train_on_input": True}),
}  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """``(path, name, base weight, delta)`` of a module of LyCORIS with seeded random weights."""

    def make(kind, seed=0):
        cls, base, options = KINDS[kind]
        module = cls("m", base, **options)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + noise if name in ("dora_scale", "rescale") else noise)
        x = torch.eye(base.weight[0].numel()).reshape(-1, *base.weight.shape[1:])
        with torch.no_grad():  # the columns of a weight are what it makes of unit inputs
            delta = (module.eval()(x) - base(x)).flatten(1).T.reshape(base.weight.shape)
        tensors = {f"{STEMS[base]}.{key}": t.contiguous() for key, t in module.state_dict().items()}
        path = tmp_path / f"{''.join(c for c in kind if c.isalnum())}{seed}.safetensors"
        save_file(tensors, path)
        return path, NAMES[base], base.weight.detach(), delta

    return make


def close(found, wanted, tolerance=3e-5):
    return float((found - wanted).norm()) <= tolerance * float(wanted.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_the_delta_is_what_lycoris_applies(kind, made):
    path, name, weight, wanted = made(kind)
    lora = merge_ops.load(path)
    assert set(lora.base_dependent) == {name} and not lora.layers and not lora.unmerged
    merged = merge([lora], [0.5], base={name: weight}.get)
    assert merged.delta(name).shape == weight.shape
    assert close(merged.delta(name), 0.5 * wanted)


@pytest.mark.parametrize("kind", ["dora conv", "glora linear", "oft conv", "boft linear", "(ia)3 linear"])
@pytest.mark.parametrize("method", WITHOUT_RECORDING)
def test_every_method_merges_them(kind, method, made, tmp_path):
    """As the full differences that they are beside that base; saved and read back too."""
    (path, name, weight, first), (other, *_, second) = made(kind), made(kind, 1)
    loras = [merge_ops.load(path), merge_ops.load(other)]
    density = {p.name: 0.4 for p in merge_ops.METHODS[method].params if p.name == "density"}
    merged = merge(loras, [0.7, -0.4], method, base={name: weight}.get, **density)
    save_file({f"{name}.diff": first.contiguous()}, tmp_path / "a.safetensors")
    save_file({f"{name}.diff": second.contiguous()}, tmp_path / "b.safetensors")
    full = [merge_ops.load(tmp_path / f"{stem}.safetensors") for stem in "ab"]
    if "generator" not in merge_ops.METHODS[method].supplied:  # masks follow the adapter, here two kinds
        assert close(merged.delta(name), merge(full, [0.7, -0.4], method, **density).delta(name))
    report = merge_ops.save(merged, tmp_path / "saved.safetensors", dtype=torch.float32)
    saved = merge_ops.load(tmp_path / "saved.safetensors").layers[name].delta()
    error = float((saved.reshape(weight.shape) - merged.delta(name)).norm() / merged.delta(name).norm())
    assert error == pytest.approx(report.total_error, abs=1e-5)


def test_comfyui_measures_a_dora_without_its_lora(made):
    """The norm of the weight alone, where the magnitudes are those of outputs."""
    path, name, weight, wanted = made("dora linear")
    lora = merge_ops.load(path)
    found = merge([lora], base={name: weight}.get, reader="comfyui").delta(name)
    dora = lora.base_dependent[name]
    changed = weight + dora.delta.delta()
    by_hand = dora.magnitude * changed / weight.norm(dim=1, keepdim=True) - weight
    assert close(found, by_hand)
    assert not close(found, wanted, 1e-3)


def test_without_the_base_it_is_refused(made):
    """With the reason, the layer, and what to give."""
    path, name, *_ = made("dora linear")
    with pytest.raises(IncompatibleLoraError, match=rf"1 layers of DoRA, such as {name}.*base="):
        merge([merge_ops.load(path)])


@pytest.mark.parametrize("kind", KINDS)
def test_another_base_is_refused(kind, made):
    path, name, weight, _ = made(kind)
    strange = torch.ones(5, 7, *weight.shape[2:])
    with pytest.raises(IncompatibleLoraError, match="another model"):
        merge([merge_ops.load(path)], base={name: strange}.get).delta(name)


@pytest.mark.parametrize("form", ["file", "folder", "pipeline", "ldm"])
def test_the_base_as_files(form, made, tmp_path):
    """A file, a model's folder, a pipeline's, and a checkpoint with the names of LDM."""
    path, name, weight, wanted = made("dora conv")
    folder = tmp_path / "base"
    file = {
        "file": folder / "x.safetensors",
        "folder": folder / "diffusion_pytorch_model.safetensors",
        "pipeline": folder / "unet" / "diffusion_pytorch_model.safetensors",
        "ldm": folder / "sd.safetensors",
    }[form]
    key = {"ldm": "model.diffusion_model.middle_block.0.in_layers.2"}.get(form, name.removeprefix("unet."))
    file.parent.mkdir(parents=True)
    save_file({f"{key}.weight": weight.clone(), f"{key}.bias": torch.zeros(3)}, file)
    base = file if form in ("file", "ldm") else folder
    assert close(merge([merge_ops.load(path)], base=base).delta(name), wanted)


def test_a_base_without_the_weight(made, tmp_path):
    save_file({"mid_block.other.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(IncompatibleLoraError, match=r"no weight for unet\.mid_block\.resnets\.0\.conv1"):
        merge([merge_ops.load(made("dora conv")[0])], base=tmp_path / "x.safetensors")
    with pytest.raises(merge_ops.LoraFormatError, match=r"no \.safetensors file"):
        merge([merge_ops.load(made("dora conv")[0])], base=tmp_path / "nothing")
