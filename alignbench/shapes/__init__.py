"""The embedded world: pictures of coloured shapes with captions, an exact judge, and a tiny Stable Diffusion of it.

`scene.py` says what can be pictured and described, `render.py` draws it, `judge.py` reads a picture back and grades
it against a caption, `preference.py` is the simulated human and the reward learned from it, `train.py` makes the
weights that ship in `weights/`.
"""
