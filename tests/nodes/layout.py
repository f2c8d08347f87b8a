"""Where the nodes of the example workflows lie, so that their wires neither cross nor run under a node."""

import re
from dataclasses import dataclass

GAP, BETWEEN, TITLE = 60, 130, 30
LANE = 34  # between wires that run side by side below the nodes
SAYS = 100  # below a node, for what it says after a run
# seeds stay as they are: a picture that is queued again is the same
FIX_SEEDS = """() => {
    for (const node of window.app.graph.nodes) {
        for (const widget of node.widgets ?? []) {
            if (widget.name === "control_after_generate") widget.value = "fixed"
        }
    }
}"""
ADD_NOTE = """([title, text]) => {
    const node = window.LiteGraph.createNode("MarkdownNote")
    window.app.graph.add(node)
    node.title = title
    node.setSize([340, 230])
    node.widgets[0].value = text
    return String(node.id)
}"""
SIZES = """(widths) => Object.fromEntries(window.app.graph.nodes.map((node) => {
    if (node.type in widths) node.setSize([widths[node.type], Math.max(node.computeSize()[1], 100)])
    return [String(node.id), [...node.size.map(Math.round), Boolean(node.loraAlloyReport)]]
}))"""
WIDTHS = {
    "CLIPTextEncode": 300, "EmptyLatentImage": 300, "CheckpointLoaderSimple": 300, "LoraAlloySweep": 300,
    "LoraAlloyLoader": 400, "LoraAlloyStack": 400, "LoraAlloyMethod": 400, "LoraAlloyRecord": 420,
}  # fmt: skip
PLACE = """([places, lanes]) => {
    const graph = window.app.graph
    for (const [id, at] of Object.entries(places)) graph.getNodeById(id).pos = at
    for (const [[source, output, target], points] of lanes) {
        const id = graph.getNodeById(source).outputs[output].links
            .find((each) => String(graph.links.get(each).target_id) === target)
        for (const point of points) graph.createReroute(point, graph.links.get(id))
    }
}"""
SAMPLING = ["3 level 4", "8 level 4", "9 level 4"]


@dataclass(frozen=True)
class Layout:
    """Columns of node ids from left to right; in a column each node lies below the last.

    "14 under 13" lies below node 13 as well, "6 level 4+70" 70 lower than node 4 begins. ``lanes`` are
    (node, output, node) of wires that run below everything, the upper first.
    """

    columns: list[list[str]]
    lanes: tuple[tuple[str, int, str], ...]
    title: str  # of the note
    note: str


