//! Headers of any bytes: `Fencing-Token`, and the one that a lock is named by.
#![no_main]

use http::{HeaderValue, Request, StatusCode};
use libfuzzer_sys::fuzz_target;
use tower_redlock::{IntoResourceKey, fencing, key};

fuzz_target!(|values: Vec<&[u8]>| {
    let mut parts = Request::new(()).into_parts().0;
    let values: Vec<HeaderValue> =
        values.into_iter().filter_map(|value| HeaderValue::from_bytes(value).ok()).collect();
    for value in &values {
        parts.headers.append(fencing::HEADER, value.clone());
        parts.headers.append("idempotency-key", value.clone());
    }
    match fencing::token(&parts.headers) {
        Ok(token) => {
            assert!(token.get() < 1 << 53 && values.len() == 1);
            let digits = values[0].to_str().unwrap();
            assert!(digits.bytes().all(|byte| byte.is_ascii_digit()));
            assert_eq!(token.to_string().parse::<u64>(), digits.parse());
        }
        Err(rejection) => {
            let missing = values.is_empty();
            let status =
                if missing { StatusCode::PRECONDITION_REQUIRED } else { StatusCode::BAD_REQUEST };
            assert_eq!(rejection.to_problem().status(), status);
        }
    }
    match key::prefixed("pay", key::header("idempotency-key"))(&parts) {
        Ok(key) => assert!(key.is_some() && values.len() == 1 && !values[0].is_empty()),
        Err(rejection) => assert_eq!(rejection.status(), StatusCode::BAD_REQUEST),
    }
    assert!(String::new().into_resource_key().is_err());
});
