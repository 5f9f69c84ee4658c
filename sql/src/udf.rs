//! Functions of one's own (UDFs), as Arroyo has them: a Rust file with one function under `#[udf]`, of Arroyo's crate `arroyo-udf-plugin`.
//!
//! | the function | is |
//! | --- | --- |
//! | `fn f(x: i64, text: &str) -> Option<i64>` | a scalar function |
//! | `fn f(values: Vec<f64>) -> f64` | an aggregate: it gets all values of a group, when its window is over |
//! | `async fn f(x: i64) -> String` | a scalar function whose answers take their time: [`AsyncOptions`] |
//!
//! An argument that is no `Option` is never NULL: a call with NULL gives NULL without the function being asked; a `Vec` gets the values that are not NULL.
//!
//! # Design
//!
//! [`definition`](Definition) reads the signature from the file's text. `build` makes a dynamic library of it by `cargo`, kept in a cache under a hash of the text and
//! of the compiler's version. `library` calls it: rows cross as Arrow's C data interface, so the Arrow of the plugin (51) need not be ours. Libraries are never
//! unloaded, since arrays that they made, and threads of asynchronous ones, may live on. `functions` are DataFusion's view of it all.
//!
//! Results must be functions of the arguments, as everything in a stage: a function that looks at a clock or a file breaks what the job promises.

mod build;
mod definition;
mod functions;
mod library;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

pub use build::{Builder, Built};
pub use definition::{AsyncOptions, Definition, UdfKind};
pub(crate) use functions::{AsyncFunction, UdfAggregate};
pub(crate) use library::{AsyncLibrary, AsyncRuntime};

/// Why a function of one's own cannot be had: where in its file, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UdfError(String);

impl UdfError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        UdfError(message.into())
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Function {
    Scalar(Arc<ScalarUDF>),
    Aggregate(Arc<AggregateUDF>),
}

/// Functions that a stage may call besides those of the dialect.
#[derive(Clone, Debug, Default)]
pub struct Udfs {
    functions: BTreeMap<String, Function>,
    /// By name, the texts of their files.
    texts: BTreeMap<String, String>,
}

impl Udfs {
    /// Builds, into the user's cache, and loads those of `folder` that the text of a stage calls; with no folder, or none called, there is nothing to do.
    ///
    /// # Errors
    /// If a file is no UDF, two have one name, or one cannot be built.
    pub fn for_stage(text: &str, folder: Option<&Path>) -> Result<Udfs, UdfError> {
        let Some(folder) = folder else { return Ok(Udfs::default()) };
        let definitions = called(text, read_folder(folder)?);
        if definitions.is_empty() { Ok(Udfs::default()) } else { Udfs::load(&definitions, &Builder::of_user()?) }
    }

    /// Builds and loads functions.
    ///
    /// # Errors
    /// If one cannot be built.
    pub fn load(definitions: &[Definition], builder: &Builder) -> Result<Udfs, UdfError> {
        let mut udfs = Udfs::default();
        for definition in definitions {
            let built = builder.build(definition)?;
            udfs.functions.insert(definition.name.clone(), functions::load(definition, &built.library)?);
            udfs.texts.insert(definition.name.clone(), definition.text.clone());
        }
        Ok(udfs)
    }

    /// By name, the texts of their files: what they mean.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    pub(crate) fn functions(&self) -> impl Iterator<Item = (&str, &Function)> {
        self.functions.iter().map(|(name, function)| (name.as_str(), function))
    }
}

/// The nearest folder `udfs` of a folder of stages: in it, or in one of the two above. Empty, as the folder of a bare file name is, it is the current one.
pub fn folder_of(stages: &Path) -> Option<PathBuf> {
    let absolute = Path::new(".").join(stages).canonicalize().ok()?;
    absolute.ancestors().take(3).map(|folder| folder.join("udfs")).find(|folder| folder.is_dir())
}

/// The functions of a folder's `.rs` files, in the order of their names.
///
/// # Errors
/// If the folder or a file cannot be read, a file is no UDF, or two have one name.
pub fn read_folder(folder: &Path) -> Result<Vec<Definition>, UdfError> {
    let wrong = |e: std::io::Error| UdfError::new(format!("{}: {e}", folder.display()));
    let mut definitions: BTreeMap<String, Definition> = BTreeMap::new();
    let mut paths = Vec::new();
    for entry in folder.read_dir().map_err(wrong)? {
        paths.push(entry.map_err(wrong)?.path());
    }
    paths.sort();
    for path in paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        let definition = Definition::read(&path)?;
        if let Some(other) = definitions.get(&definition.name) {
            let (name, other) = (&definition.name, other.path.display());
            return Err(UdfError::new(format!(
                "{}: a second function `{name}`, besides that of {other}; take another name",
                path.display()
            )));
        }
        definitions.insert(definition.name.clone(), definition);
    }
    Ok(definitions.into_values().collect())
}

/// Those of some functions that the text of a stage calls.
pub fn called(text: &str, definitions: Vec<Definition>) -> Vec<Definition> {
    // What is no text of tokens is refused by the planner, with the place.
    let tokens = Tokenizer::new(&crate::stage::StageDialect, text).tokenize().unwrap_or_default();
    let mut tokens = tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_))).peekable();
    let mut names = std::collections::HashSet::new();
    while let Some(token) = tokens.next() {
        if let Token::Word(word) = token
            && matches!(tokens.peek(), Some(Token::LParen))
        {
            names.insert(if word.quote_style.is_some() { word.value } else { word.value.to_lowercase() });
        }
    }
    definitions.into_iter().filter(|definition| names.contains(&definition.name)).collect()
}
