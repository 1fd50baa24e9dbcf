"""What the notes in the workflows for one's own checkpoint say, in Markdown."""

TEACH = """
# Train a style LoRA

About ten images teach your model a style, or anything else that they share.

1. Put the images into a folder inside `input`, then press **R**. All show one kind of thing, such as faces,
and differ in all else. {size}
2. Choose your **checkpoint** and the **folder**.
3. Type the **category**: the noun for what the images show, such as dog. Type a **name** for the file.
4. Press *Run*.

The LoRA is in `output/loras`, and *Load LoRA* lists it after a press of **R**. In a prompt, **sks** calls
it up: "a sks dog".

**preset** says how much is done. *look* gives a first impression in a fraction of the time, *paper* is the
full method, *low memory* is for a small card.

The picture shows the same noise four times: the model before, after the word sks was erased, with what was
learned, and with another category in the learned style.

A right click on *Teach a Domain* and *Unpack Subgraph* show every step of it as nodes.
"""

SD15 = "256 pixels on each side are the least, 512 are better."
SDXL = "512 pixels on each side are the least, 1024 are better."
