//! A UDF's file: its function's signature, and what it depends on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field};
use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::{Attribute, FnArg, GenericArgument, Item, ItemFn, LitInt, LitStr, PathArguments, ReturnType, Type};

use super::UdfError;

/// A UDF as its file defines it.
#[derive(Clone, Debug)]
pub struct Definition {
    /// The function's name, by which stages call it.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The file's text.
    pub text: String,
    /// What kind of function it is.
    pub kind: UdfKind,
    /// Its arguments; of an aggregate, the types of single values.
    pub(crate) arguments: Vec<ValueType>,
    pub(crate) result: ValueType,
    /// Crates that it uses.
    pub(crate) dependencies: toml::Table,
}

/// What kind of function a UDF is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdfKind {
    /// A value for each row.
    Scalar,
    /// A value for each group.
    Aggregate,
    /// A value for each row, after some time.
    Async(AsyncOptions),
}

/// How an asynchronous function is called: `#[udf(ordered, timeout = "5s", allowed_in_flight = 1000)]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncOptions {
    /// Whether Arroyo keeps the order of rows. Here the outcome is in canonical order either way.
    pub ordered: bool,
    /// How long a call may take; if it takes longer, the stage fails, as it cannot know what the answer would be.
    pub timeout: Duration,
    /// Calls at a time, of one worker.
    pub in_flight_max: u32,
}

impl Default for AsyncOptions {
    /// As in Arroyo: unordered, 5 seconds, 1000 calls.
    fn default() -> Self {
        AsyncOptions { ordered: false, timeout: Duration::from_secs(5), in_flight_max: 1000 }
    }
}

/// A type of the function's, and whether it may be NULL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ValueType {
    pub data_type: DataType,
    pub nullable: bool,
}

/// What is wrong, where, and what to do.
struct Wrong {
    span: Span,
    message: String,
}

fn wrong<T>(span: Span, message: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { span, message: message.into() })
}

impl From<syn::Error> for Wrong {
    fn from(error: syn::Error) -> Self {
        Wrong { span: error.span(), message: error.to_string() }
    }
}

impl Definition {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or is no UDF.
    pub fn read(path: &Path) -> Result<Definition, UdfError> {
        let text = std::fs::read_to_string(path).map_err(|e| UdfError::new(format!("{}: {e}", path.display())))?;
        Definition::parse(path, &text)
    }

    /// Takes `text` for the text of the file `path`.
    ///
    /// # Errors
    /// If it is no UDF: with the place.
    pub fn parse(path: &Path, text: &str) -> Result<Definition, UdfError> {
        let dependencies = dependencies(text).map_err(|message| UdfError::new(format!("{}: {message}", path.display())))?;
        let parsed = syn::parse_file(text).map_err(Wrong::from).and_then(|file| {
            let mut marked = file.items.into_iter().filter_map(|item| match item {
                Item::Fn(function) if function.attrs.iter().any(is_udf) => Some(function),
                _ => None,
            });
            let Some(function) = marked.next() else {
                return wrong(
                    Span::call_site(),
                    "there is no function under #[udf]; write `use arroyo_udf_plugin::udf;` and #[udf] over one",
                );
            };
            match marked.next() {
                None => signature(&function),
                Some(second) => wrong(second.sig.ident.span(), "a second function under #[udf]; put each into a file of its own"),
            }
        });
        let (name, arguments, result, kind) = parsed.map_err(|Wrong { span, message }| {
            let start = span.start();
            UdfError::new(format!("{}:{}:{}: {message}", path.display(), start.line, start.column + 1))
        })?;
        Ok(Definition { name, path: path.to_owned(), text: text.to_owned(), kind, arguments, result, dependencies })
    }

    /// The signature as SQL would say it: `name(BIGINT, TEXT) -> BIGINT`.
    pub fn signature(&self) -> String {
        let show = |t: &ValueType| t.data_type.to_string();
        let arguments: Vec<String> = self.arguments.iter().map(show).collect();
        format!("{}({}) -> {}", self.name, arguments.join(", "), show(&self.result))
    }
}

fn is_udf(attribute: &Attribute) -> bool {
    attribute.path().segments.last().is_some_and(|segment| segment.ident == "udf")
}

type Signature = (String, Vec<ValueType>, ValueType, UdfKind);

