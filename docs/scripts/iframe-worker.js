// Browsers start no worker of a page that was opened as a file, and the search of mkdocs-material runs in one. Here a
// frame of the same page takes its place. Without it the offline plugin would fetch one of another site.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.scope = frame.contentWindow;
      this.ready = this.load(url);
      this.scope.importScripts = (...urls) => Promise.all(urls.map((other) => this.load(other)));
      this.scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
    }

    load(url) {
      return new Promise((resolve, reject) => {
        const script = this.scope.document.createElement("script");
        script.onload = resolve;
        script.onerror = reject;
        script.src = url;
        this.scope.document.body.appendChild(script);
      });
    }

    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.scope.frameElement.remove();
    }
  };
}
