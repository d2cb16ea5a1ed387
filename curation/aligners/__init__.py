"""Everything torch: finding the aligner module of a stage in a pyramid, and running it."""
