"""What the nodes rely on inside ComfyUI is in four files; each of their functions has a check by its name."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = [
    ROOT / "nodes" / "model" / name
    for name in ("core.py", "core_patches.py", "core_hooks.py", "core_bypass.py")
]
# attributes and keys of ComfyUI's objects that it does not promise to keep
INSIDE = {
    "PromptServer", "SDClipModel", "_layout_cls", "backup", "calculate_shape", "callbacks", "class_obj",
    "cond_stage_model", "conds", "current_loaded_models", "current_patcher", "diffusion_model",
    "disable_dynamic", "forced_hooks", "gate_up_proj", "get_attachment", "get_injections", "hook_backup",
    "hook_patches", "in_training", "injections", "inner_size", "is_conv", "is_dynamic", "kv_size",
    "kw_dict", "latent_channels", "layer_idx", "load_device", "merged_mlp", "merged_qkv", "model_config",
    "model_options", "patch_weight_to_device", "patches", "patches_uuid", "qkv_proj", "reset_clip_options",
    "set_attachments", "set_clip_options", "set_injections", "spacial_downscale_ratio", "unet_config",
    "wrappers",
}  # fmt: skip


def names_used(path):
    """Attributes, and the texts that name them for ``getattr``, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg, node.value.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            yield from ((part.value, node.lineno) for part in node.args if isinstance(part, ast.Constant))


def test_what_moves_inside_comfyui_is_used_in_four_files():
    """A private attribute that another file uses would be missed when ComfyUI moves it."""
    used = {}
    for path in (ROOT / "nodes").rglob("*.py"):
        for name, line in names_used(path):
            if name in INSIDE:
                used.setdefault(path, []).append(f"{path.relative_to(ROOT)}:{line}: {name}")
    inside = {place.rpartition(": ")[2] for path in CORE for place in used.pop(path)}
    assert not used, used
    assert len(inside) > 20, inside


def test_each_function_has_a_check_by_its_name():
    """So that the name of a check that fails says which function has to follow."""
    functions = {
        node.name
        for path in CORE
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    checks = {
        node.name
        for path in Path(__file__).parent.glob("checks_core_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    }
    assert {f"core_{name}" for name in functions} <= checks
