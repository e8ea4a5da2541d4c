"""Status: from a reading to marks that are crossed, latches that are set, and a status. Pure."""
