"""A custom node for tests of the client: it takes its time, says how far it is, and fails on request."""

import time

from comfy.utils import ProgressBar
from comfy_api.v0_0_2 import ComfyExtension, io
from server import PromptServer


class Wait(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestWait",
            display_name="Wait",
            category="tests",
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                io.Int.Input("steps", default=3, min=1, max=1000),
                io.Int.Input("seed", default=0, control_after_generate=True),
                io.Combo.Input("ending", options=["well", "badly"]),
                io.String.Input("note", default="", optional=True),
            ],
            outputs=[io.Int.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, steps, seed, ending, note=""):
        bar = ProgressBar(steps)
        for step in range(steps):
            time.sleep(0.12)  # the host passes on ten updates a second
            bar.update(1)
            PromptServer.instance.send_progress_text(f"step {step + 1}", cls.hidden.unique_id)
        if ending == "badly":
            raise ValueError("expected a good ending")
        return io.NodeOutput(seed, ui={"note": [note]})


class TestNodes(ComfyExtension):
    async def get_node_list(self):
        return [Wait]


async def comfy_entrypoint():
    return TestNodes()
