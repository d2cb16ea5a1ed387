"""Everything HDF5: what a dataset file holds, how it is read, and how it is written so that no work is lost.

layout, facts      what a file is to hold, decided before it is made; what is known of each box and pair
dataset            a dataset file opened to be read
matching           which field belongs to which pair
chunks             images and fields as they are stored
writer, partial    writing a file; resuming one that is not finished
seal               one checksum over all that is no image or field
probe              looking at a file that may be damaged
shards             ranges of pairs, each in a file of its own
"""
