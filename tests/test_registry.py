"""The registry: a method is declared by one function's signature, and everything else is read from it."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch

import merge_ops
from merge_ops import METHODS, Method, Param, ParameterError, UnknownMethodError, merge_method
from merge_ops.merging import merge
from merge_ops.methods.registry import get_method


@pytest.fixture
def halves():
    """A method made here, with one parameter of every type, taken out again afterwards."""

    def fn(
        deltas,  # (n, ..., out, in)
        weights,  # (n,)
        *,
        share: Annotated[float, Param("Share of each delta.", min=0, max=2, step=0.5)] = 0.5,
        times: Annotated[int, Param("How often.", min=1, max=9)] = 1,
        flip: Annotated[bool, Param("Whether to negate.", advanced=True)] = False,
        way: Annotated[Literal["plain", "absolute"], Param("Which values.")] = "plain",
        generator,
    ):  # (..., out, in)
        """Add a share of each LoRA.

        More is not shown.
        """
        values = deltas.abs() if way == "absolute" else deltas
        total = torch.tensordot(weights, values, dims=1) * share * times
        return -total if flip else total

    found = merge_method("halves", "Halves", paper="arXiv:0000.00000")(fn)
    assert found is fn, "the decorator returns the function unchanged"
    try:
        yield METHODS["halves"]
    finally:
        del METHODS["halves"]


def test_the_signature_is_the_declaration(halves):
    assert isinstance(halves, Method)
    assert halves.summary == "Add a share of each LoRA."
    assert halves.supplied == ("generator",), "what the engine supplies is not a parameter"
    assert [p.name for p in halves.params] == ["share", "times", "flip", "way"]
    share, times, flip, way = halves.params
    assert (share.type, share.default, share.min, share.max, share.step) == (float, 0.5, 0, 2, 0.5)
    assert (times.type, times.default) == (int, 1)
    assert (flip.type, flip.default, flip.advanced) == (bool, False, True)
    assert (way.type, way.default, way.choices) == (str, "plain", ("plain", "absolute"))


def test_a_new_method_works_through_merge_and_alone(halves, make_lora):
    loras = [make_lora(n, seed=i) for i, n in enumerate("ab")]
    merged = merge(loras, [1.0, -2.0], "halves", share=2, flip=True)
    exact = merge(loras, [1.0, -2.0])
    for name in merged.layers:
        torch.testing.assert_close(merged.delta(name), -2 * exact.delta(name), rtol=1e-4, atol=1e-5)
    pair = torch.tensor([[[1.0, -2.0]], [[3.0, 4.0]]])
    assert torch.equal(
        halves.fn(pair, torch.ones(2), way="absolute", generator=None), torch.tensor([[2.0, 3.0]])
    )


def test_defaults_are_filled_in_and_types_made(halves):
    assert halves.resolve({}) == {"share": 0.5, "times": 1, "flip": False, "way": "plain"}
    resolved = halves.resolve({"share": 1, "times": 3})
    assert isinstance(resolved["share"], float) and isinstance(resolved["times"], int)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 2.1}, r"halves: share 2.1 is outside \[0, 2\]"),
        ({"share": -0.1}, r"halves: share -0.1 is outside \[0, 2\]"),
        ({"share": float("nan")}, "halves: share is nan; give a finite number"),
        ({"share": float("inf")}, "halves: share is inf; give a finite number"),
        ({"share": "0.5"}, "halves: share must be a number, not '0.5'"),
        ({"share": None}, "halves: share must be a number, not None"),
        ({"share": True}, "halves: share must be a number, not True"),
        ({"times": 0}, r"halves: times 0 is outside \[1, 9\]"),
        ({"times": float("inf")}, "halves: times must be a whole number, not inf"),
        ({"times": 1.5}, "halves: times must be a whole number, not 1.5"),
        ({"flip": 1}, "halves: flip must be True or False, not 1"),
        ({"way": "plan"}, r"halves: way 'plan' is not a choice \(did you mean 'plain'\?\)"),
        ({"way": "xyz"}, r"halves: way 'xyz' is not a choice \(known: plain, absolute\)"),
        ({"shares": 1.0}, r"halves has no parameter 'shares' \(did you mean 'share'\?\)"),
        ({"zzz": 1.0}, r"halves has no parameter 'zzz' \(known: share, times, flip, way\)"),
    ],
)
def test_a_wrong_value_is_refused_with_the_way_out(halves, given, message):
    with pytest.raises(ParameterError, match=message):
        halves.resolve(given)


def test_a_method_without_parameters_says_so():
    with pytest.raises(ParameterError, match="linear takes no parameters, but 'density' was given"):
        METHODS["linear"].resolve({"density": 0.5})


def test_an_unknown_method_is_refused_with_a_suggestion():
    with pytest.raises(UnknownMethodError, match=r"unknown merge method 'tise' \(did you mean 'ties'\?\)"):
        get_method("tise")
    assert get_method("ties") is METHODS["ties"]


def test_a_name_is_registered_once(halves):
    before = dict(METHODS)
    with pytest.raises(ValueError, match="'halves' is registered twice"):
        merge_method("halves", "Again", paper="arXiv:0000.00000")(lambda deltas, weights: None)
    assert before == METHODS


def test_a_parameter_without_declaration_is_refused():
    def bare(deltas, weights, *, density: float = 0.5):
        """Do nothing."""

    with pytest.raises(TypeError, match="bare: annotate 'density' as Annotated"):
        merge_method("bare", "Bare", paper="arXiv:0000.00000")(bare)
    assert "bare" not in METHODS


def test_thresholds_without_a_density_are_refused():
    """The engine finds thresholds from ``density``; a method that names them and not it cannot run."""

    def trim(deltas, weights, *, thresholds=None):
        """Trim."""

    with pytest.raises(TypeError, match="trim: thresholds follow from the parameter density"):
        merge_method("trim", "Trim", paper="arXiv:0000.00000")(trim)
    assert "trim" not in METHODS


def test_a_file_is_a_method():
    """Every method has a file of its name and needs no entry anywhere else; linear comes first."""
    folder = Path(merge_ops.methods.registry.__file__).parent
    assert set(METHODS) <= {path.stem for path in folder.glob("*.py")}
    assert next(iter(METHODS)) == "linear"
    papers = [m.paper for m in list(METHODS.values())[1:]]
    assert papers == sorted(papers)
