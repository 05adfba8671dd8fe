// Guidance Schedule shows its curve while it is edited. The host draws it: the same function, the same checks.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODE = "BeyondCFGSchedule";
const SETTINGS = ["curve_type", "start", "end", "power", "points", "over"];

function show(node, box) {
    let shown, picture;

    async function draw(query) {
        const answer = await api.fetchApi(`/beyond_cfg_schedule?${query}`);
        const content = await (answer.ok ? answer.blob() : answer.text());
        if (query !== shown) return; // edited again meanwhile
        URL.revokeObjectURL(picture);
        if (!answer.ok) return box.replaceChildren(content);
        picture = URL.createObjectURL(content);
        const image = Object.assign(document.createElement("img"), { src: picture, alt: "strength along sampling" });
        image.style.cssText = "width: 100%; height: 100%; object-fit: contain";
        box.replaceChildren(image);
    }

    function look() {
        if (node.inputs?.some((input) => input.name === "curve" && input.link != null)) {
            shown = undefined;
            return box.replaceChildren("The connected curve is used.");
        }
        const chosen = node.widgets.filter((widget) => SETTINGS.includes(widget.name));
        const query = new URLSearchParams(chosen.map((widget) => [widget.name, widget.value])).toString();
        if (query === shown) return;
        shown = query;
        draw(query);
    }

    // Widgets change in many ways, not all of which call back: by hand, by undo, by a workflow that opens.
    const watch = setInterval(look, 250);
    const removed = node.onRemoved;
    node.onRemoved = function (...all) {
        clearInterval(watch);
        URL.revokeObjectURL(picture);
        return removed?.apply(this, all);
    };
}

function fit(node) {
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    node.setDirtyCanvas(true, true);
}

app.registerExtension({
    name: "BeyondCFG.Schedule",
    nodeCreated(node) {
        if (node.comfyClass !== NODE) return;
        const box = document.createElement("div");
        box.className = "beyond-cfg-schedule";
        box.style.cssText = "color: var(--input-text, #ccc); font-size: 12px; overflow: auto";
        const widget = node.addDOMWidget("picture", "picture", box, { serialize: false, getMinHeight: () => 150 });
        widget.serialize = false;
        show(node, box);
        requestAnimationFrame(() => fit(node));
    },
    loadedGraphNode(node) {
        if (node.comfyClass === NODE) fit(node); // saved without the picture, perhaps
    },
});