fn signature(function: &ItemFn) -> Result<Signature, Wrong> {
    let name = function.sig.ident.to_string();
    if name.chars().any(char::is_uppercase) {
        return wrong(function.sig.ident.span(), format!("SQL reads names in lower case; call it {}", name.to_lowercase()));
    }
    if !function.sig.generics.params.is_empty() {
        return wrong(function.sig.generics.span(), "a UDF has no type parameters; write the types out");
    }
    let mut arguments = Vec::new();
    let mut lists = 0;
    for argument in &function.sig.inputs {
        let FnArg::Typed(argument) = argument else {
            return wrong(argument.span(), "a UDF is a plain function, without `self`");
        };
        match argument_of("Vec", &argument.ty).filter(|inner| path_name(inner) != Some("u8".to_owned())) {
            None => arguments.push(value_type(&argument.ty, false)?),
            Some(inner) => {
                lists += 1;
                let item = value_type(inner, false)?;
                if !item.data_type.is_numeric() {
                    return wrong(inner.span(), "arroyo-udf-plugin 0.2 takes Vec of numbers only");
                }
                arguments.push(item);
            }
        }
    }
    if arguments.is_empty() {
        return wrong(function.sig.paren_token.span.join(), "a UDF takes at least one argument: a value for each row is made of the row");
    }
    let ReturnType::Type(_, result) = &function.sig.output else {
        return wrong(function.sig.ident.span(), "a UDF returns a value; add `-> i64` or another type");
    };
    let result_type = value_type(result, true)?;
    let kind = match (function.sig.asyncness.is_some(), lists) {
        (true, 0) => {
            if matches!(result_type.data_type, DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16) {
                return wrong(result.span(), "arroyo-udf-plugin 0.2 has no such result of an async function; return i32 or u32");
            }
            UdfKind::Async(async_options(&function.attrs)?)
        }
        (true, _) => return wrong(function.sig.span(), "an aggregate cannot be async; take single values instead of Vec"),
        (false, 0) => UdfKind::Scalar,
        (false, lists) if lists == arguments.len() => UdfKind::Aggregate,
        (false, _) => return wrong(function.sig.span(), "an aggregate takes a Vec for each argument; make all of them Vec, or none"),
    };
    Ok((name, arguments, result_type, kind))
}

/// `T` of `name<T>`.
fn argument_of<'t>(name: &str, ty: &'t Type) -> Option<&'t Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last().filter(|segment| segment.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    match arguments.args.first() {
        Some(GenericArgument::Type(inner)) if arguments.args.len() == 1 => Some(inner),
        _ => None,
    }
}

/// `i64` of `i64`, `SystemTime` of `std::time::SystemTime`.
fn path_name(ty: &Type) -> Option<String> {
    match ty {
        Type::Path(path) => path.path.segments.last().filter(|s| s.arguments.is_none()).map(|s| s.ident.to_string()),
        _ => None,
    }
}

/// The type of an argument, or of a result, which owns what it is made of.
fn value_type(ty: &Type, is_result: bool) -> Result<ValueType, Wrong> {
    if let Some(inner) = argument_of("Option", ty) {
        return Ok(ValueType { nullable: true, ..value_type(inner, is_result)? });
    }
    let not_null = |data_type| Ok(ValueType { data_type, nullable: false });
    if let Some(inner) = argument_of("Vec", ty)
        && path_name(inner).is_some_and(|name| name == "u8")
    {
        return if is_result { not_null(DataType::Binary) } else { wrong(ty.span(), "take &[u8] instead of Vec<u8>") };
    }
    if let Type::Reference(reference) = ty {
        let (name, data_type, owned) = match reference.elem.as_ref() {
            Type::Slice(slice) if path_name(&slice.elem).is_some_and(|name| name == "u8") => ("[u8]", DataType::Binary, "Vec<u8>"),
            elem if path_name(elem).is_some_and(|name| name == "str") => ("str", DataType::Utf8, "String"),
            _ => return wrong(ty.span(), "a reference is &str or &[u8]; take other types by value"),
        };
        return if is_result { wrong(ty.span(), format!("return {owned} instead of &{name}")) } else { not_null(data_type) };
    }
    let name = path_name(ty).unwrap_or_default();
    match name.as_str() {
        "i8" => not_null(DataType::Int8),
        "i16" => not_null(DataType::Int16),
        "i32" => not_null(DataType::Int32),
        "i64" => not_null(DataType::Int64),
        "u8" => not_null(DataType::UInt8),
        "u16" => not_null(DataType::UInt16),
        "u32" => not_null(DataType::UInt32),
        "u64" => not_null(DataType::UInt64),
        "f32" => not_null(DataType::Float32),
        "f64" => not_null(DataType::Float64),
        "String" if is_result => not_null(DataType::Utf8),
        "String" => wrong(ty.span(), "take &str instead of String"),
        "bool" => wrong(ty.span(), "arroyo-udf-plugin 0.2 has no bool; use i32 with 0 and 1"),
        "SystemTime" | "Duration" => wrong(
            ty.span(),
            format!("arroyo-udf-plugin 0.2 has no {name}; use i64, and CAST in the stage: CAST(event_time AS BIGINT) is in microseconds"),
        ),
        _ => wrong(
            ty.span(),
            "a UDF has integers, floating-point numbers, &str and &[u8] (results: String and Vec<u8>), and Option of those",
        ),
    }
}

