//! From text to settings, with errors that name file, line, key and what to write instead.
//!
//! The file is parsed to a tree of values with their places; environment variables are put into its texts, `--set` into its
//! keys, and its keys compared with those of the default settings. Only then is it read into [`Config`], so that every error has
//! a place to name.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Config, check};

type Node<'i> = Spanned<DeValue<'i>>;

/// Tables whose keys are the user's to name.
const OPEN_TABLES: [&str; 7] = [
    "source.kafka.properties",
    "epoch_log.properties",
    "epoch_log.storage",
    "checkpoint.storage",
    "sinks.delta.storage",
    "sinks.kafka.properties",
    "currencies",
];

/// What keeps settings from being used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Something in the file or in `--set` is wrong; each problem is a line.
    #[error("{}", problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid {
        /// At least one.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands: `orderflow.toml:12`, `--set epoch.rows_max`; empty where it is nowhere in particular.
    pub place: String,
    /// Problems are told in the order of what they are about.
    position: usize,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.place, self.message) }
    }
}

/// Reads, completes and checks. `environment` gives the value of a variable.
pub(super) fn load(path: Option<&Path>, overrides: &[String], environment: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
    let text = match path {
        Some(path) => std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?,
        None => String::new(),
    };
    let name = path.map_or_else(|| "defaults".to_owned(), |path| path.display().to_string());
    parse(&name, &text, overrides, environment)
}

/// [`load`] of a text that is in memory; `name` stands for it in errors.
pub(super) fn parse(
    name: &str,
    text: &str,
    overrides: &[String],
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, ConfigError> {
    let places = Places { name, text, overrides };
    let one = |problem| ConfigError::Invalid { problems: vec![problem] };
    let defaults = toml::Table::try_from(Config::default()).expect("settings are tables of texts and numbers, all of which TOML has");

    let mut root = DeTable::parse(text).map_err(|e| one(places.problem(e.span(), e.message().to_owned())))?.into_inner();
    let mut problems = Vec::new();
    root.iter_mut().for_each(|(_, node)| expand(node, environment, &places, &mut problems));
    for (index, text) in overrides.iter().enumerate() {
        if let Err(message) = apply(&mut root, text, places.override_span(index), &defaults) {
            problems.push(places.problem(Some(places.override_span(index)), message));
        }
    }
    unknown_keys(&root, "", &defaults, &defaults, &places, &mut problems);
    invalid(problems)?;

    let mut spans = Vec::new();
    spans_of(&root, "", &mut spans);
    let config = Config::deserialize(toml::Deserializer::from(Spanned::new(0..text.len(), root))).map_err(|e| {
        let within = |outer: &Range<usize>, inner: &Range<usize>| outer.start <= inner.start && inner.end <= outer.end;
        let key = e.span().and_then(|span| spans.iter().filter(|(_, s)| within(s, &span)).min_by_key(|(_, s)| s.len()));
        let key = key.map(|(key, _)| format!("{key}: ")).unwrap_or_default();
        one(places.problem(e.span(), format!("{key}{}", e.message())))
    })?;
    let problems = check::check(&config)
        .into_iter()
        .map(|(key, message)| {
            let span = spans.iter().find(|(k, _)| *k == key).map(|(_, span)| span.clone());
            places.problem(span, format!("{key} {message}"))
        })
        .collect();
    invalid(problems)?;
    Ok(config)
}

/// Fails if there are any problems.
fn invalid(mut problems: Vec<Problem>) -> Result<(), ConfigError> {
    problems.sort_by_key(|problem| problem.position);
    if problems.is_empty() { Ok(()) } else { Err(ConfigError::Invalid { problems }) }
}

/// What spans mean: within the file's text, or beyond its end one position for each `--set`.
struct Places<'a> {
    name: &'a str,
    text: &'a str,
    overrides: &'a [String],
}

