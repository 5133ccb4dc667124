"""Our own CPU kernel of the 4-bit linear layer with its adapters, in C++: built on install, chosen at run time.

`build.py` compiles it, `library.py` loads it where the processor can run it. Without it everything works, slower.
"""
