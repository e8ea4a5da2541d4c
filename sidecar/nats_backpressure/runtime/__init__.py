"""The loops: read the servers, feed the core, carry out what it decides. What goes in and out goes through ports."""
