"""Between pixels, the latents of a VAE and those of a MODEL."""
