// Layer Map shows the layers of a model in the page. A click takes one into `layers`, or out of it.
import { app } from "../../scripts/app.js";
import { freeWidget, nodesWith, setWidget } from "./nodes.js";

const NODE = "BeyondCFGLayerMap";
const OUTPUT = "beyond_cfg_layers";
const CHOSEN = "#e8590c";
const WIDTH = 420;
const HIGHEST = 420;

/**
 * @typedef {{name: string, index: number, layers: string[]}} Block
 * @typedef {{architecture: string, size: [number, number], lines: {stack: string, grid: number[], blocks: Block[]}[],
 *     chosen: string[], auto: string[], text: string}} Drawing
 */

function element(tag, style, ...content) {
    const made = document.createElement(tag);
    made.style.cssText = style;
    made.append(...content);
    return made;
}

/** [1, 2, 4] → ["1-2", "4"] */
function runs(numbers) {
    const found = [];
    for (const number of numbers) {
        if (found.at(-1)?.at(-1) === number - 1) found.at(-1).push(number);
        else found.push([number]);
    }
    return found.map((run) => (run.length > 1 ? `${run[0]}-${run.at(-1)}` : `${run[0]}`));
}

/** The text that means these layers. @param {Drawing} drawing @param {Set<string>} chosen */
export function textOf(drawing, chosen) {
    const blocks = drawing.lines.flatMap(({ stack, blocks }) => blocks.map((block) => ({ stack, ...block })));
    if (drawing.auto.length === chosen.size && drawing.auto.every((layer) => chosen.has(layer))) return "auto";
    if (blocks.every(({ layers }) => layers.every((layer) => chosen.has(layer)))) return "all";
    const parts = [];
    let whole = []; // blocks of one stack that follow one another, all of which are chosen
    const flush = () => {
        if (whole.length && whole[0].name === whole[0].stack) parts.push(whole[0].name);
        else if (whole.length)
            parts.push(...runs(whole.map(({ index }) => index)).map((run) => `${whole[0].stack}.${run}`));
        whole = [];
    };
    for (const block of blocks) {
        if (whole[0]?.stack !== block.stack) flush();
        const some = block.layers.flatMap((layer, part) => (chosen.has(layer) ? [part] : []));
        if (some.length === block.layers.length) whole.push(block);
        else if (some.length) {
            flush();
            parts.push(...runs(some).map((run) => `${block.stack}.${block.index}.${run}`));
        }
    }
    flush();
    return parts.join(", ");
}

class LayerMap {
    constructor(node, box) {
        Object.assign(this, { node, box, drawing: undefined, chosen: new Set() });
        box.append("Run this node once: then the layers of the model are here, to click on.");
    }

    /** @param {Drawing} drawing */
    show(drawing) {
        Object.assign(this, { drawing, chosen: new Set(drawing.chosen) });
        this.draw();
        const { size } = this.node;
        this.node.setSize([Math.max(size[0], WIDTH), size[1]]);
        setTimeout(() => this.fit(), 100); // when the page has drawn it as wide
    }

    fit() {
        this.node.setSize([this.node.size[0], Math.max(this.node.size[1], this.node.computeSize()[1])]);
        this.node.setDirtyCanvas(true, true);
    }

    get height() {
        return Math.min(HIGHEST, (this.box.firstElementChild?.scrollHeight ?? 30) + 8);
    }

