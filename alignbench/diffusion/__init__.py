"""The mathematics of diffusion models and the models themselves."""
