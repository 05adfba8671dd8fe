// The node Guidance, and the nodes that stand in for another pack's, write on themselves what they do, and can be taken
// apart into single nodes. Nodes with measured or published values offer them in their menu, first those of the file that
// their model is loaded from.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { setWidget } from "./nodes.js";

const EASY = "BeyondCFGGuidance";
const WIDTH = 320;
const APART = "take apart into single nodes";

/** Whether a node's definition is of one that stands in for another pack's. */
function standsIn(definition) {
    return definition?.category === "Beyond CFG/Other packs";
}

/** Sets the widgets of a node by name. @param {Record<string, number | string>} values */
function fill(node, values) {
    for (const [name, value] of Object.entries(values)) setWidget(node, name, value);
}

/** Puts the chosen nodes in the place of `node`, in a chain. @param {{type: string, values: object}[]} chosen */
function takeApart(node, chosen) {
    const { graph } = node;
    const found = (id) => graph.getLink?.(id) ?? graph.links.get?.(id) ?? graph.links[id];
    const source = node.inputs[0].link == null ? undefined : found(node.inputs[0].link);
    const targets = (node.outputs[0].links ?? []).map(found).map((link) => [link.target_id, link.target_slot]);
    graph.beforeChange?.();
    let [last, slot] = source ? [graph.getNodeById(source.origin_id), source.origin_slot] : [];
    let [x, y] = node.pos;
    for (const { type, values } of chosen) {
        const single = window.LiteGraph.createNode(type);
        single.pos = [x, y];
        graph.add(single);
        fill(single, values);
        last?.connect(slot, single, 0);
        [last, slot] = [single, 0];
        x += single.size[0] + 30;
    }
    graph.remove(node);
    for (const [id, input] of targets) last?.connect(slot, graph.getNodeById(id), input);
    graph.afterChange?.();
    graph.setDirtyCanvas(true, true);
}

/** The texts in the widgets of a node and of all before it: the file of its model is one of them. @returns {Set<string>} */
function textsBefore(node, seen = new Set(), found = new Set()) {
    if (!node || seen.has(node)) return found;
    seen.add(node);
    for (const { value } of node.widgets ?? []) if (typeof value === "string") found.add(value.split(/[\\/]/).pop());
    (node.inputs ?? []).forEach((_, at) => textsBefore(node.getInputNode?.(at), seen, found));
    return found;
}

app.registerExtension({
    name: "BeyondCFG.Guidance",

    async setup() {
        const look = async () => {
            const answer = await api.fetchApi("/beyond_cfg_values");
            this.values = answer.ok ? await answer.json() : {};
        };
        api.addEventListener("execution_success", look); // a run may have measured some
        await look();
    },

    beforeRegisterNodeDef(nodeType, definition) {
        if (standsIn(definition)) nodeType.skip_list = true; // in no menu
    },

    nodeCreated(node) {
        const definition = node.constructor.nodeData;
        if (node.comfyClass !== EASY && !standsIn(definition)) return;
        const before = standsIn(definition) ? definition.description : "After a run it says here what it chose.";
        const box = document.createElement("div");
        box.className = "beyond-cfg-chosen";
        box.style.cssText = "color: var(--input-text, #ccc); font-size: 12px; overflow: auto; white-space: pre-wrap";
        const shown = node.addDOMWidget("chosen", "chosen", box, { serialize: false, getMinHeight: () => 110 });
        const button = node.addWidget("button", APART, null, () => takeApart(node, node.properties.chosen.nodes), {
            serialize: false,
        });
        shown.serialize = false;
        const look = () => {
            const { text, nodes } = node.properties.chosen ?? {};
            box.textContent = text?.join("\n") ?? before;
            button.disabled = !nodes?.length;
        };
        const { onExecuted, onConfigure, onAdded } = node;
        let isAdded = false;
        node.onAdded = function () {
            isAdded = true;
            onAdded?.apply(this, arguments);
        };
        node.onExecuted = function (output) {
            onExecuted?.apply(this, arguments);
            node.properties.chosen = { text: output.text, nodes: output.nodes }; // kept, as the host may not say it again
            look();
        };
        node.onConfigure = function () {
            onConfigure?.apply(this, arguments);
            look();
        };
        look();
        requestAnimationFrame(() => {
            if (node.graph && !isAdded) node.onAdded(node.graph); // the page's swap leaves onAdded out
            node.setSize([Math.max(WIDTH, node.size[0]), node.computeSize()[1]]);
        });
    },

    getNodeMenuItems(node) {
        const known = this.values?.[node.comfyClass] ?? [];
        if (!known.length) return [];
        const texts = textsBefore(node);
        const isFirst = ({ model }) => model !== undefined && texts.has(model);
        const options = [...known.filter(isFirst), ...known.filter((line) => !isFirst(line))].map(({ family, values, source }) => ({
            content: `${family}: ${Object.entries(values).map((pair) => pair.join(" ")).join(", ")} (${source})`,
            callback: () => fill(node, values),
        }));
        return [{ content: "Values for a model", has_submenu: true, submenu: { options } }];
    },
});
