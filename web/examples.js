// An example opens where its author left the view. From its list of templates the page would fit all of the graph, so small
// that a laptop shows boxes without text.
import { app } from "../../scripts/app.js";

const MARK = "beyondCfgExample"; // in `extra` of an example's file, until it is opened

app.registerExtension({
    name: "BeyondCFG.Examples",

    afterConfigureGraph() {
        const { canvas, rootGraph } = app;
        if (!rootGraph?.extra?.[MARK]) return;
        delete rootGraph.extra[MARK]; // what the user makes of it is the user's workflow
        const { scale, offset } = rootGraph.extra.ds;
        canvas.ds.scale = scale;
        canvas.ds.offset = [...offset];
        canvas.setDirty(true, true);
    },
});
