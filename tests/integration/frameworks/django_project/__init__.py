"""An ordinary Django project, with its own database; nothing in it knows of the bus."""
