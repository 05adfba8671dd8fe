// What the pack warns of while a prompt runs is said in a notice, and by a badge on each node that the warning names.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { notify } from "./notices.js";
import { nodesNamedBy, show } from "./nodes.js";

const INK = "#1a1a1a";
const PAPER = "#e8a33d";

/** What each badge says, and by whose run. @type {{running: string, node: object, label: string, text: string}[]} */
let given = [];
const badged = new WeakSet();
const style = document.createElement("style");

function say(text, nodes) {
    notify(
        "warning",
        text,
        nodes.slice(0, 1).map((node) => ({ label: "Show the node", act: () => show(node) })),
    );
}

/** The badge of a node as the classic canvas asks for it each time that it draws; empty without a warning. */
function badgeOf(node) {
    const { label: text, text: sentence } = (!LiteGraph.vueNodesMode && given.find((one) => one.node === node)) || {
        label: "",
    };
    return new LGraphBadge({ text, fgColor: INK, bgColor: PAPER, onClick: () => say(sentence, [node]) });
}

/** Where nodes are elements of the page their badges are a matter of style: they outlast whatever draws the nodes anew. */
function draw() {
    style.textContent = given
        .filter(({ node }) => node.graph === app.canvas.graph)
        .map(
            ({
                node,
                label,
            }) => `.lg-node[data-node-id="${node.id}"]::after { content: "${label}"; position: absolute;
            right: 0; top: -24px; padding: 2px 6px; border-radius: 5px; font: 12px sans-serif; color: ${INK};
            background: ${PAPER}; white-space: nowrap }`,
        )
        .join("\n");
    app.canvas.setDirty(true, true);
}

async function warned({ detail }) {
    const { node: running, text } = detail;
    const nodes = await nodesNamedBy(text, running);
    say(text, nodes);
    const label = / (had|has) no effect/.test(text) ? "⚠ no effect" : "⚠ warning";
    for (const node of nodes) {
        if (!badged.has(node)) node.badges.push(() => badgeOf(node));
        badged.add(node);
        given.push({ running, node, label, text });
    }
    draw();
}

/** A node runs again: what it warned of is over. */
function executing({ detail }) {
    const left = given.filter(({ running }) => running !== detail);
    if (left.length === given.length) return;
    given = left;
    draw();
}

app.registerExtension({
    name: "BeyondCFG.Warnings",
    setup() {
        document.head.append(style);
        api.addEventListener("beyond_cfg_warning", warned);
        api.addEventListener("executing", executing);
        app.canvas.canvas.addEventListener("litegraph:set-graph", draw);
    },
});
