"""Curate training sets for aligners of serial-section electron microscopy.

The scripts at the top level read arguments; the modules here do the work:

    spec, points, pairs   what to cut out: the JSON spec, the annotations, and the pairs made from them
    boxes                 MIP arithmetic
    stores, volumes       what a store's answers mean; reading boxes out of CloudVolume layers
    layers                writing a CloudVolume layer
    fields, samples       displacement fields, and one normalised and warped sample from arrays
    plans, reading        what is to be done; reading what a spec wants of a box
    cutting, report       cutting boxes in worker processes; what was done
    making, stretch       whole datasets: from a spec, or a contiguous stretch of sections
    pyramid, inference    aligner modules, and running one over a dataset
    joining               joining shards into one file
    datasets, writing     the HDF5 files, and writing them so that nothing is lost
    verifying             reading them back
    runner                worker processes
    cli, errors, files    arguments, messages and exit codes; files that appear whole
"""

__version__ = "0.1.0"
