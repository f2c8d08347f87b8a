"""What a sweep varies and the list of its values, as text."""

import pytest

from tests.nodes.pack import pack_module

read_sweep = pack_module("nodes.values.sweep_values").read_sweep
MergeError = pack_module("merge_ops.errors").MergeError
MethodChoice = pack_module("nodes.values.keywords").MethodChoice
BLOCKS = ["down:0", "down:0.5 mid:1", "STYLE", "0.5"]


@pytest.mark.parametrize(
    ("parameter", "text", "values"),
    [
        ("density", "0.1, 0.2,0.4", [0.1, 0.2, 0.4]),
        ("density", "0.1..0.9 step 0.2", [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("density", "0.1 .. 1 step .4", [0.1, 0.5, 0.9]),
        ("strength", "1..-1 step 0.5", [1, 0.5, 0, -0.5, -1]),
        ("strength", "-0.5..-0.5", None),
        ("seed", "1..4", [1, 2, 3, 4]),
        ("rank", "4, 8..16 step 4,\n64,", [4, 8, 12, 16, 64]),
        ("density", "1e-3, 1", [0.001, 1]),
        ("method", "linear, ties ,peft", ["linear", "ties", "peft"]),
        ("majority_sign_method", "total, frequency", ["total", "frequency"]),
        ("combination_type", "cat, ties_svd", ["cat", "ties_svd"]),
        ("svd_rank", "0, 4", [0, 4]),
        ("space", "delta, factors", ["delta", "factors"]),
        ("strength  my lora", "0.5", [0.5]),
        ("clip mia", "0, 0.5..1 step 0.5", [0, 0.5, 1]),
        ("blocks my lora", "down:0,  down:0.5   mid:1\nSTYLE, 0.5", BLOCKS),
        ("blocks 2", "double.0-9:0..1 step 0.5 attn:0.8", [f"double.0-9:{n} attn:0.8" for n in (0, 0.5, 1)]),
    ],
)
def test_values(parameter, text, values):
    """Lists, ranges with both ends, names; each in the type of its parameter."""
    if values is None:
        with pytest.raises(MergeError, match="needs a step"):
            read_sweep(parameter, text)
        return
    name, found = read_sweep(parameter, text)
    assert found == values and name == " ".join(parameter.split())
    whole = parameter in ("seed", "rank", "svd_rank")
    assert all(isinstance(v, str | int if whole else str | float) for v in found)


@pytest.mark.parametrize(
    ("parameter", "text", "says"),
    [
        ("densty", "0.1", "did you mean 'density'"),
        ("", "0.1", "no parameter ''"),
        ("density", " , ", "no values for density; write for example 0.2"),
        ("method", "", "write for example linear, mean"),
        ("density", "0.1; 0.2", "cannot read '0.1; 0.2' as a value of density"),
        ("density", "0.1-0.9", "0.1..0.9 step 0.2"),
        ("density", "1.5", r"density 1.5 is outside \[0, 1\]"),
        ("density", "0.5..1.5 step 0.5", r"density 1.5 is outside"),
        ("density", "nan", "cannot read 'nan'"),
        ("density", "0.1..0.9", "needs a step"),
        ("density", "0.1..0.9 step 0", "must be above 0"),
        ("density", "0..1 step 0.001", "at most 100 values, but '0..1 step 0.001' has 1001"),
        ("seed", "1..60, 1..60", "at most 100 values, but there are 120"),
        ("rank", "8.5", "rank must be a whole number, not 8.5"),
        ("method", "linear, tise", "did you mean 'ties'"),
        ("strength mia", "400", r"strength 400 is outside \[-100, 100\]"),
        ("strength_mia", "1", "did you mean 'strength"),
        ("block mia", "down:0", "did you mean 'blocks mia'"),
        ("clip", "1", "Write the LoRA's name or number, as in 'clip 1'"),
        ("clip mia", "down:0", "cannot read 'down:0'"),
        ("blocks mia", "", "no values for blocks mia; write for example down:0..1"),
        ("blocks mia", "down:0, dwon:1", "unknown block selector 'dwon'"),
        ("blocks mia", "down:0..0.5", "needs a step"),
        ("blocks mia", "down:200", "outside"),
    ],
)
def test_refused(parameter, text, says):
    """One sentence that says what is wrong."""
    with pytest.raises(MergeError, match=says):
        read_sweep(parameter, text)


def test_labels():
    """Numbers as they were written, and one axis after the other."""
    choice = MethodChoice(None, None, (("density", 0.30000000000000004), ("seed", 2**53), ("method", "ties")))
    assert choice.label == f"density=0.3, seed={2**53}, method=ties"


def test_a_swept_method_keeps_the_parameters_that_it_has():
    """Among several methods a density is for those that know one; a single method must know it."""
    base = MethodChoice({"method": "ties", "density": 0.4, "majority_sign_method": None}, "delta")
    for swept, keywords in (
        ((("method", "linear"),), {"method": "linear"}),
        ((("density", 0.2), ("method", "linear")), {"method": "linear"}),
        ((("method", "dare_linear"), ("density", 0.2)), {"method": "dare_linear", "density": 0.2}),
        ((("density", 0.2),), {"method": "ties", "density": 0.2}),
    ):
        got = MethodChoice(base.method, base.space, swept).override().keywords
        assert got == keywords | {"space": "delta", "rank": None, "seed": 0}
    with pytest.raises(MergeError, match="density, which method linear does not have"):
        MethodChoice("linear", None, (("density", 0.2),)).override()
