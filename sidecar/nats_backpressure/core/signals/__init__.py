"""Signals: turns what the server returned about a consumer (samples) into what it means (a reading). Pure."""
