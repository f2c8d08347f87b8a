"""LoRA Recipe: what a saved merge was made from, and the merge run again."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import comfy.model_management
import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..merge_ops.errors import MergeError, ParameterError
from ..merge_ops.recipes.spelled import trimmed
from .inputs import CATEGORY, LORA_MODEL
from .model.files.lora_files import find_path, list_lora_files, read_file_state
from .status import Said, StatusLine
from .values.stack_entries import StackEntry

if TYPE_CHECKING:
    from ..merge_ops.recipes import Recipe

_NO_FILE = "none"


class LoraAlloyRecipe(io.ComfyNode):
    """Reads a recipe and replays it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloyRecipe",
            display_name="LoRA Recipe",
            category=CATEGORY,
            description=(
                "Show what a saved merge was made from, and merge it again. The source files are "
                "found in the loras folders by their contents, even if they were renamed."
            ),
            search_aliases=["lora recipe", "lora metadata", "mergekit", "lorax"],
            inputs=[
                io.String.Input(
                    "lora_name", default=_NO_FILE, extra_dict={"widgetType": "LORA_ALLOY_FILE"},
                    tooltip="A LoRA written by Save LoRA or lora-alloy. Choose none to use the recipe"
                            " text below.",
                ),
                io.String.Input(
                    "recipe_json", multiline=True, default="", optional=True,
                    tooltip=(
                        "A recipe as text, used instead of the file: the JSON from the output recipe, a"
                        " LoRAX request, or a mergekit configuration of a LoRA merge."
                    ),
                ),
                io.Boolean.Input(
                    "replay", default=True, optional=True,
                    tooltip="Find the source files and merge them again. Switch it off to show the "
                            "recipe only.",
                ),
            ],
            outputs=[
                LORA_MODEL.Output(display_name="lora", tooltip="The LoRA, merged again from its sources."),
                io.String.Output(display_name="recipe", tooltip="The recipe as JSON."),
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora_name: str | None = None) -> bool | str:
        """Refuse a file that is not there at queue time."""
        if lora_name in (None, "", _NO_FILE):
            return True
        try:
            find_path(str(lora_name))
        except MergeError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls, lora_name: str | None = None, recipe_json: str | None = None, **_: Any
    ) -> list[tuple[str, int, int]]:
        """Read again if the file has changed, or a file that is called like one of the sources."""
        try:
            recipe = _recipe(lora_name, recipe_json)
            chosen = (
                [] if recipe_json or lora_name in (None, "", _NO_FILE) else [read_file_state(str(lora_name))]
            )
            names = {trimmed(PurePosixPath(source.name).name) for source in recipe.sources}
            alike = [name for name in list_lora_files() if names & _spellings(name)]
            return chosen + [read_file_state(name) for name in alike]
        except MergeError:  # running the node will say so
            return []

    @classmethod
    def execute(
        cls, lora_name: str | None = None, recipe_json: str | None = None, replay: bool | None = None
    ) -> io.NodeOutput:
        """Read the recipe, and run it."""
        from ..merge_ops.blocks import block_strengths
        from ..merge_ops.recipes import find_sources
        from .model.merges.lora_model import MergedLoraModel
        from .model.merges.merging import run_merge
        from .model.merges.summary import describe_merge, list_notes

        recipe = _recipe(lora_name, recipe_json)
        text = recipe.to_json(indent=2)
        status = StatusLine(cls)
        if replay is False:
            said = Said("\n".join(_describe(recipe)), [*recipe.warnings, *_missing(recipe)])
            blocked = ExecutionBlocker("LoRA Recipe merged nothing because replay is off; switch it on")
            return io.NodeOutput(blocked, text, ui=said)

        def progress(done: int, total: int, name: str) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            status.show_progress(f"looking for the sources: {name}, {done + 1} of {total} files")

        folders = [folder for folder in folder_paths.get_folder_paths("loras") if Path(folder).is_dir()]
        loras = find_sources(recipe, folders, progress=progress)
        entries = [
            StackEntry(lora, weight, text_weight, None, block_strengths(blocks))
            for lora, weight, text_weight, blocks in zip(
                loras, recipe.weights, recipe.text_weights, recipe.blocks, strict=True
            )
        ]
        merged, note = run_merge(loras, entries, {**recipe.keywords(), "apart": recipe.apart}, recipe.scale)
        merged = recipe.cut(merged)
        lines = [*_describe(recipe), f"merged again: {describe_merge(merged, status.seconds)}"]
        said = Said("\n".join(lines), [*recipe.warnings, *list_notes(merged, None, note)])
        return io.NodeOutput(MergedLoraModel(merged), text, ui=said)


def _describe(recipe: Recipe) -> list[str]:
    from ..merge_ops.recipes.described import describe_how, describe_source

    return [describe_how(recipe), *map(describe_source, recipe.sources)]


def _missing(recipe: Recipe) -> list[str]:
    """A line if no file has the name of a source; it may be there under another one."""
    known = set().union(*map(_spellings, list_lora_files()))
    lost = [source.name for source in recipe.sources if trimmed(PurePosixPath(source.name).name) not in known]
    return [f"no file in the loras folders is called {name}" for name in dict.fromkeys(lost)]


def _recipe(lora_name: str | None, recipe_json: str | None) -> Recipe:
    """The text, or else the file."""
    from ..merge_ops.recipes import Recipe, read_recipe

    if recipe_json and recipe_json.strip():
        return Recipe.parse(recipe_json)
    if lora_name in (None, "", _NO_FILE):
        raise ParameterError("there is no recipe: choose a saved LoRA, or paste a recipe as text")
    return read_recipe(find_path(str(lora_name)))


def _spellings(name: str) -> set[str]:
    """What a source that is this file may be called: the file, without suffix, or its PEFT folder."""
    path = PurePosixPath(trimmed(name))
    return {path.name, path.stem, path.parent.name}
