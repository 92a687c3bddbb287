//! Replies of a server, of any shape and size: each is a vote, or none, and can be reported.
#![no_main]

use libfuzzer_sys::fuzz_target;
use redlock_core::fuzzing;

fuzz_target!(|input: (u8, &[u8])| {
    let (count, resp) = input;
    fuzzing::reply(resp, usize::from(count));
});
