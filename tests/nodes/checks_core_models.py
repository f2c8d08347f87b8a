"""Checks of what ``nodes/model/core.py`` expects of models in ComfyUI, one for each function, by its name.

If one fails after an update of ComfyUI, only the function of that name has to follow.
"""

import ast
from importlib import import_module
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import folder_paths
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.text_encoders import llama
from comfy_inside import check, load_model
from packed_weights import CPU
from safetensors import safe_open

core = import_module("alloy_pack.nodes.model.core")


@check
def core_patcher_of():
    model, clip = load_model("sd15")
    assert core.patcher_of(model) is model and isinstance(model, comfy.model_patcher.ModelPatcher)
    assert isinstance(core.patcher_of(clip), comfy.model_patcher.ModelPatcher)


@check
def core_diffusion_model():
    model, _ = load_model("sd15")
    inside = core.diffusion_model(model)
    assert all(f"diffusion_model.{key}" in model.model.state_dict() for key in inside.state_dict())


@check
def core_load_device():
    model, clip = load_model("sd15")
    assert core.load_device(model) == core.load_device(clip) == CPU


@check
def core_latent_layout():
    assert core.latent_layout(load_model("sd15")[0]) == (4, 8)
    assert core.latent_layout(load_model("flux")[0]) == (16, 8)
    channels, ratio = core.latent_layout(load_model("wan")[0])
    assert (channels, ratio) in ((16, 8), (48, 16)), (channels, ratio)


@check
def core_text_model():
    _, clip = load_model("sd15")
    assert core.text_model(clip) is clip.patcher.model


@check
def core_use_text_model():
    _, clip = load_model("sd15")
    clone = clip.clone()
    clone.cond_stage_model = None
    core.use_text_model(clone)
    assert core.text_model(clone) is clone.patcher.model


@check
def core_text_encoders():
    _, clip = load_model("sd15")
    (found,) = core.text_encoders(clip).items()
    assert found[0] == "clip_l" and found[1] is clip.cond_stage_model.clip_l


@check
def core_prepare_text_encoders():
    """What an encoder answers then is what encoding a prompt with the same CLIP gives, at its layer."""
    _, clip = load_model("sd15")
    answers = []
    for layer in (None, -1, -2):
        clone = clip.clone()
        if layer is not None:
            clone.clip_layer(layer)
        tokens = clone.tokenize("a cat")
        wanted = clone.encode_from_tokens(tokens)
        clone.cond_stage_model.reset_clip_options()
        core.prepare_text_encoders(clone)
        numbers = [[token for token, _ in row] for row in tokens["l"]]
        with torch.inference_mode():
            given = core.text_encoders(clone)["clip_l"](numbers)[0]
        assert torch.allclose(given, wanted, atol=1e-5), layer
        answers.append(given)
    assert not torch.allclose(answers[1], answers[2], atol=1e-3)


@check
def core_list_fused_linears():
    """A block with fused weights answers as one whose weights are the rows that are named."""
    torch.manual_seed(0)
    small = llama.Qwen3_8BConfig(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2
    )
    small.head_dim = 8
    made = {}
    for fused in (True, False):
        small.merged_qkv = small.merged_mlp = fused
        made[fused] = llama.TransformerBlock(
            small, 0, torch.device("cpu"), torch.float32, comfy.ops.disable_weight_init
        )
    whole, apart = made[True], made[False]
    for weight in whole.parameters():
        torch.nn.init.normal_(weight)
    clip = type("Clip", (), {"cond_stage_model": torch.nn.ModuleDict({"block": whole})})
    found = core.list_fused_linears(clip)
    assert [(path, linear) for path, linear, _ in found] == [
        ("block.self_attn", "qkv_proj"),
        ("block.mlp", "gate_up_proj"),
    ]
    state = {
        key: weight
        for key, weight in whole.state_dict().items()
        if "qkv_proj" not in key and "gate_up" not in key
    }
    for path, linear, sizes in found:
        weight = whole.get_submodule(path.removeprefix("block.")).get_submodule(linear).weight
        assert weight.shape[0] == sum(sizes.values())
        for part, rows in zip(sizes, weight.split(list(sizes.values())), strict=True):
            state[f"{path.removeprefix('block.')}.{part}.weight"] = rows
    apart.load_state_dict(state)
    x = torch.randn(1, 3, 32)
    with torch.inference_mode():
        assert torch.allclose(whole.mlp(x), apart.mlp(x), atol=1e-5)
        frequencies = llama.precompute_freqs_cis(8, torch.arange(3)[None], small.rope_theta, device=CPU)
        attention = {"freqs_cis": frequencies, "optimized_attention": optimized_attention}
        first, second = (block.self_attn(x, **attention)[0] for block in (whole, apart))
        assert torch.allclose(first, second, atol=1e-5)


