"""One row a kind: every table of kinds is made from the rows, and what a row forgets is an error."""

import ast
import math
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch

import merge_ops
from merge_ops import LowRank, adapters
from merge_ops.adapters import reading
from merge_ops.adapters.kind import Kind
from merge_ops.adapters.module import alpha_of, factor_of
from merge_ops.adapters.reading import TABLES, tables_of
from merge_ops.analysis.facts import describe
from merge_ops.formats import from_tensors
from merge_ops.formats.lookalike import refuse_by_keys
from merge_ops.lora import BaseDependent, Layer, WeightAdapter, WholeWeight
from tests.laws import WITHOUT_RECORDING

ROOT = Path(__file__).parents[2]


def records():
    """Every class of the library that is an adapter, whether a row names it or not."""
    found, waiting = set(), [WeightAdapter]
    while waiting:
        found |= set(waiting)
        waiting = [each for parent in waiting for each in parent.__subclasses__()]
    kept = found - {WeightAdapter, Layer, BaseDependent}
    return {record for record in kept if record.__module__.startswith("merge_ops.")}


def test_every_record_is_in_one_row():
    """A class that no row names could not be packed into a patch, nor listed by its kind."""
    named = Counter(record for kind in adapters.KINDS for record in kind.records)
    assert max(named.values()) == 1
    assert named.keys() == records() | {WholeWeight}
    assert set(TABLES.records.values()) == named.keys()  # what nodes/model/patches/patch.py packs


def test_every_file_of_a_kind_is_listed():
    """One line a kind: the rows that the files define are those of the list."""
    defined = set()
    for path in (ROOT / "merge_ops" / "adapters").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            value = getattr(node, "value", None)
            if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "Kind":
                defined |= {ast.literal_eval(value.args[0])}
    assert defined == {kind.name for kind in adapters.KINDS}


@pytest.mark.parametrize("kind", adapters.KINDS, ids=lambda kind: kind.name)
def test_a_row_says_what_its_tensors_mean(kind):
    """Every suffix leads back to the row, and a row without suffixes is made beside a base model only."""
    for suffix, role in kind.roles.items():
        assert TABLES.owners[suffix] is kind
        assert TABLES.roles[suffix] == role
        assert reading.is_of_adapter(f"layer{suffix}") != kind.is_refused
    assert kind.roles or kind.records
    assert not kind.records or kind.is_refused == (
        kind.read is None and kind.wrap is None and bool(kind.roles)
    )


def test_refused_kinds_are_named():
    """What cannot be merged is read as far as its name."""
    for kind in adapters.KINDS:
        if kind.is_refused:
            tensors = {f"unet.layer{suffix}": torch.ones(2, 2) for suffix in kind.roles}
            with pytest.raises(merge_ops.LoraFormatError, match=kind.name):
                from_tensors("x", tensors)


@dataclass(frozen=True, eq=False)
class Outer(Layer):
    """A kind for this test: the outer product of two vectors."""

    left: torch.Tensor
    right: torch.Tensor
    scale: float = 1.0
    layout: str = "linear"
    kernel: tuple = ()
    key: str = ""

    kind = "outer"

    @property
    def rank(self):
        return 1

    @property
    def matrix_shape(self):
        return len(self.left), len(self.right)

    @property
    def tensors(self):
        return self.left, self.right

    def rows(self, device):
        left = self.left.to(device, torch.float32) * self.scale
        right = self.right.to(device, torch.float32)
        return lambda index, out=None: torch.mul(left[index, None], right, out=out)


def _read(module, scale, config):
    left, right = factor_of(module, "outer_left"), factor_of(module, "outer_right")
    return {"": Outer(left, right, alpha_of(module, 1) if scale is None else scale, key=module.stem)}


OUTER = Kind("outer", {".outer_left": "outer_left", ".outer_right": "outer_right"}, (Outer,), _read)


@pytest.fixture
def with_outer(monkeypatch):
    """The tables with one more row."""
    monkeypatch.setattr(reading, "TABLES", tables_of([*adapters.KINDS, OUTER]))


def outer_file(seed):
    """A LoRA of that kind, and a plain one on the same layer."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "unet.mid.outer_left": torch.randn(6, generator=generator),
        "unet.mid.outer_right": torch.randn(5, generator=generator),
    }
    return from_tensors(f"outer{seed}", tensors)


@pytest.mark.parametrize("method", WITHOUT_RECORDING)
def test_a_new_kind_is_one_row(with_outer, method, tmp_path):
    """Its files are read, every method merges it, and what is saved is its delta."""
    a, b = outer_file(1), outer_file(2)
    (layer,) = a.layers.values()
    assert isinstance(layer, Outer)
    merged = merge_ops.merge([a, b], [1.0, 0.5], method)
    (name,) = merged.layers
    assert merged.delta(name).shape == (6, 5)
    merge_ops.save(merged, tmp_path / "out.safetensors", dtype=torch.float32)
    read = merge_ops.load(tmp_path / "out.safetensors").layers[name]
    assert isinstance(read, LowRank)
    alone = merge_ops.merge([a], [2.0]).delta(name)
    assert torch.allclose(alone, 2 * torch.outer(layer.left, layer.right))


def test_a_new_kind_is_described_and_warned_about(with_outer):
    """By its own name, and with its alpha; a checkpoint's names do not hide it."""
    factors = {"outer_left": torch.ones(4), "outer_right": torch.ones(4), "alpha": torch.tensor(0.0)}
    lora = from_tensors("x", {f"unet.mid.{name}": tensor for name, tensor in factors.items()})
    assert describe(lora)["kinds"] == {"outer": 1}
    assert any("alpha is 0 in 1 layer" in warning for warning in lora.warnings)
    refuse_by_keys(["model.diffusion_model.a.outer_left", "model.diffusion_model.b.weight"])


