"""Admission: from a status to what may pass: a gateway's share, a consumer's pull, and the time to retry. Pure."""
