"""The Django project with Channels; only `CHANNEL_LAYERS` and the consumer `Everybody` know of the bus."""
