//! Texts to plan: see `property`.

#![no_main]

mod property;

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(bytes) else { return Corpus::Reject };
    property::check(text);
    Corpus::Keep
});
