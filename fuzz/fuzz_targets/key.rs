//! Keys of any bytes: within their bounds, hashed so that they are, and shown in one short line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use redlock_core::{Key, Token};

fuzz_target!(|bytes: &[u8]| {
    let hashed = Key::hashed(bytes);
    assert!((1..=128).contains(&hashed.as_bytes().len()));
    assert!(hashed.as_bytes().iter().all(u8::is_ascii_graphic));
    assert!(Key::new(hashed.as_bytes()).is_ok());
    match Key::new(bytes) {
        Ok(key) => {
            assert_eq!(key.as_bytes(), bytes);
            let shown = format!("{key:?}");
            assert!(shown.len() < 200 && !shown.contains('\n'), "{shown}");
        }
        Err(error) => {
            let reserved = Key::RESERVED.as_bytes();
            let is_reserved = bytes.windows(reserved.len()).any(|window| window == reserved);
            assert!(bytes.is_empty() || bytes.len() > Key::MAX_LEN || is_reserved, "{error}");
            assert!(error.to_string().len() < 200);
        }
    }
    if let Some(token) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<Token>().ok())
    {
        assert_eq!(token.as_str().as_bytes(), bytes);
        assert!(format!("{token:?}").len() < 100);
    }
});
