"""Diffusion as pure functions of arrays: noise schedules, the corruption process, samplers."""
