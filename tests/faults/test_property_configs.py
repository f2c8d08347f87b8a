"""Whatever a PEFT configuration says, of any kind of adapter: a merge, or a MergeError."""

import json

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from merge_ops import MergeError, load
from merge_ops.merging import merge
from tests.faults.test_properties import MANY, numbers

KINDS = {
    "LORA": {"lora_A.weight": (2, 2), "lora_B.weight": (2, 2), "lora_magnitude_vector": (2,)},
    "LOHA": {f"hada_w{i}_{half}": (2, 2) for i in (1, 2) for half in "ab"},
    "LOKR": {"lokr_w1": (2, 2), "lokr_w2_a": (1, 1), "lokr_w2_b": (1, 1)},
    "IA3": {"ia3_l": (2, 1)},
    "OFT": {"oft_R.weight": (1, 1)},
    "BOFT": {"boft_R": (1, 1, 2, 2), "boft_s": (2, 1)},
}
options = st.sampled_from(
    """r alpha lora_alpha rank_pattern alpha_pattern target_modules feedforward_modules modules_to_save bias
    coft eps use_cayley_neumann num_cayley_neumann_terms fan_in_fan_out use_rslora use_dora
    auto_mapping""".split()
)
values = numbers | st.recursive(
    numbers | st.sampled_from(["q", ".*q", "(", "all", "all-linear"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["q", "(", ".*"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@MANY
@given(st.sampled_from(sorted(KINDS)), st.dictionaries(options, values, max_size=4))
@example("OFT", {"coft": True, "eps": "x"})
@example("IA3", {"feedforward_modules": 3})
@example("LORA", {"modules_to_save": 5, "target_modules": {"q": None}})
@example("LORA", {"auto_mapping": {"base_model_class": []}})
def test_every_configuration_of_every_kind(tmp_path, kind, config):
    """A merge with the small model that it is for, or one sentence."""
    tensors = {f"base_model.model.a.q.{end}": torch.full(shape, 0.5) for end, shape in KINDS[kind].items()}
    tensors |= {f"base_model.model.{name}": torch.ones(2, 2) for name in ("head.weight", "embed.weight")}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind} | config))
    try:
        merged = merge([load(tmp_path)], base=lambda name: torch.ones(2) if "bias" in name else torch.eye(2))
        for name in merged.layers:
            assert torch.isfinite(merged.delta(name)).all()
    except MergeError as error:
        assert "\n" not in str(error)
