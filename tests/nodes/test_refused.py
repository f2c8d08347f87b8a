"""What is refused when it is queued: said once, on the input that it is about, until that is edited."""

import pytest

from tests.nodes.list_widget import EMPTY, ListWidget
from tests.nodes.pack import LIST, one_node

MARKS = """() => {
    const node = app.graph.getNodeById('10')
    const errors = app.lastNodeErrors?.['10']?.errors ?? []
    return {
        node: Boolean(node.has_errors),
        inputs: node.inputs.filter((i) => i.hasErrors).map((i) => i.name),
        errors: errors.map((e) => e.extra_info.input_name),
    }
}"""


def refused(server, workflow, node="10"):
    """The errors of a node of a workflow that is not accepted."""
    status, answer = server.post("/prompt", {"prompt": workflow})
    assert status == 400, answer
    return answer["node_errors"][node]["errors"]


def sweep(**inputs):
    """A sweep before the one node."""
    inputs = {"parameter": "density", "values": "0.2, 0.5"} | inputs
    return one_node(sweep=["11", 0]) | {"11": {"class_type": "LoraAlloySweep", "inputs": inputs}}


@pytest.mark.parametrize(
    ("inputs", "about", "says"),
    [
        ({"loras": "<lora:gone:1>"}, "loras", "there is no LoRA file 'gone'"),
        ({"method": "tise"}, "loras", "did you mean 'ties'"),
        ({"method": "ties", "method.densty": 0.5}, "loras", "did you mean 'density'"),
        ({"method": "linear", "method.density": 0.5}, "loras", "method linear has no parameter 'density'"),
        ({"density": 0.5}, "loras", "did you mean 'method.density'?"),
        ({"strenght": 0.5}, "loras", "did you mean 'strength'"),
        ({"method": "ties", "method.density": 1.5}, "method.density", ""),
        ({"rank": -1}, "rank", ""),
    ],
)
def test_said_once(server, inputs, about, says):
    """Misspelled names as well, which ComfyUI itself would drop; its own checks of values still work."""
    (error,) = refused(server, one_node(**inputs))
    assert error["extra_info"]["input_name"] == about, error
    assert says in error["details"], error


def test_other_nodes_say_it_once(server):
    """Merge Method and Sweep Parameter."""
    (error,) = refused(server, sweep(values="0.2, 7"), "11")
    assert "density" in error["details"]
    method = {"class_type": "LoraAlloyMethod", "inputs": {"method": "ties", "method.densty": 0.5}}
    (error,) = refused(server, sweep(method=["12", 0]) | {"12": method}, "12")
    assert "did you mean 'density'" in error["details"]
    assert error["extra_info"]["input_name"] == "method"


def test_what_is_right_is_accepted(server):
    """Numbers as text, parameters left out, a method of PEFT's; two workflows do not mix."""
    for inputs in (
        {"method": "ties", "method.density": "0.5"},
        {
            "method": "peft",
            "method.combination_type": "ties_svd",
            "method.density": 0.5,
            "method.svd_rank": 4,
        },
        {"method": "linear", "method.density": None},
        {"method": "ties", "method.density": None},
    ):
        entry = server.run(one_node(**inputs))
        assert entry["status"]["status_str"] == "success", entry["status"]


def test_an_error_is_named_shortly(server):
    """The name of its class, with no folder in it."""
    entry = server.run(one_node(loras="<lora:flux_only:1>"))
    error = dict(entry["status"]["messages"])["execution_error"]
    assert error["exception_type"] == "merge_ops.IncompatibleLoraError"


def test_the_mark_goes_with_the_next_edit(editor):
    """Only the list is marked; switching the row off is an edit."""
    editor.page.evaluate(EMPTY)
    editor.load(one_node(method="ties", loras=f"<lora:gone:1>\n{LIST}"))
    editor.page.evaluate("() => { app.queuePrompt(0, 1) }")
    editor.page.wait_for_function(
        "() => app.lastNodeErrors?.['10'] && app.graph.getNodeById('10').has_errors"
    )
    editor.drawn()
    marks = editor.page.evaluate(MARKS)
    assert marks["inputs"] == ["loras"] and marks["errors"] == ["loras"]
    rows = ListWidget(editor, "10")
    rows.part("on:0").click()
    rows.becomes("# <lora:gone:1>", *LIST.splitlines())
    clear = f"() => {{ const m = ({MARKS})(); return !m.node && !m.inputs.concat(m.errors).length }}"
    try:
        editor.page.wait_for_function(clear, timeout=20_000)
    except Exception as error:
        raise AssertionError(editor.page.evaluate(MARKS)) from error
