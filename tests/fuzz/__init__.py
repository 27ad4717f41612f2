"""Damaged and odd inputs of every kind, thousands of them, each drawn from a seed.

`python -m tests.fuzz` reads them all and counts how each ended. An input must be read as what it
was before it was damaged, or be refused in a sentence; or be read as what it now says, where
nothing in it can tell that this was not meant. Every kind of input has a module here, with what
damages it and with its oracle: what is to be read, found out without the code that is tested.
"""
