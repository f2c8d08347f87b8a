"""PEFT configurations whose tensors do not mean what those of a LoRA mean, with the reason."""

from __future__ import annotations

from typing import Any

from ..errors import LoraFormatError, shown

# how PEFT initialises an adapter and changes the base model's weights while it does
_RESIDUAL = ("pissa", "olora", "corda", "loftq", "lora_ga")
_OPTIONS = {
    "layer_replication": "it repeats layers of the base model, so its layers are not those of the base",
    "alora_invocation_tokens": "it is an activated LoRA (aLoRA), which acts only after its invocation tokens",
    "use_qalora": "it is a QA-LoRA, whose down factor takes the means of groups of inputs",
    "arrow_config": "it is an Arrow router, which chooses among LoRAs token by token",
    "kasa_config": "it is a KaSA, which cuts the weights of the base model when it is loaded",
    "use_bdlora": "it is a BD-LoRA, whose factors are block-diagonal",
    "monteclora_config": "it is a MonteCLoRA, whose factors are drawn at random around the trained ones",
    "megatron_config": "it is for a model of Megatron, whose layers are split over several devices",
}


def refuse_other_meanings(config: dict[str, Any]) -> None:
    """Refuse what would be merged wrongly.

    Raises:
        LoraFormatError: with the reason and, where there is one, what to do.
    """
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_RESIDUAL):
        raise LoraFormatError(
            f"the adapter was initialised by {shown(start)}, which changes the base model's weights, so its "
            "factors are not a difference to the base model; save it with "
            "path_initial_model_for_weight_conversion= in PEFT, which converts it to a plain LoRA"
        )
    for option, reason in _OPTIONS.items():
        if config.get(option):
            raise LoraFormatError(f"the adapter cannot be merged: {reason} ({option})")
