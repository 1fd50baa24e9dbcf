"""A real ComfyUI with this pack in it: started, talked to, shown, served."""