def test_a_record_says_its_kind():
    """One that does not cannot be made, so that no description calls it something else."""
    with pytest.raises(TypeError, match="abstract"):
        type(
            "Nameless", (Layer,), {name: getattr(Outer, name) for name in ("rank", "matrix_shape", "rows")}
        )()


def test_a_new_kind_beside_another_is_refused(with_outer):
    """Of two kinds at once: neither is dropped."""
    tensors = {f"unet.mid{suffix}": torch.ones(4) for suffix in OUTER.roles}
    tensors |= {"unet.mid.lora_A.weight": torch.ones(1, 4), "unet.mid.lora_B.weight": torch.ones(4, 1)}
    with pytest.raises(merge_ops.LoraFormatError, match="two kinds at once"):
        from_tensors("x", tensors)


def test_what_no_row_names_is_not_an_adapter():
    """Without its row the kind's tensors are listed as unrecognised, never dropped."""
    tensors = {"unet.mid.outer_left": torch.ones(4), "unet.mid.outer_right": torch.ones(4)}
    tensors |= {"unet.up.lora_A.weight": torch.ones(1, 4), "unet.up.lora_B.weight": torch.ones(4, 1)}
    assert from_tensors("x", tensors).unmerged.keys() == {"unet.mid.outer_left", "unet.mid.outer_right"}


@pytest.mark.parametrize(
    "row",
    [
        Kind("copy", {".lora_down.weight": "other"}),
        Kind("copy", {".copied": "down"}),
        Kind("LoRA", {".copied": "copied"}),
        Kind("copy", {".copied": "copied"}, (LowRank,)),
        Kind("copy", {".copied": "copied"}, peft_types=("LORA",)),
    ],
    ids=["suffix", "role", "name", "record", "PEFT type"],
)
def test_two_rows_cannot_claim_the_same(row):
    """A file would be read by whichever came last."""
    with pytest.raises(ValueError, match="belongs to another kind"):
        tables_of([*adapters.KINDS, row])


@pytest.mark.parametrize("where", ["extra", "rank_roles", "whole_roles", "beside"])
def test_a_row_cannot_name_what_there_is_not(where):
    """A mistyped role would have no effect, and a file would be read at another scale."""
    row = Kind("new", {".new": "new"}, **{where: type(getattr(OUTER, where))(["gnu"])})
    with pytest.raises(ValueError, match="new names gnu, which is in no row"):
        tables_of([*adapters.KINDS, row])


def test_a_role_that_refines_one_kind_is_refused_beside_another(monkeypatch):
    """Whatever else the row says: dropped, it would change what the file means."""
    row = replace(OUTER, roles={**OUTER.roles, ".outer_core": "outer_core"}, extra=frozenset({"outer_core"}))
    monkeypatch.setattr(reading, "TABLES", tables_of([*adapters.KINDS, row]))
    tensors = {"unet.mid.lora_A.weight": torch.ones(1, 4), "unet.mid.lora_B.weight": torch.ones(4, 1)}
    with pytest.raises(merge_ops.LoraFormatError, match="outer_core of an adapter beside LoRA"):
        from_tensors("x", tensors | {"unet.mid.outer_core": torch.ones(4)})


def test_two_kinds_cannot_wrap_one_layer(monkeypatch):
    """The second would be dropped."""
    row = replace(
        adapters.DORA, name="other", roles={".other": "other"}, records=(), extra=frozenset({"other"})
    )
    monkeypatch.setattr(reading, "TABLES", tables_of([*adapters.KINDS, row]))
    tensors = {"unet.mid.lora_A.weight": torch.ones(1, 4), "unet.mid.lora_B.weight": torch.ones(4, 1)}
    tensors |= {"unet.mid.dora_scale": torch.ones(4, 1), "unet.mid.other": torch.ones(4, 1)}
    with pytest.raises(merge_ops.LoraFormatError, match="DoRA and other at once"):
        from_tensors("x", tensors)


def test_peft_types_come_from_the_rows():
    """What a folder may be, and where its alpha is."""
    known = ["LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT"]
    assert list(TABLES.peft_types) == known
    assert [TABLES.peft_types[name].peft_alpha for name in known].count("alpha") == 2


def test_records_can_be_rebuilt_from_their_fields():
    """A patch packs a record as its fields, in their order."""
    for record in records() | {Outer}:
        assert [field.name for field in fields(record)], record
        assert all(field.init for field in fields(record)), record
    outer = outer_file_alone()
    again = Outer(*(getattr(outer, field.name) for field in fields(outer)))
    assert math.isclose(float(again.matrix().sum()), float(outer.matrix().sum()))


def outer_file_alone():
    """A record of the test's kind."""
    return Outer(torch.arange(3.0), torch.arange(4.0))
