"""Signals: from what a server said of a consumer (samples) to what it means (a reading). Pure."""
