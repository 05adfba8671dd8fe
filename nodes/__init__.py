"""What the user sees: nodes with their inputs and outputs, the pictures that they draw, and what the page asks for.

`terms` and `classifier` list the guidances; one that comes from a registry needs no line there. `guiders` makes guider
nodes of them. `schema` and `values` are what all nodes have in common. `graph` is the graph that runs, `labels` and
`verdict` are the words for pictures and runs, `pictures` has what nodes draw. Each other module has one group of nodes.
"""
