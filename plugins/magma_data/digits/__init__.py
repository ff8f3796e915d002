"""Small real data sets for quick runs: handwritten digits (scikit-learn), spoken digits (FSDD), and pairs of both."""
