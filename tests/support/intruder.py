"""A pickle that runs code."""

import os


class Intruder:
    """Create a folder when unpickled."""

    def __init__(self, evidence):
        self.evidence = str(evidence)

    def __reduce__(self):
        return os.mkdir, (self.evidence,)
