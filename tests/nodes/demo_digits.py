"""A node for the pictures of the README: the demo's small diffusion model, with a merged LoRA on it.

Copy this file into ComfyUI's ``custom_nodes``. DEMO_PYTHON is an interpreter with this project and diffusers:
it runs this file as a script, ``demo_digits.py NOISE FOLDER``.
"""

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROMPTS = [(6, "plain"), (7, "plain"), (0, "neon"), (0, "slant")]
TILE = 96


def draw(noise, folder):
    """Draw the prompts, two by two, with each LoRA of a folder."""
    import torch
    from PIL import Image

    import merge_ops
    from merge_ops.demo.model import load_model, sample
    from merge_ops.models.diffusers import patched

    unet, tokens = load_model()
    for file in folder.glob("*.safetensors"):
        with patched(unet, merge_ops.merge([merge_ops.load(file)])):
            drawn = sample(unet, tokens, PROMPTS, 1, seed=noise)[:, 0]  # (4, 3, 24, 24)
        rows = [torch.cat(list(drawn[i : i + 2]), dim=2) for i in (0, 2)]
        pixels = torch.cat(rows, dim=1).movedim(0, -1).mul(255).byte().numpy()  # (48, 48, 3)
        picture = Image.fromarray(pixels).resize((2 * TILE, 2 * TILE), Image.Resampling.BICUBIC)
        picture.save(file.with_suffix(".png"))


async def comfy_entrypoint():
    """What ComfyUI calls to get the extension."""
    import numpy as np
    import torch
    from comfy_api.latest import ComfyExtension, io
    from PIL import Image

    class DemoDigits(io.ComfyNode):
        """Draws what each of the demo's LoRAs teaches."""

        @classmethod
        def define_schema(cls):
            return io.Schema(
                node_id="DemoDigits",
                display_name="Demo Model",
                category="demo",
                inputs=[io.Custom("LORA_MODEL").Input("lora"), io.Int.Input("noise", default=3)],
                outputs=[io.Image.Output(display_name="image", is_output_list=True)],
                is_input_list=True,
            )

        @classmethod
        def execute(cls, lora, noise):
            pack = type(lora[0]).__module__.rpartition(".nodes.model.")[0]
            save = importlib.import_module(f"{pack}.merge_ops").save
            with tempfile.TemporaryDirectory() as folder:
                files = [Path(folder) / f"{number}.safetensors" for number in range(len(lora))]
                for one, file in zip(lora, files, strict=True):
                    save(one.merged, file, 4096)  # no layer has a higher rank: nothing is cut
                command = [os.environ["DEMO_PYTHON"], __file__, str(noise[0]), folder]
                env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
                subprocess.run(command, check=True, env=env)
                drawn = [np.asarray(Image.open(file.with_suffix(".png"))) for file in files]
            images = [torch.from_numpy(pixels.astype(np.float32) / 255)[None] for pixels in drawn]
            return io.NodeOutput(images)  # each (1, 192, 192, 3)

    class DemoExtension(ComfyExtension):
        async def get_node_list(self):
            return [DemoDigits]

    return DemoExtension()


if __name__ == "__main__":
    draw(int(sys.argv[1]), Path(sys.argv[2]))
