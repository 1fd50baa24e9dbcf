// A button on each training node: end the training that runs on it, and go on with what was learned.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const LABEL = "stop and keep";

function trains(data) {
    return data?.name?.startsWith("DomainGallery") && data.output?.includes("LOSS_MAP");
}

async function stop(node) {
    const answer = await api.fetchApi("/domaingallery/stop", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ node: String(node.id) }),
    });
    const { stopped } = await answer.json();
    if (!stopped) {
        app.extensionManager.toast.add({
            severity: "info",
            summary: "Nothing to stop",
            detail: `${node.title} does not train at the moment.`,
            life: 4000,
        });
    }
}

app.registerExtension({
    name: "DomainGallery.StopAndKeep",
    nodeCreated(node) {
        if (!trains(node.constructor.nodeData)) return;
        const button = node.addWidget("button", LABEL, null, () => stop(node), {
            tooltip: "End the training after the step that runs, and go on with what was learned so far.",
            serialize: false, // in a prompt
        });
        button.serialize = false; // in a workflow
    },
});
