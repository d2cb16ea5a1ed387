"""Curate training sets for aligners of serial-section electron microscopy.

The scripts at the top level read arguments; the modules here do the work. CONTRIBUTING.md has the map, and says which
of them may import which:

    steps/                      one module for each script
    annotations/                where pairs come from
    volumes/                    everything CloudVolume
    datasets/                   everything HDF5
    aligners/                   everything torch
    spec pair_selection         the JSON, and which pairs are taken
    boxes fields samples        arithmetic, without input or output
    provenance cli errors files runner stores    plumbing
"""

__version__ = "0.3.0"
