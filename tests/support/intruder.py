"""A pickle with code in it."""

import os


class Intruder:
    """Makes a folder when it is unpickled."""

    def __init__(self, evidence):
        self.evidence = str(evidence)

    def __reduce__(self):
        return os.mkdir, (self.evidence,)
