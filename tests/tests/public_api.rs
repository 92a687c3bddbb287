//! What the published crates promise, item by item. A change of it is a decision: look at the
//! difference, note it in the CHANGELOG, and write the new listing with
//! `UPDATE_EXPECT=1 cargo test -p redlock-tests --test public_api -- --ignored`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use expect_test::{ExpectFile, expect_file};

/// The public items of a crate, one a line.
fn public_api(name: &str) -> String {
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let json = rustdoc_json::Builder::default()
        .manifest_path(format!("{workspace}/crates/{name}/Cargo.toml"))
        .all_features(true)
        .target_dir(format!("{workspace}/target/public-api"))
        .quiet(true)
        // The listing is made from a format of rustdoc that is not stable yet.
        .env("RUSTC_BOOTSTRAP", "1")
        .build()
        .unwrap();
    let items = public_api::Builder::from_rustdoc_json(json).omit_blanket_impls(true);
    items.omit_auto_derived_impls(true).build().unwrap().to_string()
}

fn is_as_listed(name: &str, listing: &ExpectFile) {
    let api = public_api(name);
    for foreign in ["redis::", "bb8::", "bb8_redis::"] {
        assert!(!api.contains(foreign), "{name} exposes a type of {foreign}");
    }
    listing.assert_eq(&api);
}

#[test]
#[ignore = "the listing is in the words of one version of rustdoc: run by .ci/run"]
fn the_public_api_of_redlock_core_is_as_listed() {
    is_as_listed("redlock-core", &expect_file!["../../crates/redlock-core/public-api.txt"]);
}

#[test]
#[ignore = "the listing is in the words of one version of rustdoc: run by .ci/run"]
fn the_public_api_of_tower_redlock_is_as_listed() {
    is_as_listed("tower-redlock", &expect_file!["../../crates/tower-redlock/public-api.txt"]);
}
