"""A model of the bus and its processes without IO, for the state machine of the session."""
