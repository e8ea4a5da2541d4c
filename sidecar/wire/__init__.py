"""What other programs read and write: subjects, keys and messages, exactly as the contract names them."""