fn async_options(attributes: &[Attribute]) -> Result<AsyncOptions, Wrong> {
    let mut options = AsyncOptions::default();
    let attribute = attributes.iter().find(|attribute| is_udf(attribute));
    let Some(attribute) = attribute.filter(|attribute| attribute.meta.require_path_only().is_err()) else { return Ok(options) };
    attribute.parse_nested_meta(|meta| {
        if meta.path.is_ident("ordered") {
            options.ordered = true;
        } else if meta.path.is_ident("unordered") {
            options.ordered = false;
        } else if meta.path.is_ident("allowed_in_flight") {
            options.in_flight_max = meta.value()?.parse::<LitInt>()?.base10_parse::<std::num::NonZeroU32>()?.get();
        } else if meta.path.is_ident("timeout") {
            let value = meta.value()?.parse::<LitStr>()?;
            options.timeout = length(&value.value())
                .ok_or_else(|| syn::Error::new(value.span(), "no length of time; write a number and ns, µs, ms, s, m or h: \"5s\""))?;
        } else {
            return Err(meta.error("there are: ordered, unordered, timeout = \"5s\", allowed_in_flight = 1000"));
        }
        Ok(())
    })?;
    Ok(options)
}

/// `5s`, `10 ms`; Arroyo's units.
fn length(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let length = match unit.trim_start() {
        "ns" | "nanos" => Duration::from_nanos(number),
        "µs" | "micros" => Duration::from_micros(number),
        "ms" | "millis" => Duration::from_millis(number),
        "s" | "secs" | "seconds" => Duration::from_secs(number),
        "m" | "mins" | "minutes" => Duration::from_secs(number.checked_mul(60)?),
        "h" | "hrs" | "hours" => Duration::from_secs(number.checked_mul(3600)?),
        _ => return None,
    };
    (length >= Duration::from_micros(1)).then_some(length)
}

/// The crates that a comment names: `/*`, a line `[dependencies]` and lines of TOML behind it.
fn dependencies(text: &str) -> Result<toml::Table, String> {
    const BEGIN: &str = "/*\n[dependencies]\n";
    let text = text.replace("\r\n", "\n");
    let mut found = text.match_indices(BEGIN);
    let Some((start, _)) = found.next() else { return Ok(toml::Table::new()) };
    if found.next().is_some() {
        return Err("a second comment with [dependencies]; put all into one".to_owned());
    }
    let comment = &text[start + "/*\n".len()..];
    let end = comment.find("*/").ok_or("the comment with [dependencies] has no end; write */ behind it")?;
    let parsed: toml::Table = comment[..end].parse().map_err(|e: toml::de::Error| format!("its [dependencies]: {}", e.message()))?;
    match (parsed.len(), parsed.get("dependencies")) {
        (1, Some(toml::Value::Table(dependencies))) => Ok(dependencies.clone()),
        _ => Err("its comment may have [dependencies] only".to_owned()),
    }
}

