//! From a UDF's file to a library, by cargo.
//!
//! ```text
//! CACHE/NAME-HASH/COMPILER.so   the library: HASH of the file's text and of what it is framed with, COMPILER of `rustc -vV`
//! CACHE/NAME-HASH/package/      what cargo builds
//! CACHE/target/                 what cargo keeps: the plugin's own dependencies are compiled once for all
//! CACHE/lock                    held while something is built
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::{Definition, UdfError, UdfKind};

/// The crate that UDFs are written with, and the only version whose interface `library` knows.
const PLUGIN: &str = "=0.2.0";

/// Versions of what the plugin depends on, so that the same text gives the same function.
const LOCK: &str = include_str!("plugin.lock");

/// How it is compiled. What is generic is compiled with the function, and well.
const PROFILE: &str = "
[lib]
crate-type = [\"cdylib\"]

[workspace]
resolver = \"1\"

[profile.release]
opt-level = 3
debug = false
panic = \"unwind\"
";

/// Dependencies of the plugin that run once a batch, or only while something is built: most of the first build's time would go into making them fast.
const COMPILED_QUICKLY: [&str; 26] = [
    "aho-corasick",
    "arrow-arith",
    "arrow-cast",
    "arrow-csv",
    "arrow-ipc",
    "arrow-json",
    "arrow-ord",
    "arrow-row",
    "arrow-select",
    "arrow-string",
    "arroyo-udf-common",
    "arroyo-udf-macros",
    "async-ffi-macros",
    "flatbuffers",
    "futures-macro",
    "lexical-core",
    "num-bigint",
    "proc-macro2",
    "quote",
    "regex-automata",
    "regex-syntax",
    "serde_derive",
    "syn:2",
    "syn:3",
    "tokio-macros",
    "zerocopy-derive",
];

/// Says whether the thread of an asynchronous function's calls still takes any: it ends when one of them panics.
const ASYNC_FRAME: &str = "
#[no_mangle]
pub extern \"C-unwind\" fn __orderflow_is_running(handle: arroyo_udf_plugin::async_udf::SendableFfiAsyncUdfHandle) -> bool {
    let handle = unsafe { &*(handle.ptr as *const arroyo_udf_plugin::async_udf::AsyncUdfHandle) };
    !handle.tx.is_closed()
}
";

/// Builds UDFs.
#[derive(Clone, Debug)]
pub struct Builder {
    cache: PathBuf,
    /// What `rustc` says of itself; none where there is none.
    compiler: Option<String>,
}

/// A built UDF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// Its library.
    pub library: PathBuf,
    /// Whether it was in the cache already.
    pub was_cached: bool,
}

impl Builder {
    /// With libraries kept in a folder, which is made when it is needed.
    pub fn new(cache: impl Into<PathBuf>) -> Builder {
        Builder { cache: cache.into(), compiler: compiler() }
    }

    /// With the user's cache: `$ORDERFLOW_CACHE/udfs`, or `~/.cache/orderflow/udfs`.
    ///
    /// # Errors
    /// If neither that variable nor `HOME` is set.
    pub fn of_user() -> Result<Builder, UdfError> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = set("ORDERFLOW_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|path| path.join("orderflow")))
            .or_else(|| set("HOME").map(|path| path.join(".cache/orderflow")));
        match cache {
            Some(cache) => Ok(Builder::new(cache.join("udfs"))),
            None => Err(UdfError::new("no folder to keep built functions in; set ORDERFLOW_CACHE to one")),
        }
    }

    /// The library of a UDF, built if it is not in the cache. The first build compiles the plugin's dependencies, which takes a minute or two.
    ///
    /// # Errors
    /// If there is no cargo, or the function does not compile: with the compiler's messages.
    pub fn build(&self, definition: &Definition) -> Result<Built, UdfError> {
        let (manifest, frame) = (manifest(definition), frame(definition));
        let folder = self.folder(definition);
        let Some(compiler) = &self.compiler else {
            // Built elsewhere, or before the compiler was removed.
            return any_library(&folder).map(|library| Built { library, was_cached: true }).ok_or_else(|| {
                UdfError::new(format!(
                    "{}: there is no rustc to build it with; install Rust from https://rustup.rs, or build it where there is (orderflow sql udf build) and copy {} to here",
                    definition.path.display(),
                    folder.display()
                ))
            });
        };
        let library = library_of(&folder, compiler);
        if library.is_file() {
            return Ok(Built { library, was_cached: true });
        }
        let wrong = |path: &Path, e: std::io::Error| UdfError::new(format!("{}: {e}", path.display()));
        let package = folder.join("package");
        std::fs::create_dir_all(package.join("src")).map_err(|e| wrong(&package, e))?;
        let lock_path = self.cache.join("lock");
        let lock = File::create(&lock_path).map_err(|e| wrong(&lock_path, e))?;
        lock.lock().map_err(|e| wrong(&lock_path, e))?;
        if library.is_file() {
            return Ok(Built { library, was_cached: true });
        }
        let files = [("Cargo.toml", manifest.as_str()), ("Cargo.lock", LOCK), ("src/lib.rs", &frame), ("src/udf.rs", &definition.text)];
        for (name, text) in files {
            std::fs::write(package.join(name), text).map_err(|e| wrong(&package.join(name), e))?;
        }
        let made = self.cargo(definition, &package)?;
        // Whoever finds the library finds the whole of it.
        let beside = library.with_extension(format!("{}.part", std::process::id()));
        std::fs::copy(&made, &beside).and_then(|_| std::fs::rename(&beside, &library)).map_err(|e| wrong(&library, e))?;
        Ok(Built { library, was_cached: false })
    }

