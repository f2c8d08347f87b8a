"""The English texts of the nodes, for translators and for ComfyUI, as a running server gives them.

The tooltip of the method picker is left out: it is made from the registry, and the editor shows that.

    python -m tests.nodes.locales SERVER_URL

As a script it writes ``locales/en/nodeDefs.json`` anew; ``locales/zh`` is written by hand.
"""

import json
import sys
import urllib.request
from pathlib import Path

ENGLISH = Path(__file__).parents[2] / "locales" / "en" / "nodeDefs.json"
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
PICKER = "method"  # the input with the methods of the registry


def inputs_of(node, methods=None):
    """``{name: options}`` of a node's inputs, those that a choice brings along as ``choice.name``.

    With ``methods`` only these methods of a picker bring theirs along.
    """
    found = {}
    for group in ("required", "optional"):
        for name, (kind, options) in node["input"].get(group, {}).items():
            found[name] = options
            for choice in options["options"] if kind == DYNAMIC else ():
                if name == PICKER and methods is not None and choice["key"] not in methods:
                    continue
                found |= {
                    f"{name}.{inner}": more for inner, more in inputs_of({"input": choice["inputs"]}).items()
                }
    return found


def nested_tooltips(info, translated):
    """Tooltips that the editor takes from the definition; web/js/zh has their translations.

    Of a picker of methods only those of the methods in ``translated``: the others are shown in English.
    """
    nodes = (node for name, node in info.items() if name.startswith("LoraAlloy"))
    found = (inputs_of(node, translated) for node in nodes)
    return {o["tooltip"] for inputs in found for name, o in inputs.items() if "." in name}


def english(info):
    """``nodeDefs.json`` as the editor looks it up: with ``_`` for the dots of names."""
    texts = {}
    for name, node in sorted(info.items()):
        if not name.startswith("LoraAlloy"):
            continue
        inputs = {}
        for given, options in inputs_of(node).items():
            entry = {"name": given.split(".")[-1]}
            if "." not in given and not (given == PICKER and "options" in options):
                entry["tooltip"] = options["tooltip"]
            inputs[given.replace(".", "_")] = entry
        outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
        texts[name] = {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": inputs,
            "outputs": {str(i): {"name": n, "tooltip": t} for i, (n, t) in enumerate(outputs)},
        }
    return texts


def main(url):
    """Write the file."""
    with urllib.request.urlopen(f"{url}/object_info", timeout=60) as answer:
        texts = english(json.load(answer))
    ENGLISH.parent.mkdir(parents=True, exist_ok=True)
    ENGLISH.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
