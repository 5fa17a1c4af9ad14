"""The Django project with Channels; nothing in it knows of the bus but `CHANNEL_LAYERS` and the consumer `Straight`."""
