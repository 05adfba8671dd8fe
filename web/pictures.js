// A new node whose picture is to be read is as large as its letters need.
import { app } from "../../scripts/app.js";

const SIZES = { BeyondCFGReport: [460, 780], BeyondCFGSweep: [460, 420] };

app.registerExtension({
    name: "BeyondCFG.Pictures",
    nodeCreated(node) {
        const size = SIZES[node.comfyClass];
        if (size) node.setSize([Math.max(node.size[0], size[0]), Math.max(node.size[1], size[1])]);
    },
});
