// The nodes of this pack in the graph, and those that a sentence of the pack is about.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

/** Node id → the short name with which its sentences begin. @type {Promise<Record<string, string>>} */
const NAMES = api.fetchApi("/beyond_cfg_nodes").then((answer) => answer.json());

/** Whether a node type is of this pack. */
export async function isOurs(type) {
    return type in (await NAMES);
}

/** The node that the host calls by this id: "7", or "5:7" inside a subgraph. */
export function nodeOf(id) {
    let graph = app.rootGraph;
    let node;
    for (const part of String(id).split(":")) {
        node = graph?.getNodeById(part);
        graph = node?.subgraph;
    }
    return node ?? undefined;
}

function nodesIn(graph) {
    return graph.nodes.flatMap((node) => (node.subgraph ? nodesIn(node.subgraph) : [node]));
}

/** The node types whose names a sentence begins with: one, or several as in "PAG, SEG: ..." and "PAG and SEG: ...". */
export async function typesNamedBy(sentence) {
    const longestFirst = Object.entries(await NAMES).sort(([, one], [, other]) => other.length - one.length);
    const types = [];
    let rest = sentence;
    for (;;) {
        const found = longestFirst.find(([, name]) => rest.startsWith(name) && /^\W/.test(rest.slice(name.length)));
        if (!found) return types;
        types.push(found[0]);
        rest = rest.slice(found[1].length);
        const joined = rest.match(/^(, | and )/);
        if (!joined) return types;
        rest = rest.slice(joined[0].length);
    }
}

/** The nodes that a sentence is about. `running`: the id of the node that ran when it was said. */
export async function nodesNamedBy(sentence, running) {
    const types = await typesNamedBy(sentence);
    const itself = nodeOf(running);
    if (itself && types.includes(itself.type)) return [itself];
    const named = [...new Set(nodesIn(app.rootGraph))].filter((node) => types.includes(node.type));
    const leading = named.filter((node) => leadsTo(itself, node));
    return leading.length ? leading : named;
}

/** Whether what `node` gives reaches `last`, both in one graph. */
function leadsTo(last, node) {
    const seen = new Set();
    const open = last ? [last] : [];
    while (open.length) {
        const next = open.pop();
        if (next === node) return true;
        if (seen.has(next)) continue;
        seen.add(next);
        open.push(...(next.inputs ?? []).map((_, at) => next.getInputNode(at)).filter(Boolean));
    }
    return false;
}

/** Bring a node into view and select it. */
export function show(node) {
    if (app.canvas.graph !== node.graph) app.canvas.setGraph(node.graph);
    app.canvas.centerOnNode(node);
    app.canvas.selectItems([node]);
}

/** What the host's own definition of an input says, such as its default. */
export function settingOf(node, name) {
    const inputs = node.constructor.nodeData?.input ?? {};
    return (inputs.required?.[name] ?? inputs.optional?.[name])?.[1] ?? {};
}

/** A node's widget, unless a link gives its value. */
export function freeWidget(node, name) {
    const linked = node.inputs?.some((input) => input.name === name && input.link != null);
    return linked ? undefined : node.widgets?.find((widget) => widget.name === name);
}

/** Set a widget as a user's hand would, but for this: a number keeps all its decimals, where the page rounds what is typed. */
export function setWidget(node, name, value) {
    const widget = node.widgets.find((one) => one.name === name);
    const { min = -Infinity, max = Infinity } = widget.options ?? {};
    const kept = typeof value === "number" ? Math.min(Math.max(value, min), max) : value;
    widget.value = kept;
    widget.callback?.(kept);
    widget.value = kept; // the callback has rounded it to the decimals that are shown
    node.setDirtyCanvas(true, true);
}

/** The other nodes of this pack beside a node that have such a setting, free to be set. */
export function nodesWith(node, name) {
    const others = node.graph.nodes.filter((one) => one.type !== node.type && one.type.startsWith("BeyondCFG"));
    return others.filter((one) => freeWidget(one, name));
}
