"""The types that all of core shares, one thing per file: samples, reading, marks, member, event, admission."""
