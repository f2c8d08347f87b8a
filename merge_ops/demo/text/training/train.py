"""Train the text demo's LoRAs on MiniLM with stock PEFT. Two to four minutes each on one core.

python -m merge_ops.demo.text.training.train [NAME ...]

A LoRA moves the texts of its task towards the descriptions of their labels, which stay where the base model
puts them. The test split is not read here; the settings below were chosen on the dev split.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save_file

from ..encoder import Encoder
from ..tasks import ASSETS, TASKS, Task

TARGETS = ["query", "key", "value", "attention.output.dense"]
RANK = 8
ALPHA = 16
STEPS = 240
BATCH = 32
RATE = 1e-3
SHARPNESS = 20.0  # cosines to logits
DROPOUT = {"sentiment": True, "grammar": True, "language": False}  # the encoder's own


def main() -> None:
    """Train all LoRAs, or those named on the command line."""
    torch.set_num_threads(1)
    for number, name in enumerate(TASKS):
        if len(sys.argv) == 1 or name in sys.argv[1:]:
            torch.set_flush_denormal(True)  # numbers near zero would slow the processor down many times
            train(TASKS[name], ASSETS / "loras" / name, seed=number)


def train(task: Task, folder: Path, seed: int, steps: int = STEPS) -> dict[str, float]:
    """Train one LoRA, write its PEFT folder, and return its loss and its score on the dev split."""
    torch.manual_seed(seed)
    encoder = Encoder()
    head = encoder.heads({task.name: task})[task.name]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0)
    model: Any = get_peft_model(encoder.model, config).train(DROPOUT.get(task.name, True))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    words, labels = task.texts("train")
    answers = torch.tensor(labels)
    last = 0.0
    for step in range(steps):
        chosen = torch.randint(len(words), (BATCH,))
        found = encoder.embed([words[index] for index in chosen.tolist()], model)
        loss = F.cross_entropy(found @ head.T * SHARPNESS, answers[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        last = float(loss.detach())
        if step % 40 == 0:
            print(f"{task.name} step {step}: loss {last:.4f}", flush=True)
    score = encoder.right(*task.texts("dev"), head, model.eval())
    write(model, folder)
    print(f"{task.name}: {100 * score:.1f} % right on the dev split", flush=True)
    return {"loss": last, "dev": score}


def write(model: Any, folder: Path) -> None:
    """Write the folder as PEFT does, with the factors in float16 and no path of this machine."""
    # first, while the config still names the local folder: PEFT would look for the name below on the hub
    state = {key: value.half().contiguous() for key, value in get_peft_model_state_dict(model).items()}
    config = model.peft_config["default"]
    config.base_model_name_or_path = "sentence-transformers/all-MiniLM-L6-v2"
    config.inference_mode = True
    config.target_modules = TARGETS  # PEFT made it a set, which has no fixed order
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
