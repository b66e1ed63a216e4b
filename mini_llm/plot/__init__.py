"""Plot: what a run has written, as a picture for a paper and as a curve in the terminal."""
