"""The code of docs/text-models.md runs as it stands, on tiny models by the names that it uses."""

import re
import shlex
from pathlib import Path

import torch

import merge_ops
from merge_ops.cli import main
from tests.text.models import ATTENTION, TOKENS, logits, make_model, peft, save_adapters

GUIDE = (Path(__file__).parents[2] / "docs" / "text-models.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def make_ia3(folder):
    """Three (IA)3 adapters of stock PEFT with random vectors."""
    for i, name in enumerate(("norobots", "sql", "adcopy")):
        config = peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
        model = peft.get_peft_model(make_model("llama"), config)
        torch.manual_seed(i)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "ia3_l" in key:
                    weight.uniform_(0.5, 1.5)
        model.save_pretrained(folder / f"tinyllama_ia3_{name}")


def test_every_block_runs(tmp_path, monkeypatch, capsys):
    """In order, in one namespace, and what they leave behind is what they say."""
    make_model("llama").save_pretrained(tmp_path / "TinyLlama")
    made = save_adapters("llama", [ATTENTION] * 3, tmp_path)
    for folder, name in zip(made.values(), ("norobots", "sql", "adcopy"), strict=True):
        folder.rename(tmp_path / f"tinyllama_lora_{name}")
    make_ia3(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"prompt": TOKENS}
    for block in blocks("python"):
        exec(compile(block, "text-models.md", "exec"), names)  # noqa: S102
    assert "0.5 acts as 0.25" in capsys.readouterr().out
    assert names["report"].path == "TinyLlama-fused"
    base = make_model("llama")
    with merge_ops.models.transformers.patched(base, names["exact"]):
        assert torch.allclose(logits(names["model"].eval()), logits(base), atol=1e-5)
    assert merge_ops.load("merged_adapter").rank == 8
    wrapped = peft.PeftModel.from_pretrained(make_model("llama"), tmp_path / "merged_ia3").eval()
    with merge_ops.models.transformers.patched(base, names["scaled"]):
        assert torch.allclose(logits(wrapped), logits(base), atol=1e-2)  # the folder is in half precision
    for line in "".join(blocks("sh")).splitlines():
        assert main(shlex.split(line)[1:]) == 0
    assert (tmp_path / "fused" / "config.json").is_file()


def test_every_combination_type_is_one_that_peft_has():
    """Names in the guide are in the table."""
    found = set(re.findall(r'combination_type="(\w+)"', GUIDE))
    assert found and found <= merge_ops.COMBINATION_TYPES.keys()
