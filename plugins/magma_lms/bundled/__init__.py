"""The bundled language model: what it read, and the script that makes it."""
