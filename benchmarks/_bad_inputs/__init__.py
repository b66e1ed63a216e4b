"""The parts of bad_inputs.py: a server that starts commands, what is right of each case, and the cases by area."""
