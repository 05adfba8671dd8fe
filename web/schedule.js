// Guidance Schedule draws its curve while it is edited, by hand too. The host says what the curve is, and what is wrong.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Plot } from "./plot.js";
import { freeWidget, setWidget } from "./nodes.js";

const NODE = "BeyondCFGSchedule";
const USED = {
    linear: ["curve_type", "start", "end"],
    cosine: ["curve_type", "start", "end"],
    power: ["curve_type", "start", "end", "power"],
    points: ["curve_type", "points", "over"],
};
const SETTINGS = [...new Set(Object.values(USED).flat())];
const HINT = "Drag the points. Double-click adds one, or takes one away.";

const round = (number, digits) => Number(number.toFixed(digits));

class Schedule {
    constructor(node, box) {
        const hands = {
            moved: this.moved.bind(this),
            dropped: this.look.bind(this),
            clicked: this.clicked.bind(this),
        };
        Object.assign(this, { node, box, plot: new Plot(box, hands), shown: undefined, isOpen: false });
    }

    /** Fit the node when it is new or comes out of a workflow, perhaps saved without the picture. */
    open() {
        if (this.isOpen) return;
        this.isOpen = true;
        this.#hideUnused();
        const [width, height] = this.node.computeSize();
        this.node.setSize([Math.max(this.node.size[0], width), Math.max(this.node.size[1], height)]);
        this.node.setDirtyCanvas(true, true);
    }

    #resize(more) {
        if (more) this.node.setSize([this.node.size[0], this.node.size[1] + more]);
    }

    value(name) {
        return this.node.widgets.find((widget) => widget.name === name).value;
    }

    get isDrawn() {
        return this.node.inputs?.some((input) => input.name === "curve" && input.link != null);
    }

    /** Show the curve of the present settings, if they are others than those that are shown. */
    look() {
        if (this.plot.held) return;
        this.open();
        this.#resize(this.#hideUnused());
        if (this.isDrawn) {
            this.shown = undefined;
            return this.box.replaceChildren("The connected curve is used.");
        }
        const query = new URLSearchParams(SETTINGS.map((name) => [name, this.value(name)])).toString();
        if (query !== this.shown) this.#ask((this.shown = query));
    }

    async #ask(query) {
        const answer = await api.fetchApi(`/beyond_cfg_schedule?${query}`);
        const said = await (answer.ok ? answer.json() : answer.text());
        if (query !== this.shown) return; // edited again meanwhile
        if (!answer.ok) return this.box.replaceChildren(said);
        const bySigma = this.isOfPoints && this.value("over") === "sigma";
        this.box.title = this.isOfPoints ? HINT : "Drag the ends.";
        this.plot.show(said, { falls: bySigma, label: bySigma ? "noise level σ" : "part of sampling" });
    }

    get isOfPoints() {
        return this.value("curve_type") === "points";
    }

    /** A point was dragged. It stays between its neighbours. Answers what to draw until the host does. */
    moved(at, [where, strength]) {
        const { points, low, high } = this.plot.drawing;
        const to = [points[at][0], round(Math.min(10, Math.max(-10, strength)), 2)];
        if (!this.isOfPoints) {
            if (freeWidget(this.node, at ? "end" : "start")) setWidget(this.node, at ? "end" : "start", to[1]);
            return { ...this.plot.drawing, points: points.with(at, to) };
        }
        const digits = high > 1 ? 3 : 2;
        const left = at > 0 ? points[at - 1][0] + 10 ** -digits : low;
        const right = at + 1 < points.length ? points[at + 1][0] - 10 ** -digits : high;
        to[0] = round(Math.min(right, Math.max(left, where)), digits);
        const now = points.with(at, to);
        this.#write(now);
        const line = [[low, now[0][1]], ...now, [high, now.at(-1)[1]]].filter(
            ([place]) => low <= place && place <= high,
        );
        return { ...this.plot.drawing, points: now, line };
    }

    clicked([where, strength], at) {
        if (!this.isOfPoints) return;
        const { points } = this.plot.drawing;
        if (at < 0) return this.#write([...points, [round(where, 3), round(strength, 2)]]);
        if (points.length > 1) this.#write(points.filter((_, place) => place !== at));
    }

    #write(points) {
        if (!freeWidget(this.node, "points")) return;
        const inOrder = points.toSorted(([one], [other]) => one - other);
        setWidget(this.node, "points", inOrder.map(([where, strength]) => `${where}: ${strength}`).join(", "));
    }

    /** Hide the settings without use. Answers by how much the node is higher then, if its picture keeps its height. */
    #hideUnused() {
        const used = this.isDrawn ? [] : (USED[this.value("curve_type")] ?? SETTINGS);
        const isHidden = (widget) => SETTINGS.includes(widget.name) && !used.includes(widget.name);
        const changed = this.node.widgets.filter((widget) => !!widget.hidden !== isHidden(widget));
        if (!changed.length) return 0;
        const before = this.node.computeSize()[1];
        for (const widget of changed) widget.hidden = widget.options.hidden = isHidden(widget);
        const all = [...this.node.widgets];
        this.node.widgets = []; // a page that draws nodes as elements looks at options when widgets come and go
        this.node.widgets = all;
        return this.node.computeSize()[1] - before;
    }
}

const schedules = new WeakMap();

app.registerExtension({
    name: "BeyondCFG.Schedule",
    nodeCreated(node) {
        if (node.comfyClass !== NODE) return;
        const box = document.createElement("div");
        box.className = "beyond-cfg-schedule";
        box.style.cssText = "color: var(--input-text, #ccc); font: 12px sans-serif; overflow: hidden";
        const widget = node.addDOMWidget("picture", "picture", box, { serialize: false, getMinHeight: () => 150 });
        widget.serialize = false;
        const schedule = new Schedule(node, box);
        // Widgets change in many ways, not all of which call back: by hand, by undo, by a workflow that opens.
        const watch = setInterval(() => schedule.look(), 200);
        const removed = node.onRemoved;
        node.onRemoved = function (...all) {
            clearInterval(watch);
            return removed?.apply(this, all);
        };
        schedules.set(node, schedule);
    },
    loadedGraphNode(node) {
        schedules.get(node)?.open();
    },
});
