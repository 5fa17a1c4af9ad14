"""Who is in a group, in Redis: what one process writes, what readers find, and the clean-up after dead processes."""
