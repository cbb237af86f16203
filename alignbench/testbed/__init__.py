"""The exact testbed: Gaussian mixtures whose tilted optimum, frontier and diffusion are known in closed form."""
