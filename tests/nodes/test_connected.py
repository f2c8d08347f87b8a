"""Which file the model of a node comes from, as the graph in the editor tells."""

import pytest

from tests.nodes.list_widget import EMPTY

FILE = {"kind": "checkpoints", "name": "tiny_sd15.safetensors"}
MAKE = """
    const add = (type, graph = app.graph) => {
        const node = LiteGraph.createNode(type)
        graph.add(node)
        return node
    }
    const slot = (node, type) => node.inputs.findIndex((input) => input.type === type)
    const loader = () => add('CheckpointLoaderSimple')
    const ours = (type = 'LoraAlloyLoader') => add(type)
    const join = (...nodes) => nodes.reduce((from, to) => {
        const out = Math.max(0, from.outputs.findIndex((output) => output.type === 'MODEL'))
        from.connect(out, to, Math.max(slot(to, 'MODEL'), 0))
        return to
    })
    const wrap = (...nodes) => app.graph.convertToSubgraph(new Set(nodes)).node
"""
ASK = """
    const { fileOfConnected } = await import('/extensions/any_folder-name/js/files/connected.js')
    return fileOfConnected(asked)
"""
CASES = {
    "direct": ("const asked = ours(); join(loader(), asked)", FILE),
    "through LoRA, reroute and another of ours": (
        "const asked = ours(); join(loader(), add('LoraLoaderModelOnly'), add('Reroute'), ours(), asked)",
        FILE,
    ),
    "bypassed LoRA": (
        "const asked = ours(), lora = add('LoraLoaderModelOnly'); lora.mode = 4; join(loader(), lora, asked)",
        FILE,
    ),
    "diffusion model": (
        "const asked = ours(), from = add('UNETLoader'); from.widgets[0].value = 'x.safetensors';"
        " join(from, asked)",
        {"kind": "diffusion_models", "name": "x.safetensors"},
    ),
    "stack before a loader": (
        "const asked = ours('LoraAlloyStack'), end = ours(); join(loader(), end);"
        " asked.connect(0, end, end.inputs.findIndex(({ name }) => name === 'stack'))",
        FILE,
    ),
    "loader in a subgraph": (
        "const asked = ours(), from = loader(), lora = add('LoraLoaderModelOnly');"
        " join(from, lora, asked); wrap(from, lora)",
        FILE,
    ),
    "asked from within a subgraph": (
        "const inner = ours(), after = add('ModelSamplingDiscrete'); join(loader(), inner, after);"
        " const host = wrap(inner);"
        " const asked = host.subgraph.nodes.find(({ type }) => type === 'LoraAlloyLoader')",
        FILE,
    ),
    "two nodes show the subgraph": (
        "const inner = ours(); join(loader(), inner, add('ModelSamplingDiscrete')); const host = wrap(inner);"
        " app.graph.add(LiteGraph.createNode(host.type));"
        " const asked = host.subgraph.nodes.find(({ type }) => type === 'LoraAlloyLoader')",
        None,
    ),
    "nothing connected": ("const asked = ours()", None),
    "a node that nobody knows": ("const asked = ours(); join(add('ImageOnlyCheckpointLoader'), asked)", FILE),
    "no way to a file": (
        "const asked = ours(), merge = add('ModelMergeSimple'); join(merge, asked)",
        None,
    ),
}


@pytest.mark.parametrize(("made", "file"), CASES.values(), ids=list(CASES))
def test_the_file_of_the_connected_model(editor_page, made, file):
    """Followed back to a loader, and nothing where that is unclear."""
    editor_page.page.keyboard.press("Escape")
    editor_page.page.evaluate(EMPTY)
    assert editor_page.page.evaluate(f"async () => {{ {MAKE}; {made}; {ASK} }}") == file


def test_a_circle_ends(editor_page):
    """Nodes whose models lead to each other."""
    editor_page.page.evaluate(EMPTY)
    made = "const asked = ours(), other = ours(); join(asked, other, asked)"
    assert editor_page.page.evaluate(f"async () => {{ {MAKE}; {made}; {ASK} }}") is None
