"""Exports of a network: all its sub-networks, over one copy of the weights where the format can.

Each format is one file here, which writes and runs it; ``folder`` has what they have in common.
"""

from nsn.exporting.folder import Export, Program
from nsn.exporting.formats import FORMATS, export, runner

__all__ = ["FORMATS", "Export", "Program", "export", "runner"]
