"""The bundled language model, its training corpus and the script that trains it."""
