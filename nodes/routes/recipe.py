"""``POST /lora_alloy/recipe``: a recipe as rows of the list.

The body is ``{"name": LORA}`` for a saved merge in the loras folders, or ``{"text": RECIPE}`` in a layout
that ``merge_ops.recipes`` reads. The answer has the rows as the text of a list (``rows``) and their
``count``, the values of a node's ``widgets``, the sources that are ``missing``, and ``warnings``.
``searchable`` says that the missing ones may lie here under other names; ``"by_content": true`` looks for
them, and reads every LoRA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...merge_ops.errors import ParameterError
from ..model.files.lora_files import find_path
from .bodies import in_thread, read_body, refusing

if TYPE_CHECKING:
    from ...merge_ops.recipes import Recipe

PATH = "/lora_alloy/recipe"
_MAX_YAML = 100_000  # characters: about a second of reading; as much JSON takes a thousandth of that


def add(routes: Any) -> None:
    """Add the request to a route table of aiohttp."""
    from aiohttp import web

    @routes.post(PATH)
    @refusing
    async def post(request: web.Request) -> web.Response:
        asked = await read_body(request)

        def is_gone() -> bool:
            return request.transport is None or request.transport.is_closing()

        return web.json_response(await in_thread(_answer, asked, is_gone))


def _answer(asked: dict[str, Any], is_gone: Callable[[], bool]) -> dict[str, Any]:
    from ..model.files.contents import find_names
    from ..values.recipe_rows import list_lost, rows_of, widgets_of

    recipe = _recipe(asked)
    by_content = asked.get("by_content") is True
    found = find_names(recipe, by_content, is_gone)
    rows, left_out = rows_of(recipe, [source.name for source in found])
    missing = [source.name for source in found if source.is_missing]
    hashed = {source.name for source in recipe.sources if source.sha256 is not None}
    notes = [source.note for source in found if source.note is not None]
    return {
        "rows": rows,
        "count": len(rows.splitlines()),
        "widgets": widgets_of(recipe),
        "missing": list(dict.fromkeys(missing)),
        "searchable": not by_content and not hashed.isdisjoint(missing),
        "warnings": list(dict.fromkeys([*notes, *left_out, *list_lost(recipe)])),
    }


def _recipe(asked: dict[str, Any]) -> Recipe:
    from ...merge_ops.recipes import Recipe, read_recipe

    text, name = asked.get("text"), asked.get("name")
    if isinstance(text, str) and name is None:
        if len(text) > _MAX_YAML and not text.lstrip().startswith("{"):
            raise ParameterError("the text is too long for a recipe in YAML; give it as JSON")
        return Recipe.parse(text)
    if isinstance(name, str) and text is None:
        return read_recipe(find_path(name))
    raise ParameterError("give the text of a recipe, or the name of a saved merge")
