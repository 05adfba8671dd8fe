// Notices at the top of the canvas. They are like the host's toasts, which can hold no button.
import { app } from "../../scripts/app.js";

const COLORS = { error: "#e5484d", warning: "#e8a33d" };
const SECONDS = { error: Infinity, warning: 20 };

/** @typedef {{label: string, act: () => void}} Button */

const box = document.createElement("div");
box.className = "beyond-cfg-notices";
box.style.cssText = `position: fixed; z-index: 10001; display: flex; flex-direction: column; gap: 8px; width: 460px;
    max-width: calc(100vw - 32px); transform: translateX(-50%); pointer-events: none`;

function place() {
    const canvas = app.canvas.canvas.getBoundingClientRect();
    box.style.top = `${canvas.top + 56}px`;
    box.style.left = `${canvas.left + canvas.width / 2}px`;
    document.body.append(box);
}

function element(tag, style, ...content) {
    const made = document.createElement(tag);
    made.style.cssText = style;
    made.append(...content);
    return made;
}

function button(label, act) {
    const made = element(
        "button",
        `border: 1px solid var(--border-color, #555); border-radius: 6px; padding: 4px 10px;
        background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); font: inherit; cursor: pointer`,
        label,
    );
    made.onclick = act;
    return made;
}

/**
 * Show a text until the user closes it; a warning goes after a while.
 * @param {"error" | "warning"} kind
 * @param {string} text
 * @param {Button[]} buttons each closes the notice
 */
export function notify(kind, text, buttons = []) {
    [...box.children].find((one) => one.dataset.text === text)?.remove();
    const close = element(
        "button",
        `border: 0; background: none; color: inherit; font-size: 16px; line-height: 1;
        cursor: pointer; padding: 2px 4px; align-self: start`,
        "×",
    );
    close.ariaLabel = "Close";
    const row = element("div", "display: flex; gap: 8px; flex-wrap: wrap; margin-top: 8px");
    const words = element("div", "flex: 1; min-width: 0; overflow-wrap: anywhere; white-space: pre-wrap", text);
    const notice = element(
        "div",
        `display: flex; gap: 10px; padding: 12px; border-radius: 8px; font: 14px/1.4 sans-serif;
        background: var(--comfy-menu-bg, #2a2a2a); color: var(--input-text, #ddd); pointer-events: auto;
        border: 1px solid var(--border-color, #555); border-left: 4px solid ${COLORS[kind]};
        box-shadow: 0 4px 16px rgb(0 0 0 / 40%)`,
        words,
        close,
    );
    close.onclick = () => notice.remove();
    for (const { label, act } of buttons) row.append(button(label, () => (act(), notice.remove())));
    if (buttons.length) words.append(row);
    notice.role = kind === "error" ? "alert" : "status";
    Object.assign(notice.dataset, { kind, text });
    place();
    box.append(notice);
    if (SECONDS[kind] < Infinity) setTimeout(() => notice.remove(), 1000 * SECONDS[kind]);
}

/** Take all notices away. */
export function clearNotices() {
    box.replaceChildren();
}
