"""The presence of users in groups, in Redis: the data of one process, its readers, and the clean-up after the dead."""
