"""Which files the picker lists for what is typed, and in which order: its scripts alone, in Chromium."""

import random

LISTED = """async (files) => {
    const { catalogOf } = await import('/js/files/catalog.js')
    return catalogOf(files).map(({ folder, stem }) => [folder, stem])
}"""
FOUND = """async ([files, ...queries]) => {
    const { catalogOf } = await import('/js/files/catalog.js')
    const { Search } = await import('/js/files/search.js')
    const search = new Search(catalogOf(files))
    const names = (entries) => entries.map(({ file }) => file)
    return queries.map((query) => {
        const { holding, similar } = search.find(query)
        return [names(holding), names(similar)]
    })
}"""
MARKED = """async ([file, query]) => {
    const { catalogOf } = await import('/js/files/catalog.js')
    const { marksOf, wordsOf } = await import('/js/files/search.js')
    const [entry] = catalogOf([file])
    return [...marksOf(entry, wordsOf(query))].map((at) => (entry.folder + entry.stem)[at]).join('')
}"""


def found(scripts, files, *queries):
    """What each query finds, by one search that goes on from query to query."""
    return scripts.evaluate(FOUND, [files, *queries])


def test_root_files_come_first_and_each_folder_once(scripts):
    """However the server sorts them; numbers count as numbers, and a folder comes before what lies in it."""
    files = ["b/2.safetensors", "z.safetensors", "b/c/x.safetensors", "b10/x.safetensors", "B2/x.safetensors"]
    files += ["b/10.safetensors", "A/x.safetensors", "b\\1.safetensors", "a.safetensors", "b c/x.safetensors"]
    listed = scripts.evaluate(LISTED, files)
    assert listed[:2] == [["", "a"], ["", "z"]]
    assert listed[2:] == [
        ["A/", "x"], ["b/", "1"], ["b/", "2"], ["b/", "10"], ["b/c/", "x"], ["b c/", "x"], ["B2/", "x"],
        ["b10/", "x"],
    ]  # fmt: skip


def test_peft_folders_have_the_name_of_the_folder(scripts):
    """Also where their last parts are equal, and beside a file of that name."""
    files = [f"{run}/checkpoint-500/adapter_model.safetensors" for run in ("one", "two")]
    files += ["mia/adapter_model.safetensors", "mia.safetensors", "adapter_model.safetensors"]
    listed = scripts.evaluate(LISTED, files)
    assert listed == [
        ["", "adapter_model"], ["", "mia"], ["", "mia"],
        ["one/", "checkpoint-500"], ["two/", "checkpoint-500"],
    ]  # fmt: skip
    assert found(scripts, files, "two 500") == [[[files[1]], []]]


def test_names_that_contain_the_words_come_alone(scripts):
    """Similar names are offered where few contain the words, after those; a root file is not in a folder."""
    neon = [f"neon_{i}.safetensors" for i in range(12)]
    similar = ["new_ocean.safetensors", "nine/eon.safetensors"]
    ((many, none),) = found(scripts, [*similar, *neon], "neon")
    assert sorted(many) == sorted(neon) and none == []
    ((few, more),) = found(scripts, [*similar, *neon[:3]], "NEON")
    assert few == neon[:3] and sorted(more) == sorted(similar)
    assert found(scripts, neon, "neonx", "zzz") == [[[], []], [[], []]]


def test_what_people_type_and_paste(scripts):
    """Whole names, the other slash, both Unicode forms, several words, capitals that become two letters."""
    files = [
        "style/Ink wash.safetensors",
        "cafe\u0301.safetensors",
        "\u0130stanbul.safetensors",
        "水墨_v2.safetensors",
    ]
    queries = [
        "ink wash.safetensors",
        "style\\ink",
        "wash INK",
        "caf\u00e9",
        "stanbul",
        "水墨",
        "ink wash.safe",
    ]
    assert [holding for holding, _ in found(scripts, files, *queries)] == [
        files[:1], files[:1], files[:1], files[1:2], files[2:3], files[3:], files[:1],
    ]  # fmt: skip
    assert scripts.evaluate(MARKED, [files[0], "wash st"]) == "washst"
    assert scripts.evaluate(MARKED, [files[2], "stanbul"]) == "stanbul"
    assert scripts.evaluate(MARKED, ["a/neon.safetensors", "nn"]) == "nn"


def test_a_search_that_goes_on_finds_the_same(scripts):
    """While a query grows, shrinks or is replaced, every result is that of a new search."""
    draw = random.Random(0)
    words = ["neon", "ink", "one", "style", "v2", "portrait"]
    files = [
        f"{draw.choice(['', 'a/', 'b/'])}{'_'.join(draw.sample(words, 3))}{i}.safetensors" for i in range(300)
    ]
    queries = [
        "n",
        "ne",
        "neo",
        "neon",
        "neon i",
        "neon ink",
        "neon in",
        "ink neon",
        "i",
        "",
        "sty 1",
        "sty 12",
        "ty",
    ]
    queries += ["v2.s", "v2.st", "v2", "neno", "nenok", "neno"]
    assert found(scripts, files, *queries) == [found(scripts, files, query)[0] for query in queries]