    draw() {
        const { architecture, size, lines } = this.drawing;
        const count = lines.flatMap(({ blocks }) => blocks.flatMap(({ layers }) => layers)).length;
        const title = element("div", "font-weight: bold", `${architecture}, ${size.join(" × ")}`);
        const chosen = element("div", `color: ${CHOSEN}`, `${this.chosen.size} of ${count} layers`);
        const head = element(
            "div",
            "display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px",
            title,
            chosen,
        );
        const all = element(
            "div",
            "display: flex; flex-direction: column; gap: 6px",
            head,
            ...lines.map((line) => this.#line(line)),
        );
        const users = nodesWith(this.node, "layers");
        if (users.length)
            all.append(
                element(
                    "div",
                    "display: flex; flex-wrap: wrap; gap: 6px; align-items: center",
                    "Use these in:",
                    ...users.map((user) => this.#button(user)),
                ),
            );
        this.box.replaceChildren(all);
    }

    #line({ stack, grid, blocks }) {
        const name = element(
            "div",
            "width: 84px; flex: none",
            stack,
            element("div", "opacity: 0.7", grid.join(" × ")),
        );
        const cells = element(
            "div",
            "display: flex; flex-wrap: wrap; gap: 3px; align-items: flex-start",
            ...blocks.map((block) => this.#block(block)),
        );
        return element("div", "display: flex; gap: 6px", name, cells);
    }

    /** A block as a number, and where it has several layers, each of them below. */
    #block({ name, index, layers }) {
        const number = this.#cell(layers, `min-width: 24px; height: 22px; font-size: 12px`, name, index);
        if (layers.length === 1) return number;
        const parts = layers.map((layer) => this.#cell([layer], "width: 11px; height: 16px", layer, ""));
        return element(
            "div",
            "display: flex; flex-direction: column; gap: 2px",
            number,
            element("div", "display: flex; gap: 1px", ...parts),
        );
    }

    #cell(layers, style, name, label) {
        const share = layers.filter((layer) => this.chosen.has(layer)).length / layers.length;
        const color = share
            ? `color-mix(in srgb, ${CHOSEN} ${30 + 70 * share}%, var(--comfy-input-bg, #222))`
            : "var(--comfy-input-bg, #222)";
        const cell = element(
            "button",
            `${style}; padding: 0; border: 1px solid var(--border-color, #666); border-radius: 4px;
            background: ${color}; color: ${share ? "#fff" : "inherit"}; cursor: pointer`,
            `${label}`,
        );
        Object.assign(cell, { title: name, ariaPressed: String(share === 1) });
        cell.dataset.layers = name;
        cell.onclick = () => this.toggle(layers, share < 1);
        return cell;
    }

    #button(user) {
        const button = element(
            "button",
            `padding: 2px 8px; border: 1px solid var(--border-color, #666); border-radius: 5px;
            background: var(--comfy-input-bg, #222); color: inherit; font: inherit; cursor: pointer`,
            user.title,
        );
        button.onclick = () => setWidget(user, "layers", textOf(this.drawing, this.chosen));
        return button;
    }

    /** Take layers in or out. Without any, auto stands again: a text of none would be refused. */
    toggle(layers, take) {
        for (const layer of layers) take ? this.chosen.add(layer) : this.chosen.delete(layer);
        if (!this.chosen.size) this.chosen = new Set(this.drawing.auto);
        const source = freeWidget(this.node, "layers")
            ? this.node
            : this.node.getInputNode(this.node.findInputSlot("layers"));
        const widget =
            source === this.node ? "layers" : source?.widgets?.find((one) => typeof one.value === "string")?.name;
        if (widget) setWidget(source, widget, textOf(this.drawing, this.chosen));
        this.draw();
    }
}

const maps = new WeakMap();

app.registerExtension({
    name: "BeyondCFG.LayerMap",
    nodeCreated(node) {
        if (node.comfyClass !== NODE) return;
        const box = document.createElement("div");
        box.className = "beyond-cfg-layers";
        box.style.cssText = "color: var(--input-text, #ccc); font: 12px sans-serif; overflow: auto";
        const map = new LayerMap(node, box);
        const widget = node.addDOMWidget("map", "map", box, { serialize: false, getMinHeight: () => map.height });
        widget.serialize = false;
        maps.set(node, map);
        node.hideOutputImages = true; // the picture that the node gives shows the same
        node.onDrawBackground = () => {};
        const executed = node.onExecuted;
        node.onExecuted = function (output, ...rest) {
            if (output?.[OUTPUT]) map.show(output[OUTPUT][0]);
            return executed?.call(this, output, ...rest);
        };
        box.onpointerenter = () => map.drawing && map.draw(); // other nodes may have come
    },
    loadedGraphNode(node) {
        const [kept] = app.nodeOutputs?.[node.id]?.[OUTPUT] ?? [];
        if (kept && kept.text === freeWidget(node, "layers")?.value) maps.get(node)?.show(kept); // as after undo
    },
});
