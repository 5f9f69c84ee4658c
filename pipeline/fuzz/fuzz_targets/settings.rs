//! Any text is either settings, which written out are the same settings again, or an error that says something. The first line is for `--set`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use orderflow::config::Config;

fuzz_target!(|input: &str| {
    let (over, text) = input.split_once('\n').unwrap_or(("", input));
    let overrides: Vec<String> = over.split('\t').filter(|set| !set.is_empty()).map(str::to_owned).collect();
    match Config::parse("fuzz.toml", text, &overrides) {
        Ok(config) => {
            let written = config.to_toml();
            // Secrets are stars there.
            if !written.contains('*') {
                assert_eq!(Config::parse("written.toml", &written, &[]).expect("settings that were read"), config);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
