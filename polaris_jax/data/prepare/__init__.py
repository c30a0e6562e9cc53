"""From several sources to one clean set of problems, in bounded memory.

`pipeline` is the order of the rules; each of the others is one of them.
"""
