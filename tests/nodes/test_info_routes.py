"""What the pack's requests answer about LoRA files, asked as the editor asks them."""

import json
import urllib.error
import urllib.request
from urllib.parse import quote

import pytest

from tests.nodes.carded import FOLDER, RECIPE, carded, picture
from tests.nodes.lora_files import write_lora


@pytest.fixture(scope="module")
def folder(server):
    """The folder with LoRAs."""
    with carded(server.base) as made:
        yield made


def status_of(server, path, **headers):
    """``(status, headers, body)`` of a request."""
    request = urllib.request.Request(server.url + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def about(server, name):
    """The facts about a LoRA of the folder."""
    return server.get(f"/lora_alloy/info?name={quote(f'{FOLDER}/{name}')}")


def test_with_a_sidecar(server, folder):
    """Everything that the card shows."""
    facts = about(server, "mia.safetensors")
    expected = {
        "name": f"{FOLDER}/mia.safetensors",
        "base": "Pony",
        "architecture": "sdxl",
        "kind": "LoRA",
        "rank": 8,
        "ranks": [8],
        "trigger_words": ["mia", "red scarf"],
        "words_from": "mia.metadata.json",
        "title": "Mia",
        "author": "ann",
        "strength": 0.7,
        "notes": "Works best at 0.7.",
        "description": "Trained on 40 photos.",
        "recipe": None,
        "problems": [],
        "stated": ["Pony", "sdxl_base_v1-0"],
    }
    assert facts.items() >= expected.items()
    assert facts["layers"] > 500
    stat = (folder / "mia.safetensors").stat()
    assert (facts["size"], facts["modified"]) == (stat.st_size, int(stat.st_mtime * 1000))
    assert facts["training_tags"][1] == {"text": "red scarf", "count": 12, "share": 0.6}


def test_with_metadata_alone(server, folder):
    """Modelspec, with a thumbnail inside; and training tags, of which one is in all images."""
    facts = about(server, "style/ink, 50% #1.safetensors")
    assert facts["trigger_words"] == ["ink drawing", "(fine, lines:1.1)"]
    assert (facts["title"], facts["author"], facts["license"]) == ("Ink", "ben", "CC0-1.0")
    assert (facts["base"], facts["description"]) == ("Flux.1", "Ink on paper.")
    assert facts["preview"].startswith("data:image/png;base64,")
    tagged = about(server, "tagged.safetensors")
    assert (tagged["base"], tagged["trigger_words"]) == ("SD 1.5", ["mia"])
    assert tagged["words_from"] == "ss_tag_frequency"


def test_a_merge(server, folder):
    """Its recipe; a video beside it is named."""
    facts = about(server, "merged.safetensors")
    assert [source["weight"] for source in facts["recipe"]["sources"]] == [0.8, 0.6]
    assert (facts["recipe"]["method"], facts["recipe"]["scale"]) == ("ties", 1.2)
    assert facts["recipe"]["params"]["density"] == RECIPE["params"]["density"]
    assert (facts["preview"], facts["video"]) == (None, "merged.mp4")


def test_a_peft_folder(server, folder):
    """By its file, and by the name of the folder."""
    for name in ("peft/adapter_model.safetensors", "peft"):
        facts = about(server, name)
        assert (facts["base"], facts["kind"]) == ("SDXL", "LoRA")
        assert facts["stated"] == ["stabilityai/stable-diffusion-xl-base-1.0"]


def test_a_broken_file(server, folder):
    """Says what is wrong with it and with its notes, and what the file system knows."""
    facts = about(server, "broken.safetensors")
    assert (facts["base"], facts["kind"], facts["rank"], facts["size"]) == (None, None, None, 6)
    assert len(facts["problems"]) == 2
    assert "broken.safetensors" in facts["problems"][0]
    assert facts["problems"][1] == "the notes in broken.json could not be read"


def test_a_changed_sidecar_is_read_again(server, folder):
    """And a file that was written anew."""
    write_lora(folder / "new.safetensors", "sd1", only="attn")
    assert about(server, "new.safetensors")["trigger_words"] == []
    asked = {"names": [f"{FOLDER}/new.safetensors"]}
    assert server.post("/lora_alloy/bases", asked)[1]["bases"] == {f"{FOLDER}/new.safetensors": "SD 1.5"}
    (folder / "new.json").write_text(json.dumps({"activation text": "new"}))
    write_lora(folder / "new.safetensors", "sdxl", only="attn")
    assert about(server, "new.safetensors")["trigger_words"] == ["new"]
    assert server.post("/lora_alloy/bases", asked)[1]["bases"] == {f"{FOLDER}/new.safetensors": "SDXL"}
    (folder / "new.metadata.json").write_text(json.dumps({"base_model": "Illustrious"}))
    assert server.post("/lora_alloy/bases", asked)[1]["bases"] == {f"{FOLDER}/new.safetensors": "Illustrious"}


def test_bases(server, folder):
    """Of many at once; what is unknown is null."""
    names = [
        "mia.safetensors",
        "merged.safetensors",
        "broken.safetensors",
        "gone.safetensors",
        "../../secret",
    ]
    status, answer = server.post("/lora_alloy/bases", {"names": [f"{FOLDER}/{name}" for name in names]})
    assert status == 200
    assert list(answer["bases"].values()) == ["Pony", "Wan", None, None, None]


@pytest.mark.parametrize(
    "body", [None, [], {}, {"names": "x"}, {"names": [1]}, {"names": ["x"] * 501}, {"names": ["x" * 5000]}]
)
def test_bad_questions_about_bases(server, body):
    """Are 400, with a reason."""
    status, answer = server.post("/lora_alloy/bases", body)
    assert status == 400 and answer["error"]


def test_bytes_that_are_no_json(server):
    """As well."""
    request = urllib.request.Request(f"{server.url}/lora_alloy/bases", b"\xff\xfe", method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=600)
    assert caught.value.code == 400


@pytest.mark.parametrize("what", ["info", "preview"])
@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("", 400),
        ("x" * 5000, 400),
        ("a%00b", 400),
        ("gone", 404),
        ("..", 404),
        ("../mia.safetensors", 404),
        ("..%2F..%2Fserver.log", 404),
        ("..%5C..%5Cserver.log", 404),
        ("%2Fetc%2Fpasswd", 404),
        (".", 404),
        (f"{FOLDER}/../../../server.log", 404),
        ("mia.preview.png", 404),
        (f"{FOLDER}/mia.metadata.json", 404),
    ],
)
def test_names_of_no_lora(server, folder, what, name, status):
    """Nothing but the LoRA files that ComfyUI lists can be asked for."""
    found, headers, body = status_of(server, f"/lora_alloy/{what}?name={name}")
    assert found == status, body
    assert json.loads(body)["error"] and headers["Content-Type"].startswith("application/json")


