"""The words of the nodes: titles, descriptions and tooltips. ../test_words.py reads the help pages and the examples."""

import pytest
from pack.tests.readability import faults
from pack.tools import locales

SCHEMAS = {schema.node_id: schema for schema in locales.schemas()}
STARTED = {
    "BeyondCFGSchedule",
    "BeyondCFGLayerMap",
    "BeyondCFGRecorder",
}  # being rewritten; to be read when that is done


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_a_nodes_words_are_understood_at_the_first_reading(schema):
    texts = [schema.display_name, schema.description]
    if schema.node_id not in STARTED:
        texts += [given.tooltip for given in (*schema.inputs, *schema.outputs)]
    assert [fault for text in texts for fault in faults(text, longest=30)] == []
