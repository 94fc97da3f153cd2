"""Diffusion as small pure functions: noise schedules, samplers, losses, and the moving average of weights."""