@check
def core_image_model():
    assert core.image_model(load_model("flux")[0]) == "flux"
    assert core.image_model(load_model("wan")[0]) == "wan2.1"
    assert core.image_model(load_model("sd15")[0]) == "None"


@check
def core_model_kind():
    kinds = [core.model_kind(load_model(name)[0]) for name in ("sd15", "flux", "sd3")]
    assert kinds[0] == "SD15" and "Flux" in kinds[1] and kinds[2] == "SD3", kinds


@check
def core_is_streamed():
    model, clip = load_model("sd15")
    assert not core.is_streamed(model) and not core.is_streamed(clip)
    dynamic = getattr(comfy.model_patcher, "ModelPatcherDynamic", None)
    assert dynamic is None or core.is_streamed(dynamic.__new__(dynamic))


@check
def core_clone_static():
    model, clip = load_model("sd15")
    for part in (model, clip):
        assert core.patcher_of(core.clone_static(part)).model is core.patcher_of(part).model


@check
def core_call_options():
    """The wrappers and options that sampling hands to the diffusion model are among them."""
    model, _ = load_model("sd15")
    clone = model.clone()
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    clone.add_wrapper_with_key(kind, "mine", print)
    clone.set_model_attn1_patch(repr)
    options = core.call_options(clone)
    assert options["wrappers"][kind]["mine"] == [print]
    assert options["patches"]["attn1_patch"] == [repr] and not core.call_options(model).get("patches")
    options["patches"]["attn1_patch"].append(str)
    assert core.call_options(clone)["patches"]["attn1_patch"] == [repr]


@check
def core_training_mode():
    """ComfyUI's own training sets the same flag, which its memory management and its layers read."""
    before = comfy.model_management.in_training
    with core.training_mode():
        assert comfy.model_management.in_training is True
    assert comfy.model_management.in_training is before
    source = (Path.cwd() / "comfy_extras" / "nodes_train.py").read_text(encoding="utf-8")
    assert "comfy.model_management.in_training = True" in source


@check
def core_make_room():
    """Only what is to stay does."""
    (model, _), (other, _) = load_model("sd15"), load_model("flux")
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model, other])
        core.make_room(CPU, keep=[model])
    left = [loaded.model for loaded in comfy.model_management.current_loaded_models]
    assert left == [model], left
    comfy.model_management.unload_all_models()


@check
def core_running_server():
    """None here; where ComfyUI runs, the class and its methods are those that the nodes call."""
    assert core.running_server() is None
    (server,) = (
        node
        for node in ast.parse((Path.cwd() / "server.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "PromptServer"
    )
    source = ast.unparse(server)
    assert "PromptServer.instance = self" in source and "self.routes = routes" in source
    assert "def send_progress_text(self, text" in source


@check
def core_recognise_checkpoint():
    def found(folder, name):
        with safe_open(folder_paths.get_full_path_or_raise(folder, name), "pt") as file:
            return core.recognise_checkpoint({key: file.get_slice(key).get_shape() for key in file.keys()})

    assert found("checkpoints", "tiny_sd15.safetensors")["context_dim"] == 768
    assert found("loras", "sd15_a.safetensors") == {}
    assert core.recognise_checkpoint({}) == {}
