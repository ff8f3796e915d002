"""What every part promises, as checks: a file for each kind of part. Public as `magma.testing`."""
