"""Where pairs come from: annotations that were made in Neuroglancer, read from whatever holds them.

model               what an annotation is
read                finds out what a source is, and reads it
tables              CSV files
viewer_states       viewer states and the links that carry them
precomputed         annotation layers
coordinate_spaces   units, and which dimensions are x, y and z
"""
