"""What the user sees: nodes with their inputs and outputs, the pictures that they draw, and what the page asks for.

`terms` and `classifier` list the guidances; one that comes from a registry needs no line there. `guiders` makes guider
nodes of them. Each other module has one group of nodes; `pictures` has what they draw.
"""
