// An example opens where its author left the view. From its list of templates the page would fit all of the graph, so small
// that a laptop shows boxes without text.
import { app } from "../../scripts/app.js";

const MARK = "beyondCfgExample"; // in `extra` of an example's file, until it is opened

let opened = 0; // graphs

app.registerExtension({
    name: "BeyondCFG.Examples",

    afterConfigureGraph() {
        const own = ++opened;
        const { canvas, rootGraph } = app;
        if (!rootGraph?.extra?.[MARK]) return;
        delete rootGraph.extra[MARK]; // what the user makes of it is the user's workflow
        const { scale, offset } = rootGraph.extra.ds;
        const look = () => {
            if (own !== opened) return;
            canvas.ds.scale = scale;
            canvas.ds.offset = [...offset];
            canvas.setDirty(true, true);
        };
        // Behind an app the canvas has no size yet. The page fits the graph once more when it has one.
        const lookLater = () => {
            if (own !== opened) return;
            const next = canvas.canvas.width ? () => requestAnimationFrame(look) : lookLater;
            requestAnimationFrame(next);
        };
        if (canvas.canvas.width) look();
        else lookLater();
    },
});
