"""The door: reads arguments, prints results, decides nothing."""
