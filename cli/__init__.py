"""What the two commands share: options, logging, signals, and how one process runs both servers."""
