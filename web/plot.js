// A curve with points that can be dragged, drawn with the colours of the page.

const SVG = "http://www.w3.org/2000/svg";
const LINE = "#e8590c";
const MARGIN = { left: 34, right: 12, top: 10, bottom: 20 };

/** Of 1, 2 and 5 times a power of ten, the step with which a span has at most `count` pieces. */
function stepFor(span, count) {
    const power = 10 ** Math.floor(Math.log10(span / count));
    return [1, 2, 5, 10].map((one) => one * power).find((step) => span / step <= count);
}

function ticks(low, high, count) {
    const step = stepFor(high - low, count);
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, at) =>
        Number(((first + at) * step).toPrecision(6)),
    );
}

/** Where a plot's axes go, and from there to pixels and back. */
class Axes {
    constructor(box, { low, high, line, points }, falls) {
        this.width = Math.max(box.clientWidth, 120);
        this.height = Math.max(box.clientHeight, 80);
        const strengths = [...line, ...points].map(([, strength]) => strength);
        Object.assign(this, { low, high, falls, bottom: Math.min(0, ...strengths), top: Math.max(1, ...strengths) });
        this.top += 0.08 * (this.top - this.bottom);
        if (this.bottom < 0) this.bottom -= 0.08 * (this.top - this.bottom);
    }
    x(where) {
        const share = (where - this.low) / (this.high - this.low);
        return MARGIN.left + (this.falls ? 1 - share : share) * (this.width - MARGIN.left - MARGIN.right);
    }
    y(strength) {
        const share = (strength - this.bottom) / (this.top - this.bottom);
        return this.height - MARGIN.bottom - share * (this.height - MARGIN.top - MARGIN.bottom);
    }
    /** Whether two points (where, strength) are drawn at one place. */
    isNear([where, strength], [other, others]) {
        return Math.hypot(this.x(where) - this.x(other), this.y(strength) - this.y(others)) < 8;
    }
    /** [where, strength] under the mouse; the page may be zoomed. */
    at(event, svg) {
        const seen = svg.getBoundingClientRect();
        const x = ((event.clientX - seen.left) / seen.width) * this.width;
        const y = ((event.clientY - seen.top) / seen.height) * this.height;
        const across = (x - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
        const up = (this.height - MARGIN.bottom - y) / (this.height - MARGIN.top - MARGIN.bottom);
        return [
            this.low + (this.falls ? 1 - across : across) * (this.high - this.low),
            this.bottom + up * (this.top - this.bottom),
        ];
    }
}

function draw(parent, tag, attributes, text) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
}

/**
 * @typedef {object} Drawing
 * @property {number} low where the axis begins
 * @property {number} high where it ends
 * @property {[number, number][]} line points (where, strength) that straight lines join
 * @property {[number, number][]} points those that can be dragged
 */

export class Plot {
    /**
     * @param {HTMLElement} box that it fills
     * @param {{moved: (at: number, to: [number, number]) => Drawing, dropped: () => void,
     *     clicked: (to: [number, number], at: number) => void}} hands what is done with the mouse: a point was dragged to a
     *     place, which answers what to draw now; it was dropped; a place was double-clicked, on a point or on none (-1)
     */
    constructor(box, hands) {
        Object.assign(this, { box, hands });
        new ResizeObserver(() => this.drawing && this.show(this.drawing, this.about)).observe(box);
    }

    /** Draw it. `about`: {falls: whether high is on the left, label: of the axis} */
    show(drawing, about) {
        Object.assign(this, { drawing, about });
        const axes = this.held ? this.axes : new Axes(this.box, drawing, about.falls);
        const svg = this.held ? this.svg : document.createElementNS(SVG, "svg");
        Object.assign(this, { axes, svg });
        svg.replaceChildren();
        svg.setAttribute("viewBox", `0 0 ${axes.width} ${axes.height}`);
        svg.style.cssText = "width: 100%; height: 100%; display: block; touch-action: none";
        this.#axes(svg, axes, about);
        const path = drawing.line.map(([where, strength]) => `${axes.x(where)},${axes.y(strength)}`).join(" ");
        draw(svg, "polyline", { points: path, fill: "none", stroke: LINE, "stroke-width": 2 });
        drawing.points.forEach((point, at) => this.#handle(svg, axes, point, at));
        if (!this.held) this.box.replaceChildren(svg);
        svg.ondblclick = (event) => {
            const place = axes.at(event, svg);
            this.hands.clicked(
                place,
                drawing.points.findIndex((point) => axes.isNear(point, place)),
            );
        };
    }

    #axes(svg, axes, { label }) {
        const words = { fill: "currentColor", "font-size": 11, "font-family": "sans-serif", opacity: 0.8 };
        const [left, right, floor] = [MARGIN.left, axes.width - MARGIN.right, axes.height - MARGIN.bottom];
        for (const strength of ticks(axes.bottom, axes.top, Math.max(2, axes.height / 40))) {
            const y = axes.y(strength);
            const opacity = strength === 0 || strength === 1 ? 0.45 : 0.15;
            draw(svg, "line", { x1: left, x2: right, y1: y, y2: y, stroke: "currentColor", opacity });
            draw(svg, "text", { ...words, x: left - 5, y: y + 4, "text-anchor": "end" }, strength);
        }
        const marks = ticks(axes.low, axes.high, Math.max(2, (right - left) / 70)).filter(
            (where) => Math.abs(axes.x(where) - (left + right) / 2) > 60,
        );
        for (const where of marks) {
            draw(svg, "text", { ...words, x: axes.x(where), y: floor + 15, "text-anchor": "middle" }, where);
        }
        draw(svg, "text", { ...words, x: (left + right) / 2, y: floor + 15, "text-anchor": "middle" }, label);
    }

    #handle(svg, axes, [where, strength], at) {
        if (where < axes.low || where > axes.high) return;
        const spot = draw(svg, "circle", {
            cx: axes.x(where),
            cy: axes.y(strength),
            r: 5,
            fill: LINE,
            "data-at": at,
        });
        spot.style.cursor = "grab";
        draw(spot, "title", {}, `${where}: ${strength}`);
        spot.onpointerdown = (event) => {
            if (event.button) return;
            event.stopPropagation();
            this.#drag(svg, axes, at, event.pointerId);
        };
    }

    #drag(svg, axes, at, pointer) {
        this.held = true;
        svg.setPointerCapture(pointer);
        svg.onpointermove = (event) => {
            event.stopPropagation();
            this.show(this.hands.moved(at, axes.at(event, svg)), this.about);
        };
        svg.onpointerup = svg.onpointercancel = (event) => {
            event.stopPropagation();
            this.held = false;
            svg.onpointermove = svg.onpointerup = svg.onpointercancel = null;
            this.hands.dropped();
        };
    }
}
