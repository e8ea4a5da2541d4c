"""The evaluation. Pure: values in, values out; no clock, no network, no logging, no randomness."""
