//! The page, as a person has it: buttons are pressed, and what is visible is read.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/browser.rs"]
mod browser;
mod support;

use redlock_tests::eventually;
use serde_json::json;
use thirtyfour::prelude::*;

use crate::browser::Browser;
use crate::support::processes::{Running, service};
use crate::support::{Database, SOON};

const SAID: &str = "#said";
const NEWEST: &str = "#runs > li:first-child";

/// The requests of the newest run.
async fn requests(browser: &Browser) -> Vec<String> {
    browser.texts(&format!("{NEWEST} .request")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_pressed_there_is_one_charge_and_it_is_seen_who_waits_for_whom() {
    let database = Database::sqlite();
    let running = Running::start(service(&database).args(["--with-redis", "3"]));
    let browser = Browser::start(None).await;
    browser.page.goto(&running.url).await.unwrap();
    browser.reads("#live", "live").await;
    browser.reads("#where", "on its own Redis").await;
    browser.reads("#database", "SQLite").await;
    browser.reads("#majority", "3 of 3 vote").await;

    browser.press("Pay once").await;
    browser.reads(SAID, "1 request, one charge of €19.99.").await;
    browser.reads(&format!("{NEWEST} .request"), "201 charged").await;
    browser.reads("#balance", "€980.01").await;
    browser.reads("#entries .mine", "this charge").await;

    browser.press("Pay 20 times at once").await;
    browser.reads(SAID, "21 requests, one charge of €19.99.").await;
    browser.reads(&format!("{NEWEST} .sum"), "21 requests: 1 charged").await;
    browser.reads(&format!("{NEWEST} .sum"), "replayed").await;
    assert_eq!(requests(&browser).await.len(), 21);
    browser.reads("#balance", "€960.02").await;
    browser.reads("#charges", "2 charges").await;

    browser.press("Slow provider").await;
    browser.reads("#locks", "slow-").await;
    browser.reads("#locks", "unless renewed, fencing token").await;
    browser.reads(NEWEST, "423 locked").await;
    assert!(requests(&browser).await.iter().any(|said| said.contains("wait ")), "how long to wait");
    browser.reads(SAID, "5 requests, one charge of €19.99.").await;
    browser.reads(&format!("{NEWEST} .sum"), "5 requests: 1 charged, 1 replayed").await;
    let said = requests(&browser).await;
    assert!(said[0].contains("201 charged") && said[4].contains("201 replayed"), "{said:?}");
    browser.reads("#no-locks", "No lock is held.").await;

    browser.press("Stop a Redis").await;
    browser.reads("#majority", "2 of 3 vote: a majority").await;
    browser.press("Pay once").await;
    browser.reads(SAID, "1 request, one charge").await;
    browser.press("Stop a Redis").await;
    browser.reads("#majority", "1 of 3 vote: no majority").await;
    eventually(SOON, "payments to be refused", async || {
        browser.press("Pay once").await;
        browser.reads(NEWEST, "1 request:").await;
        browser.text(&format!("{NEWEST} .request")).await.contains("503 not available")
    })
    .await;
    browser.reads(SAID, "Not charged (503)").await;
    browser.press("Start again").await;
    browser.reads("#servers", "in quarantine").await;
    assert_eq!(running.charges().await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_phone_servers_are_under_the_buttons_and_a_started_one_keeps_focus_and_counts_down() {
    let database = Database::sqlite();
    let running = Running::start(service(&database).args(["--with-redis", "1"]));
    let browser = Browser::start(Some(360)).await;
    browser.page.goto(&running.url).await.unwrap();
    browser.reads("#majority", "1 of 1 vote").await;
    let sections = "return [...document.querySelectorAll('main section')]
        .sort((one, other) => one.getBoundingClientRect().top - other.getBoundingClientRect().top)
        .map((section) => section.querySelector('h2').textContent)";
    let sections = browser.value(sections).await;
    assert_eq!(sections[0], "Pay");
    assert_eq!(sections[1], "Lock servers", "{sections}");

    browser.press("Stop a Redis").await;
    browser.reads("#servers", "stopped").await;
    browser.reads("#stop-note", "All of them are stopped").await;
    let focus = "return document.activeElement.getAttribute('aria-label')";
    browser.value("document.querySelector('#servers button').focus()").await;
    assert_eq!(browser.value(focus).await, "Start Redis 1 again");
    press_key(&browser, Key::Enter).await;
    browser.reads("#servers", "in quarantine").await;
    assert_eq!(browser.value(focus).await, "Stop Redis 1");
    let left = async || {
        let shown = browser.text("#servers small").await;
        shown.strip_prefix("votes in ")?.strip_suffix(" s")?.parse::<u64>().ok()
    };
    let first = eventually(SOON, "a countdown", async || left().await).await;
    assert!((1..=11).contains(&first), "{first}");
    eventually(SOON, "it counts down", async || left().await.filter(|left| *left < first)).await;
    browser.reads("#servers", "votes").await;
    assert_eq!(browser.value(focus).await, "Stop Redis 1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_may_not_listen_says_so_and_still_pays() {
    let database = Database::sqlite();
    let running = Running::start(service(&database).env("PAYMENTS_READERS", "0"));
    let browser = Browser::start(None).await;
    browser.page.goto(&running.url).await.unwrap();
    browser.reads("#live", "busy, trying again").await;
    browser.press("Pay once").await;
    browser.reads("#balance", "€980.01").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_phone_and_by_keyboard_it_says_that_locks_are_in_memory_and_loads_nothing_else() {
    let database = Database::sqlite();
    let running = Running::start(&mut service(&database));
    let browser = Browser::start(Some(360)).await;
    browser.page.goto(&running.url).await.unwrap();
    let notice = browser.reads("#notice", "cargo run -p payments -- --with-redis 3").await;
    assert!(notice.contains("started without lock servers"), "{notice}");
    browser.reads("#where", "in memory").await;
    let visible = "return [...document.querySelectorAll('button')]
        .filter((button) => button.checkVisibility()).map((button) => button.textContent)";
    let buttons = json!(["Pay once", "Pay 20 times at once", "Slow provider"]);
    assert_eq!(browser.value(visible).await, buttons, "nothing that can never be pressed");
    let cut_off = "const code = document.querySelector('#notice code');
        return code.scrollWidth - code.clientWidth";
    assert_eq!(browser.value(cut_off).await, 0, "the command can be read to its end");
    browser.reads("#live", "live").await;

    // From the top: past the skip link, the account and the amount to the second button.
    for _ in 0..5 {
        press_key(&browser, Key::Tab).await;
    }
    let focused = browser.value("return document.activeElement.textContent").await;
    assert_eq!(focused, json!("Pay 20 times at once"));
    press_key(&browser, Key::Space).await;
    browser.reads(SAID, "21 requests, one charge of €19.99.").await;

    let sizes = "return [document.documentElement.scrollWidth,
        ...[...document.querySelectorAll('button, select, input')]
            .filter((control) => control.checkVisibility())
            .map((control) => control.getBoundingClientRect().height)]";
    let sizes = browser.value(sizes).await;
    let sizes: Vec<f64> = serde_json::from_value(sizes).unwrap();
    assert!((sizes[0] - 360.0).abs() < 0.5, "nothing is wider than the screen: {sizes:?}");
    assert_eq!(sizes.len(), 6, "{sizes:?}");
    assert!(sizes[1..].iter().all(|height| *height >= 44.0), "large enough: {sizes:?}");

    let elsewhere = "return performance.getEntriesByType('resource').map((entry) => entry.name)
        .filter((name) => new URL(name).origin !== location.origin && !name.startsWith('data:'))";
    assert_eq!(browser.value(elsewhere).await, json!([]));
    assert_eq!(running.charges().await, 1);
}

async fn press_key(browser: &Browser, key: Key) {
    let keys = browser.page.action_chain().send_keys(key);
    keys.perform().await.unwrap();
}
