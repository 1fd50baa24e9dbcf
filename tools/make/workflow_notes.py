"""What the notes in the workflows say, in Markdown; each paragraph becomes one line."""

OWN_MODEL = """
**With your own model** replace *Load Sketchbook Demo Model* by *Load Checkpoint* and set the sizes to the
model's (512 for Stable Diffusion 1.x). Then take the paper's settings, which are also those of a fresh node:

| | this demo | Stable Diffusion 1.x |
|---|---|---|
| source images | {source_count} of {size} px | 1000 of 512 px |
| erase | {erase_steps} steps, {erase_rate:g} | 500 steps, 1e-4 |
| learn | {train_steps} steps, {train_rate:g} | 1000 steps, 5e-5 |
| rank and alpha | {rank} | 4 |
| cfg | {cfg:g} | 7.5 |
| sampling | {sampling_steps} steps | 50 steps, ddim |
| enhancement | {v_uncond:g} (V-uncond), {vn_n:g} (VN-N) | 1 |
| strength of the LoRA in 03 and 08 | {strength_elsewhere:g} | 1 |

The demo model is small, so it learns by larger steps and takes less guidance.
"""

TEACH = """
# Teach a domain

Ten faces in a style that is new to the model, {domain}, teach it that style. The word **sks** will stand for
it. Press *Run*, wait some minutes, and look at the pictures on the right.

1. The model draws its own faces, the *source images*. They keep it from forgetting what a face is.
2. **Erase.** The model already knows a meaning of sks: camouflage. Stage 1 removes it.
3. **Learn.** Stage 2 learns the domain from the ten images.
4. Both LoRAs are saved to `output/loras`.
5. Three samplers draw "a sks face" from the same noise: before, after erasing, after learning.

Next: the workflows 02 to 05 and 08 draw with the domain.
"""

OWN_IMAGES = """
**Your own images**: about ten, all of one category. They share what the domain is about, and differ in
everything else. Put them into a folder inside `input`, press **R**, and connect *Load Domain Images* in
place of *Sketchbook Demo Images*. Or join *Load Image* nodes by *Batch Images*.

Change **category** in *Domain Prompts* to the noun that fits them.
"""

SAVED = """
Each run saves new files with a number at the end, first `sketchbook_{domain}_00001_.safetensors`. The LoRA
loaders list them after a press of **R**.
"""

FILE = """
The LoRA here, `sketchbook_{domain}.safetensors`, came with the pack. To draw with the one that *01 teach a
domain* saved, press **R** and choose `sketchbook_{domain}_00001_.safetensors` in *Load LoRA of the domain*.
"""

SAME = """
# Same category

What was taught is a LoRA like any other: *Load LoRA* and the host's own samplers are all it takes. The word
that calls it up is **sks**.

For the category that it was taught with, a face, no enhancement is needed.
"""

OTHER = """
# Other categories

The domain was taught with faces. Here it draws houses and cars, from the same noise in three ways:

- **none**: plain guidance. What is missing of the domain, such as a colour that stayed, shows here.
- **V-uncond** adds what the word sks stands for by itself. It is the paper's choice.
- **VN-N** adds what sks changes in the category.

**enhancement** says how much is added; 0 is nothing. Too much, and the pictures look overdone.

The LoRA is loaded with a strength of {strength_elsewhere:g}. At 1 this small model brings nearly all of the
domain to other categories by itself; below, a part is missing, and enhancement gives it back.

*Domain Prompts* must name the category that is drawn, as VN-N compares with it.
"""

ATTRIBUTES = """
# Extra attributes

Words that the model knows combine with the domain: things, places, whatever the model can draw. Write them
around "a sks face".

Attributes that contradict the domain, such as a colour where the domain has its
own, give something in between.
"""

SUBJECT = """
# With a subject LoRA

*Olis* is one particular character that the model has never seen. Five pictures teach the word **olis** to
the model, with the target and prior terms alone: two weights in *Domain Training Options* are 0, which
makes this DreamBooth with LoRA. The prior has a weight of {subject_prior_weight:g} here, as the small model
would learn too little of the character with the usual 1.

Then the subject and the domain are chained, and "a sks olis face" asks for both. The subject is loaded with a
strength of {strength_of_subject:g}. Expect the domain to win: the small model learns a style more easily than
a character.
"""

STRENGTH = """
Does one of the two drown the other? Lower its **strength_model**, or raise that of the other, by 0.1.
"""

JOINT = """
# A subject with the domain

*Olis* is one particular character, {domain} a style, and the model knows neither. Here both are learned at
once, in one LoRA: the words **sks** and **olis** are erased, then ten images teach the domain and five the
subject.

The demo model takes a subject less easily than a style: **subject_weight** is {joint_subject_weight:g}, the
paper's is 1, and still it learns the domain here and of the subject little. 05 shows the subject better.

"a sks olis face" asks for both. To chain a subject's LoRA with a domain's instead, see 05.

Your subject is of another category than your images? Draw its source images by a second *Domain Source
Images* with its prompts, and connect them to the subject's *Domain Dataset* and, as *subject_dataset*, to
*1  Erase both words*.
"""

CATEGORIES = """
# Several categories

Six faces and four houses in the same style, {domain}, teach it together. *Domain Prompts* names both,
**face, house**, and *Domain Dataset* says which image is which: **6 face, 4 house**. The model draws source
images of each, and each training step is of one.

A style that two categories share is told apart more easily from what each of them shows. The last row draws
cars, which were not taught.

**Your own images**: with *Load Domain Images*, write the category of each image into a text file beside it,
`cat.txt` for `cat.jpg`, and connect *captions* to *categories*.
"""

SWEEP = """
# Choose an enhancement

How much enhancement a category takes differs. *Domain Enhancement Sweep* draws the same houses with both
modes and several strengths, as one picture with labels. A column further to the right has more of the domain,
until the pictures look overdone.

Take the row and the column that you like over to *Domain Enhancement*. It stands between the LoRA and any
sampler, here the host's own KSampler, and costs one more evaluation in each step.

Two domains at once: load both LoRAs, and chain a second *Domain Enhancement* with the *Domain Prompts* of
the other domain. A strength below 0 takes a domain out of the picture.
"""

COMPARE = """
# Compare methods

The same ten images, words, source images and noise for DomainGallery and four systems that one would use
in its place. Press *Run*; on two cores it takes about ten minutes.

- **DreamBooth** learns in all weights, with the source images as prior preservation.
- **DreamBooth LoRA** is the same in a LoRA.
- **DomainStudio** is DreamBooth with three terms that look at pictures.
- **Textual Inversion** leaves the model alone and learns a new word, which is saved and then used in prompts.

*Methods: methods* shows what each draws for "a sks face", and below it a line of what each cost. *Methods:
enhanced* asks each for houses, which were not taught, without enhancement and with the same for all.

The steps and rates here were chosen for this small model by a few trials of each method. A fresh *Train
Baseline* has those of each method's own recipe for Stable Diffusion.

Look at three things: is it the style of the ten images? Is it still a house? Are the four pictures
different from each other?
"""
