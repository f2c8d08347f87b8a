"""Run by a test inside ComfyUI's interpreter: ``nodes/model/files`` with the real ``folder_paths``.

cached_files.py COMFYUI REPOSITORY FOLDER
"""

import json
import os
import sys
from pathlib import Path

COMFYUI, ROOT, FOLDER = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path[:0] = [COMFYUI, str(Path(ROOT) / "tests" / "nodes")]

import folder_paths  # noqa: E402
import torch  # noqa: E402
from pack import pack_module  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

files = pack_module("nodes.model.files.lora_files")
merge_ops = pack_module("merge_ops")
LORAS = Path(FOLDER) / "loras"
folder_paths.folder_names_and_paths["loras"] = ([str(LORAS)], {".safetensors", ".pt"})


def write(path, value=1.0, stem="unet.conv_in"):
    path.parent.mkdir(parents=True, exist_ok=True)
    up, down = torch.full((50, 4), value), torch.full((4, 50), value)
    save_file({f"{stem}.lora_B.weight": up, f"{stem}.lora_A.weight": down}, path)


def refused(name):
    try:
        files.read_lora(name)
    except merge_ops.MergeError as error:
        return str(error)
    return None


def main():
    said = {}
    for i in range(5):
        write(LORAS / f"{i}.safetensors", float(i))
    size = (LORAS / "0.safetensors").stat().st_size
    files._KEPT = 3 * size
    first = [files.read_lora(f"{i}") for i in range(3)]
    files.read_lora("0")
    files.read_lora("3")  # 1 was used longest ago
    said["kept"] = sorted(Path(path).stem for path, _, _ in files._loaded)
    said["the same object"] = files.read_lora("0") is first[0]
    files._KEPT = size // 2
    files.read_lora("4")
    said["one larger than the limit"] = [Path(path).stem for path, _, _ in files._loaded]
    write(LORAS / "4.safetensors", 9.0)
    said["read again"] = float(files.read_lora("4").layers["unet.conv_in"].up[0, 0])

    write(Path(FOLDER) / "outside.safetensors")
    outside = str(Path(FOLDER) / "outside.safetensors")
    names = [
        "../outside",
        "../outside.safetensors",
        outside,
        "a/../../outside",
        "..\\outside",
        "C:\\x",
        "0\0",
        "con",
    ]
    said["outside"] = [name for name in names if "there is no LoRA file" not in (refused(name) or "")]

    write(LORAS / "peft" / "adapter_model.safetensors", stem="base_model.model.q")
    config = LORAS / "peft" / "adapter_config.json"
    scales = []
    for alpha in (4, 8):
        config.write_text(json.dumps({"lora_alpha": alpha}))
        os.utime(config, ns=(alpha, alpha))
        scales.append(files.read_lora("peft").layers["q"].scale)
    said["scales"] = scales
    sys.stdout.write("\n" + json.dumps(said))


main()
