"""One small app for each framework: the test decides how long the app works, and the app notes its end."""