impl Places<'_> {
    fn override_span(&self, index: usize) -> Range<usize> {
        let at = self.text.len() + 1 + index;
        at..at
    }

    fn problem(&self, span: Option<Range<usize>>, message: String) -> Problem {
        let position = span.as_ref().map_or(0, |span| span.start);
        let place = match span {
            None => String::new(),
            Some(span) if span.start > self.text.len() => {
                let index = span.start - self.text.len() - 1;
                // Without its value, which may be a password.
                self.overrides.get(index).map(|text| format!("--set {}", text.split('=').next().unwrap_or(text))).unwrap_or_default()
            }
            Some(span) => format!("{}:{}", self.name, self.text.as_bytes()[..span.start].iter().filter(|&&b| b == b'\n').count() + 1),
        };
        // Some messages of the parser have several lines; a problem is one.
        Problem { place, position, message: message.lines().map(str::trim).collect::<Vec<_>>().join(" ") }
    }
}

/// Puts environment variables into every text below `node`.
fn expand(node: &mut Node<'_>, environment: &dyn Fn(&str) -> Option<String>, places: &Places<'_>, problems: &mut Vec<Problem>) {
    let span = node.span();
    match node.get_mut() {
        DeValue::String(text) if text.contains("${") => match expanded(text, environment) {
            Ok(new) => *text = Cow::Owned(new),
            Err(message) => problems.push(places.problem(Some(span), message)),
        },
        DeValue::Array(items) => items.iter_mut().for_each(|item| expand(item, environment, places, problems)),
        DeValue::Table(table) => table.iter_mut().for_each(|(_, value)| expand(value, environment, places, problems)),
        _ => {}
    }
}

fn expanded(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        // `$${` is a plain `${`.
        if let Some(before) = rest[..at].strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let inner = &rest[at + 2..];
        let end = inner.find('}').ok_or_else(|| format!("`{}` has no closing brace; write `$${{` for a plain `${{`", &rest[at..]))?;
        let (name, default) = match inner[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inner[..end], None),
        };
        match environment(name).or_else(|| default.map(str::to_owned)) {
            Some(value) => out.push_str(&value),
            None => {
                return Err(format!("environment variable `{name}` is not set; set it, or write `${{{name}:-value}}` to have a default"));
            }
        }
        rest = &inner[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Puts one `key=value` into the tree.
fn apply<'i>(root: &mut DeTable<'i>, text: &'i str, span: Range<usize>, defaults: &toml::Table) -> Result<(), String> {
    let (key, value) = text.split_once('=').ok_or("there is no `=`; write --set key=value")?;
    let key = key.trim();
    let path = split_key(key);
    if path.iter().any(|part| part.is_empty()) {
        return Err("a part of the key is empty; write --set key=value, as --set epoch.rows_max=1000".to_owned());
    }
    let default = path.iter().try_fold(None, |at: Option<&toml::Value>, part| {
        let table = at.map_or(Some(defaults), toml::Value::as_table)?;
        table.get(*part).map(Some)
    });
    // A setting that is a text takes the value as it is, without quotes.
    let plain = matches!(default, Some(Some(toml::Value::String(_))));
    let value = match DeValue::parse(value) {
        Ok(parsed) if !plain || parsed.get_ref().is_str() => respan(parsed, &span),
        _ => Spanned::new(span.clone(), DeValue::String(Cow::Borrowed(value))),
    };
    let (last, tables) = path.split_last().expect("a split text has at least one part");
    let mut table = root;
    for part in tables {
        if !table.contains_key(*part) {
            table.insert(Spanned::new(span.clone(), Cow::Borrowed(*part)), Spanned::new(span.clone(), DeValue::Table(DeTable::new())));
        }
        table = match table.get_mut(*part).map(Spanned::get_mut) {
            Some(DeValue::Table(inner)) => inner,
            _ => return Err(format!("`{part}` in `{key}` is a value, not a section")),
        };
    }
    table.remove(*last);
    table.insert(Spanned::new(span, Cow::Borrowed(*last)), value);
    Ok(())
}

