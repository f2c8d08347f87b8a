"""The ComfyUI nodes. Imported only relatively: ComfyUI has a module of this name itself."""
