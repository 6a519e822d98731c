//! Chromium, driven over its DevTools protocol: JSON messages that end with NUL, in one pipe and out of another.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// No answer may take longer.
const LIMIT: Duration = Duration::from_secs(60);
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// Finds Chromium: `CHROME` or a usual name on the path.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = || {
        let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        NAMES.iter().flat_map(move |name| folders.clone().into_iter().map(move |folder| folder.join(name)))
    };
    std::env::var_os("CHROME")
        .map(PathBuf::from)
        .into_iter()
        .chain(on_path())
        .find(|program| program.is_file())
}

/// A browser with one page.
pub struct Browser {
    process: Child,
    input: Option<ChildStdin>,
    messages: mpsc::Receiver<Value>,
    last_id: u64,
    session: Option<Value>,
    /// The events of the page since [`Browser::open`].
    pub events: Vec<(String, Value)>,
}

impl Browser {
    /// Starts `program` with a profile of its own in `folder`.
    pub fn start(program: &Path, folder: &Path) -> Self {
        // The protocol is spoken on the descriptors 3 and 4. A browser in a container has no sandbox of its own to set up.
        let mut process = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "sh"])
            .arg(program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
            ])
            .args([
                "--hide-scrollbars",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ])
            .arg("--remote-debugging-pipe")
            .arg(format!("--user-data-dir={}", folder.join("profile").display()))
            .arg("about:blank")
            .env("HOME", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (send, messages) = mpsc::channel();
        thread::spawn(move || {
            for message in output.split(0).map_while(Result::ok) {
                if send.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    break;
                }
            }
        });
        let mut browser = Self { process, input, messages, last_id: 0, session: None, events: vec![] };
        let page = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": page, "flatten": true }));
        browser.session = Some(attached["sessionId"].clone());
        for domain in ["Page", "Network", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// The result of a command.
    #[track_caller]
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last_id += 1;
        let mut message = json!({ "id": self.last_id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.clone();
        }
        let input = self.input.as_mut().unwrap();
        input.write_all(format!("{message}\0").as_bytes()).unwrap();
        input.flush().unwrap();
        loop {
            let answer = self.next();
            if answer["id"] == self.last_id {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    #[track_caller]
    fn next(&mut self) -> Value {
        let message = self
            .messages
            .recv_timeout(LIMIT)
            .unwrap_or_else(|error| panic!("the browser is silent: {error}"));
        if let Some(name) = message["method"].as_str() {
            self.events.push((name.to_owned(), message["params"].clone()));
        }
        message
    }

    /// Opens a file, and waits until it is loaded.
    #[track_caller]
    pub fn open(&mut self, file: &Path) {
        self.events.clear();
        let answer = self.call("Page.navigate", json!({ "url": format!("file://{}", file.display()) }));
        assert!(answer.get("errorText").is_none(), "{answer}");
        while !self.events.iter().any(|(name, _)| name == "Page.loadEventFired") {
            self.next();
        }
    }

    /// The window's width, and what the reader has chosen: `light` or `dark`.
    pub fn show(&mut self, width: u32, scheme: &str) {
        let size = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.call("Emulation.setEmulatedMedia", json!({ "features": [feature] }));
    }

    /// The value of a JavaScript expression.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> Value {
        let answer =
            self.call("Runtime.evaluate", json!({ "expression": expression, "returnByValue": true }));
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Clicks on the middle of an element.
    pub fn click(&mut self, selector: &str) {
        let place = self.value(&format!(
            "(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView({{ block: 'center' }}); \
             const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let event =
                json!({ "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Without its pipe the browser ends; waiting keeps the folder whole until it has.
        drop(self.input.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