/// The type of a list of values.
pub(super) fn list_of(value: &ValueType) -> DataType {
    DataType::List(Arc::new(Field::new("item", value.data_type.clone(), true)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn parse(text: &str) -> Result<Definition, UdfError> {
        Definition::parse(Path::new("f.rs"), text)
    }

    #[track_caller]
    fn check(text: &str, expected: Expect) {
        let definition = parse(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
        expected.assert_eq(&format!("{} {:?}", definition.signature(), definition.kind));
    }

    #[track_caller]
    fn check_error(text: &str, expected: Expect) {
        expected.assert_eq(&parse(text).expect_err("it is refused").to_string());
    }

    #[test]
    fn signatures_are_read() {
        check("#[udf] fn f(x: i64, y: &str) -> Option<String> { None }", expect!["f(Int64, Utf8) -> Utf8 Scalar"]);
        check("#[arroyo_udf_plugin::udf] fn f(x: Option<&[u8]>) -> Vec<u8> { vec![] }", expect!["f(Binary) -> Binary Scalar"]);
        check("#[udf] fn f(x: Vec<f64>, y: Vec<Option<u32>>) -> f64 { 0.0 }", expect!["f(Float64, UInt32) -> Float64 Aggregate"]);
        check(
            "#[udf(ordered, timeout = \"10 ms\", allowed_in_flight = 7)] async fn f(x: u64) -> i64 { 0 }",
            expect!["f(UInt64) -> Int64 Async(AsyncOptions { ordered: true, timeout: 10ms, in_flight_max: 7 })"],
        );
        check(
            "#[udf] async fn f(x: u64) -> i64 { 0 }",
            expect!["f(UInt64) -> Int64 Async(AsyncOptions { ordered: false, timeout: 5s, in_flight_max: 1000 })"],
        );
    }

    #[test]
    fn what_is_no_udf_is_refused_with_its_place() {
        check_error(
            "fn f(x: i64) -> i64 { x }",
            expect!["f.rs:1:1: there is no function under #[udf]; write `use arroyo_udf_plugin::udf;` and #[udf] over one"],
        );
        check_error(
            "#[udf]\nfn f(x: i64) -> i64 { x }\n#[udf]\nfn g(x: i64) -> i64 { x }",
            expect!["f.rs:4:4: a second function under #[udf]; put each into a file of its own"],
        );
        check_error(
            "#[udf]\nfn f(x: i64,\n  flag: bool) -> i64 { x }",
            expect!["f.rs:3:9: arroyo-udf-plugin 0.2 has no bool; use i32 with 0 and 1"],
        );
        check_error("#[udf]\nfn f(x: String) -> i64 { 1 }", expect!["f.rs:2:9: take &str instead of String"]);
        check_error("#[udf]\nfn f(x: i64) -> &str { \"\" }", expect!["f.rs:2:17: return String instead of &str"]);
        check_error(
            "#[udf]\nfn f() -> i64 { 1 }",
            expect!["f.rs:2:5: a UDF takes at least one argument: a value for each row is made of the row"],
        );
        check_error("#[udf]\nfn f(x: i64) { }", expect!["f.rs:2:4: a UDF returns a value; add `-> i64` or another type"]);
        check_error(
            "#[udf]\nfn f(x: Vec<i64>, y: i64) -> i64 { 1 }",
            expect!["f.rs:2:1: an aggregate takes a Vec for each argument; make all of them Vec, or none"],
        );
        check_error(
            "#[udf]\nasync fn f(x: Vec<i64>) -> i64 { 1 }",
            expect!["f.rs:2:1: an aggregate cannot be async; take single values instead of Vec"],
        );
        check_error(
            "#[udf(timeout = \"soon\")]\nasync fn f(x: i64) -> i64 { 1 }",
            expect![[r#"f.rs:1:17: no length of time; write a number and ns, µs, ms, s, m or h: "5s""#]],
        );
        assert!(parse("#[udf]\nfn f(x: i64) -> i64 { x + }").expect_err("it is refused").to_string().starts_with("f.rs:2:"));
        check_error("#[udf]\nfn F(x: i64) -> i64 { x }", expect!["f.rs:2:4: SQL reads names in lower case; call it f"]);
        let error = parse("/*\n[dependencies]\nregex = \n*/\n#[udf]\nfn f(x: i64) -> i64 { x }").expect_err("it is refused").to_string();
        assert!(error.starts_with("f.rs: its [dependencies]: "), "{error}");
    }

    #[test]
    fn dependencies_are_read() {
        let text = "/*\n[dependencies]\nregex = \"1.10\"\nserde = { version = \"1\" }\n*/\n#[udf]\nfn f(x: i64) -> i64 { x }";
        let definition = parse(text).unwrap();
        assert_eq!(definition.dependencies.keys().collect::<Vec<_>>(), ["regex", "serde"]);
    }
}
