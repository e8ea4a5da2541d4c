"""Policies: what the marks are, and who may set them. Pure."""
