"""Networks that several methods share: the OpenAI-style U-Net and the autoencoders of latent diffusion."""
