"""Reads images and recordings, for the plugins that encode them. It has no parts, so it is no plugin itself.

`image_file.py` opens images and `preprocessing.py` converts and resizes them; `decode.py` opens recordings, and
`waveform.py` has the base class of encoders that read them.
"""
