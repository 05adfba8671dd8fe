// What a node of this pack refuses is said in a notice: the sentence itself, with a button for the cure where one is plain.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { clearNotices, notify } from "./notices.js";
import { freeWidget, isOurs, nodeOf, nodesNamedBy, setWidget, settingOf, show, typesNamedBy } from "./nodes.js";

/** What would cure an error: the values that the sentence itself proposes, else the defaults of what it names first. */
function cure(node, sentence) {
    const [, name, value] = sentence.match(/\bset (\w+) to ([\w.-]+)/i) ?? [];
    if (name && freeWidget(node, name)) return { [name]: isNaN(value) ? value : Number(value) };
    const [clause] = sentence.split(";");
    const named = (node.widgets ?? [])
        .map((widget) => widget.name)
        .filter((one) => RegExp(`\\b${one} (is |")`).test(clause));
    const wrong = named.filter((one) => {
        const initial = settingOf(node, one).default;
        return ![undefined, "", freeWidget(node, one)?.value ?? initial].includes(initial);
    });
    return Object.fromEntries(wrong.map((one) => [one, settingOf(node, one).default]));
}

function say(sentence, nodes) {
    const [node] = nodes;
    const buttons = [];
    const values = nodes.length === 1 ? Object.entries(cure(node, sentence)) : [];
    if (values.length) {
        const label = `Set ${values.map(([name, value]) => `${name} to ${value}`).join(", ")}`;
        buttons.push({ label, act: () => values.forEach(([name, value]) => setWidget(node, name, value)) });
    }
    if (node) buttons.push({ label: "Show the node", act: () => show(node) });
    notify("error", sentence, buttons);
}

/** An error while a prompt ran. A sampler reports what a guidance on its model found. */
async function failed({ detail }) {
    const { node_id, node_type, exception_message } = detail;
    const sentence = exception_message.trim();
    if (await isOurs(node_type)) return say(sentence, [nodeOf(node_id)].filter(Boolean));
    if ((await typesNamedBy(sentence)).length) say(sentence, await nodesNamedBy(sentence, node_id));
}

/** What the host refused before it ran: node id → its errors. Those of its own are in its own words in its own notice. */
async function refused(errors) {
    for (const [id, { errors: found }] of Object.entries(errors ?? {}))
        for (const { details } of found)
            if ((await typesNamedBy(details)).length) say(details, await nodesNamedBy(details, id));
}

app.registerExtension({
    name: "BeyondCFG.Errors",
    setup() {
        api.addEventListener("execution_error", failed);
        const queue = api.queuePrompt;
        api.queuePrompt = async function (...all) {
            clearNotices();
            try {
                const answer = await queue.apply(this, all);
                refused(answer.node_errors);
                return answer;
            } catch (error) {
                refused(error.response?.node_errors);
                throw error;
            }
        };
    },
});
