"""A chat for each framework, as apps of that framework are written: none knows of the bus, unless it says so."""
