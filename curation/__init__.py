"""Curate training sets for aligners of serial-section electron microscopy.

The scripts at the top level read arguments; the modules here do the work:

    spec, points          what to cut out: the JSON spec and the annotations it is made from
    boxes                 MIP arithmetic
    volumes               reading boxes out of CloudVolume layers
    fields, samples       displacement fields, and one normalised and warped sample from arrays
    cutting, stretch      whole datasets: from a spec, or a contiguous stretch of sections
    pyramid, inference    aligner modules, and running one over a dataset
    datasets, joining     the HDF5 files, and joining shards into one
    runner                worker processes
    cli, errors           arguments, messages and exit codes
"""

__version__ = "0.1.0"
