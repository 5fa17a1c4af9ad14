"""One small app for each framework: how long it works is up to the test, and how it ends is noted."""
