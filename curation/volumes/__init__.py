"""Everything CloudVolume: reading boxes out of layers, and writing a layer.

volume         layers, and windows of one section cut out of them
encodings      what chunks are encoded in, and whether one is damaged
zarr_forms     the forms of zarr and n5 layers that are read right
box_reader     all that a spec wants of one box
extent         where a volume lies, and how large its voxels are
layer_writer   a new layer of images
"""
