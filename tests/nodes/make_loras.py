"""Run by ComfyUI's interpreter: the LoRA files that the tests of the server and of the editor name.

python make_loras.py PACK_FOLDER BASE_FOLDER
"""

from comfy_inside import three_loras, write_unfit

three_loras("sd15")
write_unfit()
