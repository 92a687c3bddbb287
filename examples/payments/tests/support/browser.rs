//! Chromium without a window, led by chromedriver.
#![allow(unreachable_pub, reason = "part of a test")]

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redlock_tests::eventually;
use serde_json::json;
use tempfile::TempDir;
use thirtyfour::common::capabilities::chromium::ChromiumLikeCapabilities;
use thirtyfour::prelude::*;

use super::SOON;

/// Kills chromedriver when standard input ends, also when the tests are killed. Chromium, which is
/// told by a pipe, ends with it.
const LEASH: &str = r#"
trap : HUP INT TERM PIPE
"$0" "$@" </dev/null >/dev/null 2>&1 &
read -r _
kill -9 $!
wait $!
"#;

/// A browser of its own; ends when dropped.
pub struct Browser {
    pub page: WebDriver,
    leash: Child,
    profile: TempDir,
}

impl Browser {
    /// A desktop window, or a phone that is so wide.
    pub async fn start(phone: Option<u32>) -> Self {
        let port = {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            free.local_addr().unwrap().port()
        };
        let profile = tempfile::Builder::new().prefix("payments-chromium-").tempdir().unwrap();
        let leash = Command::new("sh")
            .args(["-c", LEASH, "chromedriver", &format!("--port={port}")])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut capabilities = DesiredCapabilities::chrome();
        for argument in [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--remote-debugging-pipe",
            "--window-size=1280,800",
            &format!("--user-data-dir={}", profile.path().display()),
        ] {
            capabilities.add_arg(argument).unwrap();
        }
        if let Some(width) = phone {
            let metrics = json!({ "width": width, "height": 740, "pixelRatio": 2, "touch": true });
            let phone = json!({ "deviceMetrics": metrics });
            capabilities.add_experimental_option("mobileEmulation", phone).unwrap();
        }
        let driver = format!("http://127.0.0.1:{port}");
        let what = "Chromium to start; scripts/test installs chromium and chromium-driver";
        let page = eventually(SOON * 2, what, async || {
            WebDriver::new(&driver, capabilities.clone()).await
        })
        .await;
        Self { page, leash, profile }
    }

    /// What a person reads in an element, once it contains this.
    pub async fn reads(&self, css: &str, text: &str) -> String {
        eventually(SOON, &format!("`{css}` to say `{text}`"), async || {
            let found = self.text(css).await;
            if found.contains(text) { Ok(found) } else { Err(format!("it says `{found}`")) }
        })
        .await
    }

    /// What is visible in the first such element; empty if there is none.
    pub async fn text(&self, css: &str) -> String {
        match self.page.find(By::Css(css)).await {
            Ok(element) => element.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    pub async fn texts(&self, css: &str) -> Vec<String> {
        let mut texts = Vec::new();
        for element in self.page.find_all(By::Css(css)).await.unwrap() {
            texts.push(element.text().await.unwrap());
        }
        texts
    }

    /// Presses the button that is labelled so, as soon as it can be pressed.
    pub async fn press(&self, label: &str) {
        let button = By::XPath(format!(
            "//button[normalize-space()='{label}' and not(@hidden) and not(@disabled)]"
        ));
        eventually(SOON, &format!("to press `{label}`"), async || {
            let button = self.page.find(button.clone()).await?;
            button.click().await
        })
        .await;
    }

    pub async fn value(&self, script: &str) -> serde_json::Value {
        self.page.execute(script, Vec::new()).await.unwrap().json().clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.leash.stdin.take());
        self.leash.wait().map(drop).unwrap_or_default();
        // Chromium writes to its profile to the last: it can only be removed afterwards.
        let give_up = Instant::now() + SOON;
        while is_named_by_a_process(self.profile.path()) && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn is_named_by_a_process(path: &Path) -> bool {
    let path = path.as_os_str().as_encoded_bytes();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut commands =
        processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    commands.any(|command| command.windows(path.len()).any(|part| part == path))
}
