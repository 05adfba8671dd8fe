// Two pictures of Guidance Grid, one over the other, with a slider between them. The host's own slider, of its node Compare
// Images, is drawn in Nodes 2.0 alone.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODES = ["BeyondCFGGrid", "BeyondCFGSweep"];
const BUTTON = "before / after";

function made(tag, style, more = {}) {
    const element = Object.assign(document.createElement(tag), more);
    element.style.cssText = style;
    return element;
}

function picture({ filename, subfolder, type }, style) {
    const query = new URLSearchParams({ filename, subfolder, type });
    return made("img", `display: block; max-width: 90vw; max-height: 80vh; ${style}`, {
        src: api.apiURL(`/view?${query}`),
        draggable: false,
    });
}

function label(text, side) {
    const style = `position: absolute; top: 8px; ${side}: 8px; max-width: 45%; padding: 2px 8px; border-radius: 4px;
        background: #000a; color: #fff; font: 14px sans-serif; pointer-events: none`;
    return made("span", style, { textContent: text });
}

function compare(pictures, labels) {
    const dialog = made("dialog", "padding: 12px; border: 0; border-radius: 8px; background: #24272c");
    dialog.className = "beyond-cfg-compare";
    const box = made("div", "position: relative; cursor: ew-resize; touch-action: none; user-select: none");
    const over = picture(pictures[0], "position: absolute; inset: 0; width: 100%; height: 100%");
    const under = picture(pictures[1], "min-width: min(512px, 90vw); image-rendering: auto");
    const line = made("div", "position: absolute; top: 0; bottom: 0; width: 2px; background: #fff; pointer-events: none");
    const slider = made("input", "display: block; width: 100%; margin: 10px 0 0", {
        type: "range", min: 0, max: 100, step: "any", value: 50, ariaLabel: "how much of the first picture",
    });

    function show() {
        over.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
        line.style.left = `calc(${slider.value}% - 1px)`;
    }

    slider.oninput = show;
    box.onpointermove = (event) => {
        const { left, width } = box.getBoundingClientRect();
        slider.value = (100 * (event.clientX - left)) / width;
        show();
    };
    dialog.onclick = (event) => event.target === dialog && dialog.close(); // beside the picture
    dialog.onclose = () => dialog.remove();
    box.append(under, over, line, ...labels.map((text, at) => label(text, at ? "right" : "left")));
    dialog.append(box, slider);
    document.body.append(dialog);
    show();
    dialog.showModal();
}

function offer(node, pictures, labels) {
    const old = node.widgets?.find((widget) => widget.name === BUTTON);
    if (old) node.widgets.splice(node.widgets.indexOf(old), 1);
    if (pictures?.length === 2) {
        const button = node.addWidget("button", BUTTON, null, () => compare(pictures, labels ?? []), { serialize: false });
        button.serialize = false;
    }
    node.setDirtyCanvas(true, true);
}

app.registerExtension({
    name: "BeyondCFG.Compare",
    nodeCreated(node) {
        if (!NODES.includes(node.comfyClass)) return;
        const executed = node.onExecuted;
        node.onExecuted = function (output) {
            executed?.apply(this, arguments);
            offer(this, output?.compare, output?.compare_labels);
        };
    },
});
