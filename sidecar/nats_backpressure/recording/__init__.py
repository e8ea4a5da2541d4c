"""Recordings: writes what is observed to a file, reads it back, and evaluates it again (recorder, decoder, replay)."""
