//! What a server says of itself in answer to INFO.
#![no_main]

use libfuzzer_sys::fuzz_target;
use redlock_core::fuzzing;

fuzz_target!(|sections: Vec<&[u8]>| {
    let objections = fuzzing::info(&sections);
    assert!(objections.len() <= 5, "{objections:?}");
});