    /// Whether a UDF's library is in the cache, so that building it takes no time.
    pub fn has(&self, definition: &Definition) -> bool {
        let folder = self.folder(definition);
        self.compiler.as_ref().map_or_else(|| any_library(&folder).is_some(), |compiler| library_of(&folder, compiler).is_file())
    }

    fn folder(&self, definition: &Definition) -> PathBuf {
        let hash = short_hash(&[&definition.text, &manifest(definition), &frame(definition), LOCK]);
        self.cache.join(format!("{}-{hash}", definition.name))
    }

    /// Runs cargo; returns the library that it made.
    fn cargo(&self, definition: &Definition, package: &Path) -> Result<PathBuf, UdfError> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["build", "--release", "--quiet", "--message-format=json"]).current_dir(package).stdin(Stdio::null());
        // Settings of a build that this process may itself be part of.
        for name in ["CARGO_BUILD_TARGET", "CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "CARGO_MANIFEST_DIR"] {
            command.env_remove(name);
        }
        command.env("CARGO_TARGET_DIR", self.cache.join("target"));
        let file = definition.path.display();
        let output = command
            .output()
            .map_err(|e| UdfError::new(format!("{file}: cargo cannot be started: {e}; install Rust from https://rustup.rs")))?;
        let mut errors = Vec::new();
        let mut library = None;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            if message["reason"] == "compiler-message" && message["message"]["level"] == "error" {
                if let Some(text) = message["message"]["rendered"].as_str() {
                    errors.push(text.replace("src/udf.rs", &file.to_string()));
                }
            } else if message["reason"] == "compiler-artifact" && message["target"]["name"] == "udf" {
                let names = message["filenames"].as_array().into_iter().flatten().filter_map(|name| name.as_str());
                library = names
                    .map(PathBuf::from)
                    .find(|path| path.extension().is_some_and(|e| e == std::env::consts::DLL_EXTENSION))
                    .or(library);
            }
        }
        match (output.status.success(), library) {
            (true, Some(library)) => Ok(library),
            _ if !errors.is_empty() => Err(UdfError::new(format!("{file} does not compile\n{}", errors.concat().trim_end()))),
            // What is wrong is not in the text: a dependency that there is not, no network, a full disk.
            _ => Err(UdfError::new(format!("{file} cannot be built: {}", String::from_utf8_lossy(&output.stderr).trim()))),
        }
    }
}

fn manifest(definition: &Definition) -> String {
    let mut dependencies = definition.dependencies.clone();
    dependencies.insert("arroyo-udf-plugin".to_owned(), toml::Value::String(PLUGIN.to_owned()));
    let dependencies = toml::Table::from_iter([("dependencies".to_owned(), toml::Value::Table(dependencies))]);
    // `regex-automata` of a function that uses `regex` is worth it.
    let unused = |name: &&&str| !definition.dependencies.keys().any(|own| name.starts_with(own.as_str()));
    let quickly = COMPILED_QUICKLY.iter().filter(unused);
    let quickly: String =
        quickly.map(|name| format!("[profile.release.package.\"{name}\"]\nopt-level = 0\ncodegen-units = 16\n")).collect();
    format!(
        "[package]\nname = \"udf\"\nversion = \"0.0.0\"\nedition = \"2021\"\npublish = false\n\n{dependencies}{PROFILE}\n\
         [profile.release.package.\"*\"]\nopt-level = 1\ncodegen-units = 16\n\n{quickly}"
    )
}

fn frame(definition: &Definition) -> String {
    let own = if matches!(definition.kind, UdfKind::Async(_)) { ASYNC_FRAME } else { "" };
    format!("mod udf;\n{own}")
}

/// What `rustc` says of itself.
fn compiler() -> Option<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn library_of(folder: &Path, compiler: &str) -> PathBuf {
    folder.join(format!("{}.so", short_hash(&[compiler])))
}

fn any_library(folder: &Path) -> Option<PathBuf> {
    let mut libraries: Vec<PathBuf> = folder.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    libraries.retain(|path| path.extension().is_some_and(|e| e == "so"));
    libraries.sort();
    libraries.pop()
}

fn short_hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
