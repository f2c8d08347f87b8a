"""Files that are dropped on an element of the page, as the browser gets them from a file manager."""

import merge_ops

TOAST = '.p-toast-message, [data-testid="toast"]'  # up to frontend 1.53, and later


def drop(editor, element, *paths):
    """Drop files and folders in the middle of an element."""
    box = element.bounding_box()
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "data": data}
    session = editor.page.context.new_cdp_session(editor.page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **at})
    session.detach()


def save_merge(loras, path, **how):
    """A merge of sd15_a and sd15_b, with its recipe."""
    parts = [merge_ops.load(loras / f"sd15_{letter}.safetensors") for letter in "ab"]
    how = {"weights": [0.7, -0.5], "method": "ties", "density": 0.4, "seed": 3} | how
    merge_ops.save(merge_ops.merge(parts, **how), path, rank=4)
    return path


def choose(editor, label):
    """Press a button of the menu that is open."""
    editor.page.locator(".lora-alloy-sets").get_by_role("button", name=label, exact=True).click()


def toast(editor, text):
    """Wait for what ComfyUI shows of it, and put it away."""
    shown = editor.page.locator(TOAST, has_text=text)
    shown.first.wait_for()
    shown.first.locator("button").last.click()
    shown.first.wait_for(state="detached")