def test_the_picture(server, folder):
    """With its type, and not sent again while it is the same."""
    facts = about(server, "mia.safetensors")
    status, headers, body = status_of(server, facts["preview"])
    assert (status, body) == (200, picture(300, 500))
    assert headers["Content-Type"] == "image/png" and headers["X-Content-Type-Options"] == "nosniff"
    assert status_of(server, facts["preview"], **{"If-None-Match": headers["ETag"]})[0] == 304
    (folder / "mia.preview.png").write_bytes(picture(301, 500))
    assert status_of(server, facts["preview"], **{"If-None-Match": headers["ETag"]})[0] == 200
    assert about(server, "mia.safetensors")["preview"] != facts["preview"]
    wide = about(server, "tagged.safetensors")["preview"]
    assert status_of(server, wide)[1]["Content-Type"] == "image/webp"


def test_links_out_of_the_folder(server, folder, tmp_path):
    """Lead nowhere: neither a picture nor notes; the LoRA itself may be a link, as ComfyUI loads it."""
    write_lora(tmp_path / "far.safetensors", "sd1", only="attn")
    (tmp_path / "secret.png").write_bytes(picture(4, 4))
    (tmp_path / "secret.json").write_text(json.dumps({"notes": "secret"}))
    (folder / "linked.safetensors").symlink_to(tmp_path / "far.safetensors")
    (folder / "linked.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked.json").symlink_to(tmp_path / "secret.json")
    facts = about(server, "linked.safetensors")
    assert (facts["base"], facts["preview"], facts["notes"]) == ("SD 1.5", None, None)
    assert status_of(server, f"/lora_alloy/preview?name={FOLDER}/linked.safetensors")[0] == 404


def test_a_picture_that_is_too_large(server, folder):
    """Is not sent."""
    with (folder / "merged.png").open("wb") as file:
        file.truncate((32 << 20) + 1)
    assert about(server, "merged.safetensors")["preview"] is None
    assert status_of(server, f"/lora_alloy/preview?name={FOLDER}/merged.safetensors")[0] == 404
