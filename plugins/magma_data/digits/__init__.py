"""Small real data sets for quick runs: written digits (scikit-learn), spoken digits (FSDD), and pairs of the two."""
