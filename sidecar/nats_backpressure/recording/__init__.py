"""Recordings: writes what is observed to a file, reads it back, and judges it again (recorder, decoder, replay)."""
