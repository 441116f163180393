// Thumbnails: asked for when they are about to be seen, sent as bytes, kept while there is room.

const MOST_PICTURES = 2000; // kept in the page

export class Pictures {
  // `frames` tells what is shown now: pairs of an item and the element that its picture hangs in.
  constructor(link, frames) {
    this.link = link;
    this.frames = frames;
    this.kept = new Map(); // item -> {url, fault}, oldest first
    this.asked = new Set(); // items that are on their way
    link.on("msg:custom", (message, buffers) => this.received(message, buffers));
  }

  close() {
    for (const { url } of this.kept.values()) if (url) URL.revokeObjectURL(url);
  }

  // Hang what is here, and ask for the rest.
  show() {
    const lacking = [];
    for (const [item, frame] of this.frames()) {
      if (this.kept.has(item)) this.hang(frame, this.kept.get(item));
      else if (!this.asked.has(item)) lacking.push(item);
    }
    for (const item of lacking) this.asked.add(item);
    if (lacking.length) this.link.model.send({ do: "thumbnails", items: lacking });
  }

  hang(frame, { url, fault }) {
    if (frame.firstChild) return;
    const made = document.createElement(url ? "img" : "span");
    if (url) Object.assign(made, { src: url, alt: "", draggable: false });
    else Object.assign(made, { className: "tl-shot-fault", textContent: fault });
    frame.append(made);
  }

  received({ thumbnails = [], passed_over = [] }, buffers) {
    thumbnails.forEach(({ item, kind, fault }, place) => {
      this.asked.delete(item);
      if (this.kept.has(item)) return;
      const url = kind ? URL.createObjectURL(new Blob([buffers[place]], { type: kind })) : null;
      this.kept.set(item, { url, fault });
    });
    for (const item of passed_over) this.asked.delete(item);
    if (thumbnails.length) this.forget();
    if (thumbnails.length || passed_over.length) this.show();
  }

  forget() {
    const here = new Set(this.frames().map(([item]) => item));
    for (const [item, { url }] of this.kept) {
      if (this.kept.size <= MOST_PICTURES) return;
      if (here.has(item)) continue;
      if (url) URL.revokeObjectURL(url);
      this.kept.delete(item);
    }
  }
}
