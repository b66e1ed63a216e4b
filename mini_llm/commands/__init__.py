"""The verbs of the command line, a group a file: each reads its words and calls one function of the package."""
