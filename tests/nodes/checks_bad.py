"""Checks of what workflows and files may do: names of saved files stay inside the output folder."""

import torch
from comfy_inside import BASE, LORAS, NODES, check, merge_ops, run, text_of, three_loras, write_lora


def refused(says, node, **inputs):
    """The node's message has some words, and is one sentence."""
    try:
        run(node, **inputs)
    except merge_ops.MergeError as error:
        assert says in str(error), (says, str(error))
        assert str(error).isprintable(), str(error)
    else:
        raise AssertionError(f"not refused: {inputs}")


@check
def saved_names_are_confined():
    """Whatever the prefix of a workflow is; nothing is written anywhere."""
    stack, *_ = run("LoraAlloyStack", loras=text_of(three_loras("sd15")))
    lora, *_ = run("LoraAlloyMerge", stack=stack)
    outside = BASE / "outside"
    outside.mkdir(exist_ok=True)
    link = BASE / "output" / "link"
    if not link.is_symlink():
        link.symlink_to(outside)
    before = set(BASE.rglob("*.safetensors"))
    for prefix, says in (
        ("../x", "inside the output folder"),
        ("loras/../../x", "inside the output folder"),
        ("loras\\..\\..\\x", "inside the output folder"),
        ("/absolute/x", "inside the output folder"),
        ("C:\\x", "inside the output folder"),
        ("c:x", "inside the output folder"),
        ("%date:yyyy%/x", "inside the output folder"),
        ("a\0b", "inside the output folder"),
        ("two\nlines", "cannot be printed"),
        ("con/x", "reserved by Windows"),
        ("loras/nul", "reserved by Windows"),
        ("x" * 300, "is 300 bytes long"),
        ("link/x", "inside the output folder"),
    ):
        refused(says, "LoraAlloySave", lora=lora, filename_prefix=prefix)
        assert says in str(NODES["LoraAlloySave"].validate_inputs(prefix)), prefix  # before the graph runs
    assert "bytes long" in str(NODES["LoraAlloySave"].validate_inputs("x" * 250))  # with its number
    assert NODES["LoraAlloySave"].validate_inputs("loras/merged") is True
    assert NODES["LoraAlloySave"].validate_inputs(None) is True  # from another node
    assert set(BASE.rglob("*.safetensors")) == before
    (written,) = run("LoraAlloySave", lora=lora, filename_prefix="loras/%year%/x")
    assert (BASE / "output" / written).is_file()


@check
def pickles_are_never_read_by_nodes():
    """Whatever the library does on request."""
    tensors = {
        "lora_unet_a.lora_up.weight": torch.ones(2, 2),
        "lora_unet_a.lora_down.weight": torch.ones(2, 2),
    }
    torch.save(tensors, LORAS / "pickled.pt")
    try:
        refused("is a pickle", "LoraAlloyStack", loras="<lora:pickled.pt:1>")
    finally:
        (LORAS / "pickled.pt").unlink()


@check
def warnings_are_shown_on_the_node():
    """Of a file whose alpha is 0."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(LORAS / write_lora("good", "sd15", 2, 2, 1))
    zero = {key: tensor * 0 if key.endswith(".alpha") else tensor for key, tensor in tensors.items()}
    save_file(zero, LORAS / "zero.safetensors")
    stack, *_ = run("LoraAlloyStack", loras="<lora:zero:1>\n<lora:good:1>")
    _, report, *_ = run("LoraAlloyMerge", stack=stack)
    assert "zero: alpha is 0 in" in report, report
