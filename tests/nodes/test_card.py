"""The card of a LoRA in the editor: what it shows, how it is worked and closed, in both renderers."""

import pytest

from tests.nodes.carded import FOLDER, carded
from tests.nodes.list_widget import add_list

OPEN = """async (name) => {
    const { openCard } = await import('/extensions/any_folder-name/js/files/card.js')
    const anchor = document.querySelector('.lora-alloy [data-part="add"]')
    anchor.focus()
    window.cardsClosed = 0
    window.card = openCard({ anchor, name, onClose: () => { window.cardsClosed++; anchor.focus() } })
}"""
# what the page would copy: the clipboard itself, or a selection where the page has none
CLIPBOARD = """(secure) => {
    window.copied = null
    const own = secure ? { writeText: async (text) => { window.copied = text } } : undefined
    Object.defineProperty(navigator, 'clipboard', { value: own, configurable: true })
    document.addEventListener('copy', () => { window.copied = document.activeElement.value })
}"""


@pytest.fixture(scope="module")
def folder(server):
    """The folder with LoRAs."""
    with carded(server.base) as made:
        yield made


@pytest.fixture
def opened(editor, folder):
    """Opens the card of a LoRA over a list, and waits until it is filled."""

    def show(name):
        add_list(editor)
        editor.page.evaluate(OPEN, f"{FOLDER}/{name}")
        card = editor.page.locator(".lora-alloy-card")
        card.locator(".body:not([aria-busy])").wait_for()
        return card

    return show


def facts_of(card):
    """The table on the card."""
    terms, values = card.locator("dt").all_inner_texts(), card.locator("dd").all_inner_texts()
    return dict(zip(terms, values, strict=True))


def test_what_it_shows(opened):
    """Facts, words, notes; training tags and the description folded away."""
    card = opened("mia.safetensors")
    facts = facts_of(card)
    assert (facts["Base model"], facts["Kind"]) == ("Pony", "LoRA · rank 8")
    assert (facts["Title"], facts["Author"], facts["File"]) == ("Mia", "ann", f"{FOLDER}/mia.safetensors")
    assert "MB" in facts["Size"] and facts["Strength"] == "0.7 (suggested)"
    assert card.locator(".chip").all_inner_texts() == ["mia", "red scarf"]
    assert card.get_by_text("Works best at 0.7.").is_visible()
    assert not card.get_by_text("Trained on 40 photos.").is_visible()
    card.get_by_text("Training tags (3)").click()
    assert card.locator(".tags li").nth(1).inner_text() == "red scarf 60 %"
    assert card.get_attribute("role") == "dialog" and card.get_attribute("aria-label") == "About mia"


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mia.safetensors", (300, 500)), ("tagged.safetensors", (900, 200))],
    ids=["tall", "wide"],
)
def test_the_picture_leaves_room_for_the_text(opened, name, shape):
    """It is shown whole, inside of its frame, and nothing is wider than the card."""
    card = opened(name)
    image = card.locator("img")
    image.evaluate("(image) => image.decode()")
    assert image.evaluate("(image) => [image.naturalWidth, image.naturalHeight]") == list(shape)
    frame, box = card.locator(".picture").bounding_box(), image.bounding_box()
    assert box["width"] <= frame["width"] and box["height"] <= frame["height"]
    assert abs(box["width"] / box["height"] - shape[0] / shape[1]) < 0.1
    assert card.locator("dl").bounding_box()["width"] > 200
    assert card.locator(".body").evaluate("(body) => body.scrollWidth <= body.clientWidth")


@pytest.mark.parametrize("secure", [True, False])
def test_copy(editor, opened, secure):
    """One word or all, with the clipboard and without; the focus stays where it was."""
    card = opened("mia.safetensors")
    editor.page.evaluate(CLIPBOARD, secure)
    card.locator(".chip").nth(1).click()
    card.get_by_text("Copied").wait_for()
    assert editor.page.evaluate("() => window.copied") == "red scarf"
    assert card.locator(".chip").nth(1).evaluate("(chip) => chip === document.activeElement")
    card.get_by_text("Copy all").click()
    editor.page.wait_for_function("() => window.copied === 'mia, red scarf'")


def test_a_merge(opened):
    """What it was made of."""
    card = opened("merged.safetensors")
    assert card.get_by_text("Merge of 2 LoRAs").is_visible()
    assert card.locator(".sources li").all_inner_texts() == ["ink\n0.8", "mia\n0.6 / 0.2"]
    assert "ties · density 0.3" in card.inner_text() and "strength 1.2" in card.inner_text()
    assert card.get_by_text("The preview is a video: merged.mp4").is_visible()
    assert card.get_by_text("None are noted in the file or beside it.").is_visible()


def test_what_cannot_be_read(opened):
    """In words: a broken file, and none at all."""
    card = opened("broken.safetensors")
    assert "broken.safetensors: this is a web page" in card.inner_text()
    assert "the notes in broken.json could not be read" in card.inner_text()
    assert facts_of(card)["Base model"] == "unknown"
    card = opened("gone.safetensors")
    assert "there is no LoRA file" in card.get_by_role("alert").inner_text()


def test_without_an_answer(editor, opened):
    """The server is away."""
    editor.page.route("**/lora_alloy/info*", lambda route: route.abort())
    card = opened("mia.safetensors")
    assert card.get_by_role("alert").inner_text() == "ComfyUI does not answer. Is it still running?"
    editor.page.unroute("**/lora_alloy/info*")


def test_keyboard(editor, opened):
    """Tab goes from part to part, Enter copies, Delete deletes nothing, Escape gives the focus back."""
    card = opened("mia.safetensors")
    editor.page.evaluate(CLIPBOARD, True)
    assert card.evaluate("(card) => card === document.activeElement")
    seen = []
    for _ in range(7):
        editor.page.keyboard.press("Tab")
        seen.append(
            editor.page.evaluate("() => document.activeElement.className || document.activeElement.tagName")
        )
    assert seen == ["close", "body", "all", "chip", "chip", "SUMMARY", "SUMMARY"]
    editor.page.keyboard.press("Delete")
    assert editor.page.evaluate("() => app.graph.nodes.length") == 1
    for _ in range(2):
        editor.page.keyboard.press("Shift+Tab")
    editor.page.keyboard.press("Enter")
    editor.page.wait_for_function("() => window.copied === 'red scarf'")
    editor.page.keyboard.press("Escape")
    card.wait_for(state="detached")
    focused = "() => [window.cardsClosed, document.activeElement.dataset.part]"
    assert editor.page.evaluate(focused) == [1, "add"]


def test_it_closes_beside(editor, opened):
    """A press anywhere else closes it, once; what it shows may be scrolled."""
    card = opened("mia.safetensors")
    card.locator(".body").hover()
    editor.page.mouse.wheel(0, 40)
    assert card.count() == 1
    editor.page.mouse.click(5, 500)
    card.wait_for(state="detached")
    assert editor.page.evaluate("() => window.cardsClosed") == 1


def test_targets_for_touch(opened):
    """At least 24 pixels."""
    card = opened("mia.safetensors")
    for button in card.locator("button, summary").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 24, button.inner_text()
