"""The start of a program that runs as where this package is not installed."""

WITHOUT_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sit_atconv":
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
"""
