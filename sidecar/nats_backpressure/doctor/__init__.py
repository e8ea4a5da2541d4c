"""Checks an installation: facts about it become findings, each with what it costs and the line that ends it."""
