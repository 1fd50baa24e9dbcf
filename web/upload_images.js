// Load Domain Images takes uploads: images from the disk, or a whole folder, go into a new folder inside input.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const NODE = "DomainGalleryLoadImages"
const KINDS = /\.(png|jpe?g|webp|bmp|gif|tiff?|txt)$/i // images, and captions beside them
const AT_ONCE = 4

// The files that are taken: those of the folder itself where one was chosen, not of folders in it.
function taken(files) {
    return [...files].filter((file) => {
        const depth = (file.webkitRelativePath || "").split("/").length
        return KINDS.test(file.name) && !file.name.startsWith(".") && depth <= 2
    })
}

// A name of a new folder: that of the chosen one, with a number if there is one of this name.
function newFolder(files, known) {
    const chosen = (files[0].webkitRelativePath || "").split("/")[0]
    const name = chosen.replace(/[^\p{L}\p{N} ._-]/gu, "_").replace(/^[. ]+|[. ]+$/g, "") || "domain images"
    let folder = name
    for (let n = 2; known.includes(folder); n++) folder = `${name} ${n}`
    return folder
}

async function uploadOne(file, folder) {
    const body = new FormData()
    body.append("image", file, file.name)
    body.append("subfolder", folder)
    body.append("type", "input")
    const answer = await api.fetchApi("/upload/image", { method: "POST", body })
    if (!answer.ok) throw new Error(`${file.name}: ${answer.status} ${answer.statusText}`)
}

function tell(severity, summary, detail) {
    app.extensionManager.toast.add({ severity, summary, detail, life: 8000 })
}

// Every folder inside input, with images or without, so that none is written into by chance.
async function knownFolders() {
    const answer = await api.fetchApi("/object_info/LoadImageDataSetFromFolder")
    const info = answer.ok ? await answer.json() : {}
    const [options, more] = info.LoadImageDataSetFromFolder?.input.required.folder ?? [[]]
    return Array.isArray(options) ? options : (more?.options ?? [])
}

async function upload(node, button, given) {
    const files = taken(given)
    if (!files.some((file) => !/\.txt$/i.test(file.name))) {
        tell("warn", "Load Domain Images", "There is no image among these files.")
        return
    }
    const combo = node.widgets.find((widget) => widget.name === "folder")
    const folder = newFolder(files, [...combo.options.values, ...(await knownFolders())])
    const label = button.label
    let done = 0
    const left = [...files]
    const work = async () => {
        while (left.length) {
            await uploadOne(left.shift(), folder)
            button.label = `${++done} of ${files.length} uploaded`
            node.setDirtyCanvas(true, true)
        }
    }
    try {
        await Promise.all(Array.from({ length: AT_ONCE }, work))
        if (!combo.options.values.includes(folder)) combo.options.values.push(folder)
        combo.value = folder
        combo.callback?.(folder)
    } catch (error) {
        left.length = 0
        tell("error", "Load Domain Images", `Not all files could be uploaded. ${error.message}`)
    } finally {
        button.label = label
        node.setDirtyCanvas(true, true)
    }
}

function chooser(onFiles, wholeFolder) {
    const input = document.createElement("input")
    input.type = "file"
    input.multiple = true
    input.webkitdirectory = wholeFolder
    input.onchange = () => {
        if (input.files.length) onFiles([...input.files])
        input.value = ""
    }
    return input
}

app.registerExtension({
    name: "DomainGallery.UploadImages",
    nodeCreated(node) {
        if (node.comfyClass !== NODE) return
        for (const [label, wholeFolder] of [
            ["upload images", false],
            ["upload a folder", true],
        ]) {
            const input = chooser((files) => upload(node, button, files), wholeFolder)
            const button = node.addWidget("button", label, null, () => input.click(), { serialize: false })
            button.label = label
            button.serialize = false // it is no value of the node
        }
        const button = node.widgets.at(-2)
        node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file")
        node.onDragDrop = (event) => {
            const files = [...(event.dataTransfer?.files ?? [])]
            if (files.length) upload(node, button, files)
            return files.length > 0
        }
    },
})
