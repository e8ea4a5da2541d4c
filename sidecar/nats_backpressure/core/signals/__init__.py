"""Signals: turns what the server reported about a consumer (samples) into what it means (a reading). Pure."""
