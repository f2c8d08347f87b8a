"""Kinds of adapters: one file per kind and one line here. All tables of kinds are derived from these rows."""

from .bound import BOUND, TRAINED, Bound, Trained
from .configuration import MODULE_CONFIG
from .dora import DORA, Dora
from .full import BIAS, FULL, Full, join_rows, take_rows
from .glora import GLORA, Glora
from .ia3 import IA3, Ia3
from .kind import Kind
from .loha import LOHA, Hadamard
from .lokr import LOKR, Kronecker
from .lora import LORA
from .oft import OFT, Oft
from .peft_oft import PEFT_BOFT, PEFT_OFT, InputRotation
from .refused import EARLY_OFT, T_LORA
from .set_weight import SET_WEIGHT

# in the order in which a PEFT configuration's rank is looked for
KINDS: list[Kind] = [
    LORA,
    LOHA,
    LOKR,
    FULL,
    BIAS,
    DORA,
    GLORA,
    IA3,
    OFT,
    PEFT_OFT,
    PEFT_BOFT,
    SET_WEIGHT,
    MODULE_CONFIG,
    TRAINED,
    BOUND,
    T_LORA,
    EARLY_OFT,
]

__all__ = [
    "KINDS",
    "Bound",
    "Dora",
    "Full",
    "Glora",
    "Hadamard",
    "Ia3",
    "InputRotation",
    "Kind",
    "Kronecker",
    "Oft",
    "Trained",
    "join_rows",
    "take_rows",
]
