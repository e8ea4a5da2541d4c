"""The world: one outside thing per file; no judgement, and no edge knows another."""
