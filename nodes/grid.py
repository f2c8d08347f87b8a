"""Labelled Grid: the pictures of a sweep as one picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..merge_ops.errors import ParameterError, did_you_mean
from .inputs import CATEGORY
from .values.grid_picture import draw_grid, join_side_by_side
from .values.grid_table import arrange
from .values.pictures import picture_of

_INPUTS = ("images", "labels", "columns", "image_size")


class LoraAlloyGrid(io.ComfyNode):
    """Takes whole lists: all pictures and all labels at once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloyGrid",
            display_name="Labelled Grid",
            category=CATEGORY,
            description=(
                "Arrange all images of a sweep in one labelled grid. Two sweeps give rows and columns."
            ),
            search_aliases=["xy plot", "image grid", "contact sheet", "compare images", "lora grid"],
            inputs=[
                io.Image.Input("images", tooltip="The images of the sweep, for example from VAE Decode."),
                io.String.Input(
                    "labels",
                    optional=True,
                    force_input=True,
                    tooltip=(
                        "The label output of the last Sweep Parameter, or any list with one text per image."
                    ),
                ),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=100,
                    optional=True,
                    tooltip=(
                        "Images per row. 0 gives two sweeps their rows and columns, and chooses a "
                        "layout for everything else."
                    ),
                ),
                io.Int.Input(
                    "image_size",
                    default=512,
                    min=0,
                    max=8192,
                    optional=True,
                    advanced=True,
                    tooltip="Images whose longer side exceeds this are scaled down. 0 keeps their size.",
                ),
            ],
            outputs=[io.Image.Output(display_name="grid", tooltip="The grid as one image.")],
            is_input_list=True,
            is_output_node=True,
            accept_all_inputs=True,
        )

    @classmethod
    def execute(
        cls,
        images: list[torch.Tensor],
        labels: list[str] | None = None,
        columns: list[int] | None = None,
        image_size: list[int] | None = None,
        **unknown: Any,
    ) -> io.NodeOutput:
        """Draw."""
        for name in unknown:
            raise ParameterError(f"unknown input {name!r}{did_you_mean(name, _INPUTS)}")
        texts = [str(label) for label in labels or ()]
        cells = [list(batch) for batch in images]
        if texts and len(cells) != len(texts) == sum(map(len, cells)):  # a batch made of all the pictures
            cells = [[frame] for batch in cells for frame in batch]
        if texts and len(cells) != len(texts):
            raise ParameterError(
                f"{len(cells)} images and {len(texts)} labels; connect the label output of the last sweep "
                "before them"
            )
        longest = (image_size or [512])[0]
        pictures = [join_side_by_side([picture_of(frame, longest) for frame in frames]) for frames in cells]
        grid = draw_grid(pictures, arrange(len(pictures), texts, (columns or [0])[0]))
        image = torch.from_numpy(np.asarray(grid, dtype=np.float32) / 255)[None]
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))
