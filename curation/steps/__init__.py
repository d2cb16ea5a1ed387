"""The steps of the toolkit: one module for each script, of the script's name, and what the steps share.

box_job                box jobs: pairs of boxes, and the files that they are cut into
box_work, box_tasks    what a worker does with its boxes; what travels between it and its parent
field_work             what a worker does with its shards of fields
devices                where generate_fields runs its module
report                 the tables before and after a run
"""
