"""An ordinary Django project, with its own database, without any code for the bus."""