/// The parts of a dotted key. What is below an open table is one name, dots and all.
fn split_key(key: &str) -> Vec<&str> {
    for open in OPEN_TABLES {
        if let Some(name) = key.strip_prefix(open).and_then(|rest| rest.strip_prefix('.')) {
            return open.split('.').chain([name]).collect();
        }
    }
    key.split('.').collect()
}

fn respan<'i>(node: Node<'i>, span: &Range<usize>) -> Node<'i> {
    let value = match node.into_inner() {
        DeValue::Array(items) => DeValue::Array(items.into_iter().map(|item| respan(item, span)).collect()),
        DeValue::Table(table) => DeValue::Table(
            table.into_iter().map(|(key, value)| (Spanned::new(span.clone(), key.into_inner()), respan(value, span))).collect(),
        ),
        scalar => scalar,
    };
    Spanned::new(span.clone(), value)
}

/// Where each key's value stands; a section comes after what is in it.
fn spans_of(table: &DeTable<'_>, prefix: &str, spans: &mut Vec<(String, Range<usize>)>) {
    for (name, node) in table.iter() {
        let key = format!("{prefix}{}", name.get_ref());
        if let DeValue::Table(inner) = node.get_ref() {
            spans_of(inner, &format!("{key}."), spans);
        }
        spans.push((key, node.span()));
    }
}

/// Reports every key of `table` that `known`, the same section of the default settings, does not have.
fn unknown_keys(
    table: &DeTable<'_>,
    prefix: &str,
    known: &toml::Table,
    all: &toml::Table,
    places: &Places<'_>,
    problems: &mut Vec<Problem>,
) {
    for (name, node) in table.iter() {
        let key = format!("{prefix}{}", name.get_ref());
        match (known.get(name.get_ref().as_ref()), node.get_ref()) {
            _ if OPEN_TABLES.contains(&key.as_str()) => {}
            (Some(toml::Value::Table(known)), DeValue::Table(inner)) => {
                unknown_keys(inner, &format!("{key}."), known, all, places, problems);
            }
            (Some(toml::Value::Table(_)), _) => {
                problems.push(
                    places.problem(Some(node.span()), format!("`{key}` is a section, not a value; write [{key}] and its settings below")),
                );
            }
            (Some(_), _) => {}
            (None, _) => {
                let hint = nearest(name.get_ref(), prefix, known, all);
                problems.push(places.problem(Some(name.span()), format!("unknown key `{key}`; {hint}")));
            }
        }
    }
}

/// What was meant by an unknown key: a sibling that is spelled alike, or a key of that name elsewhere, or else all siblings.
fn nearest(name: &str, prefix: &str, known: &toml::Table, all: &toml::Table) -> String {
    let distance = |other: &str| strsim::damerau_levenshtein(name, other);
    if let Some(sibling) = known.keys().filter(|k| distance(k) <= 2.max(name.len() / 3)).min_by_key(|k| distance(k)) {
        return format!("did you mean `{prefix}{sibling}`?");
    }
    let mut keys = Vec::new();
    leaves(all, "", &mut keys);
    let last = |key: &String| distance(key.rsplit('.').next().unwrap_or(key));
    if let Some(elsewhere) = keys.iter().filter(|key| last(key) <= 1).min_by_key(|key| last(key)) {
        return format!("did you mean `{elsewhere}`?");
    }
    let section = if prefix.is_empty() { "sections are" } else { "keys of this section are" };
    format!("{section} {}", known.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", "))
}

/// The dotted key of every setting in `table`. An open table is one setting.
pub(super) fn leaves(table: &toml::Table, prefix: &str, keys: &mut Vec<String>) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            toml::Value::Table(inner) if !OPEN_TABLES.contains(&key.as_str()) => leaves(inner, &format!("{key}."), keys),
            _ => keys.push(key),
        }
    }
}