VAE = (("4", 2, "8"),)
FILES = "Choose your checkpoint, then your LoRAs: click their names in the list."
LAYOUTS = {
    "Load and merge LoRAs": Layout(
        [["note"], ["4"], ["10"], ["6 level 4+70", "7", "5"], ["3"], ["8"], ["9"]],
        VAE,
        "Two LoRAs in one node",
        f"**Load & Merge LoRAs** takes the place of your Load LoRA nodes.\n\n1. {FILES}\n2. Set the "
        "strengths, write a prompt, and press Run.\n3. Try another **method**: `linear` adds the LoRAs, as a "
        "chain of Load LoRA nodes does; *Choose a method* says what the others are for.",
    ),
    "Compare two methods": Layout(
        [
            ["note"], ["4 level 10+490"], ["10", "210 under 5"],
            ["6 level 10+70", "7", "5", "26 level 210+70", "27", "25"],
            ["3", "23 level 210"], ["28 level 210"], ["29 level 210"], ["8"], ["9"],
        ],
        (("4", 2, "28"), *VAE),
        "The same LoRAs, merged in two ways",
        f"Two merges with the same seed, so that what differs comes from the method.\n\n1. {FILES} Use the "
        "same in both lists.\n2. Choose the two methods.\n3. Write the same prompt in both rows, and press "
        "Run.",
    ),
    "Sweep settings in a grid": Layout(
        [
            ["note", "16 level 17"], ["4", "17 level 5"], ["10"], ["6 level 4+70", "7", "5"], ["3"], ["8"],
            ["18"], ["9"],
        ],
        (*VAE, ("17", 1, "18")),
        "Every setting beside the others",
        "Each **Sweep Parameter** runs all that follows once for each value; the grid labels the pictures."
        f"\n\n1. {FILES}\n2. Press *What can vary* to choose a *parameter*, and write its *values*.\n"
        "3. Press Run. Two sweeps make a table: three densities by two methods are six pictures.",
    ),
    "Merge step by step": Layout(
        [["note"], ["11", "12", "4 under 13"], ["13"], ["14 level 4"], ["6 level 4+70", "7", "5"],
         *([node] for node in SAMPLING)],
        VAE,
        "One node for each step",
        f"What Load & Merge LoRAs does in one node: collect, choose a method, merge, apply.\n\n1. {FILES}\n"
        "2. Set the method, and press Run.\n3. The merged LoRA can also go to **Save LoRA**. Connect *model* "
        "and *clip* to Merge LoRAs if a LoRA is a DoRA.",
    ),
    "Merge for the text encoder only": Layout(
        [["note"], ["11", "12", "4 under 13"], ["13"], ["14 level 4+70"], ["6 level 4+70", "7", "5"],
         *([node] for node in SAMPLING)],
        VAE,
        "LoRAs on CLIP alone",
        f"The merge changes how the prompt is read; the diffusion model stays as it is.\n\n1. {FILES} They "
        "need layers for the text encoder.\n2. Press Run.",
    ),
    "Merge LoRAs into a file": Layout(
        [["note"], ["11", "12 level 13+90"], ["16", "13"], ["15 level 13"]],
        (),
        "Several LoRAs become one file",
        "Needs no checkpoint.\n\n1. Choose your LoRAs: click their names in the list.\n2. Press Run: "
        "**Inspect LoRAs** says whether they fight, and **Save LoRA** writes the file and says what it keeps."
        "\n3. A rank makes the file smaller; 0 keeps everything.",
    ),
    "Merge the LoRAs of other loaders": Layout(
        [
            ["note"], ["4"], ["20"], ["21"], ["10"], ["16 level 10+480"], ["15 level 10+330"],
            ["6 level 4+70", "7", "5"], *([node] for node in SAMPLING),
        ],
        VAE,
        "Your loaders stay as they are",
        "**Merge Loaded LoRAs** takes the LoRAs that are on a model already and merges them anew.\n\n1. "
        "Choose your checkpoint and the LoRA of each Load LoRA node; loaders of other packs work as well."
        "\n2. Choose the method, and press Run. The node says what it took from the model.\n3. **Inspect "
        "LoRAs** says whether they fight, and **Save LoRA** writes the merge as one file.",
    ),
    "Strengths over the sampling": Layout(
        [["note"], ["4"], ["10"], ["6 level 4+70", "7", "5"], ["3"], ["8"], ["9"]],
        VAE,
        "A LoRA that comes and goes",
        "`steps=` in a row says in which part of the sampling a LoRA acts, and how strongly.\n\n1. "
        f"{FILES} Right-click a row to set its steps.\n2. `steps=0.25-1` leaves out the first quarter; "
        "`steps=0:1 0.6:1 1:0.4` is a curve.\n3. Press Run. The LoRAs of each part are merged by the method; "
        "any sampler works.",
    ),
    "Extract a LoRA from a model": Layout(
        [["note"], ["4"], ["10"], ["24 level 4"], ["15 level 4"]],
        (("4", 1, "24"), ("4", 0, "24")),
        "A changed model becomes a file",
        "The difference of two models as a LoRA.\n\n1. Choose your checkpoint and your LoRAs; or connect a "
        "second checkpoint to *tuned* in their place.\n2. Choose the largest rank, and how much of the "
        "difference each layer keeps.\n3. Press Run. **Extract LoRA** says what it holds, and **Save LoRA** "
        "writes the file.",
    ),
    "Distill four LoRAs into one": Layout(
        [
            ["note"], ["4"], ["20"], ["22 under 15"], ["21", "15", "6 level 22+70", "7", "5"], ["3 level 22"],
            ["8 level 22"], ["9 level 22"],
        ],
        VAE,
        "LoRAs that spoil each other, kept apart",
        f"Trains one LoRA that answers as each of the four does alone. It takes minutes, once.\n\n1. {FILES}"
        "\n2. Write in each row what that LoRA was trained on.\n3. Press Run. **Measure Merge** shows what "
        "is kept of each, and **Save LoRA** writes the file, for any Load LoRA node.",
    ),
}  # fmt: skip


def positions(layout, sizes):
    """``{id: (x, y)}`` of the nodes, and the two points that the wire of each lane goes through.

    ``sizes`` are ``{id: (width, height, whether it says something)}``.
    """
    found, left, edges = {}, 40, {}
    places = {spec.split()[0]: (spec, before) for column in layout.columns for spec, before in _pairs(column)}

    def top(node):
        if node not in found:
            spec, before = places[node]
            level = re.search(r"level (\S+?)(?:\+(\d+))?$", spec)
            tops = [bottom(before) + GAP if before else 80]
            if level:
                tops.append(top(level[1]) + int(level[2] or 0))
            if under := re.search(r"under (\S+)", spec):
                tops.append(bottom(under[1]) + GAP)
            found[node] = max(tops)
        return found[node]

    def bottom(node):
        _, height, speaks = sizes[node]
        return top(node) + height + (SAYS if speaks else 0)

    at = {}
    for column in layout.columns:
        ids = [spec.split()[0] for spec in column]
        width = max(sizes[node][0] for node in ids)
        for node in ids:
            at[node] = (left, top(node))
            edges[node] = (left, left + sizes[node][0])
        left += width + BETWEEN
    lowest = max(bottom(node) for node in at)
    outputs = list(dict.fromkeys((source, output) for source, output, _ in layout.lanes))
    lanes = []
    for i, (source, output, target) in enumerate(layout.lanes):
        y = lowest + TITLE + LANE * i
        right = edges[source][1] + 30 + 64 * (len(outputs) - 1 - outputs.index((source, output)))
        lanes.append([(right, y), (edges[target][0] - 30, y)])
    return at, lanes


def _pairs(column):
    """Each entry with the id of the one above it."""
    ids = [None, *(spec.split()[0] for spec in column)]
    return zip(column, ids, strict=False)
