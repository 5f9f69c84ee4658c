//! Any bytes are either a checkpoint's manifest, which written and read is the same, and which a job can begin from, or an error that says something.

#![no_main]

use libfuzzer_sys::fuzz_target;
use orderflow::checkpoint::{Manifest, Part};

fuzz_target!(|input: &[u8]| {
    match Manifest::from_json(input) {
        Ok(mut manifest) => {
            let json = serde_json::to_vec(&manifest).expect("a manifest is plain data");
            assert_eq!(Manifest::from_json(&json).expect("a manifest that was read"), manifest);
            let _ = manifest.bytes();
            manifest.extend(Part::default());
            let json = serde_json::to_vec(&manifest).expect("a manifest is plain data");
            assert_eq!(Manifest::from_json(&json).expect("what is needed is not left out"), manifest);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
