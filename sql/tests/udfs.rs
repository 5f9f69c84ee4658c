//! Functions of one's own that go wrong: what is said, and where.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use arrow::array::RecordBatch;
use orderflow_sql::run::{RunSettings, Summary, run};
use orderflow_sql::stage::Stage;
use orderflow_sql::udf::{Builder, Definition, Udfs, called, folder_of, read_folder};

const DECLARED: &str =
    "CREATE TABLE t (a BIGINT, b TEXT) WITH (connector = 'single_file', path = 't.json', format = 'json', type = 'source');\n";

/// Runs a query over five rows (`a` from 0 to 4) with one function.
fn outcome(function: &str, query: &str) -> Result<Summary, String> {
    let folder = tempfile::tempdir().unwrap();
    let rows: String = (0..5).map(|a| format!("{{\"a\": {a}, \"b\": \"x\"}}\n")).collect();
    std::fs::write(folder.path().join("t.json"), rows).unwrap();
    let definition =
        Definition::parse(Path::new("udfs/f.rs"), &format!("use arroyo_udf_plugin::udf;\n{function}")).map_err(|e| e.to_string())?;
    let udfs = Udfs::load(&[definition], &Builder::of_user().unwrap()).map_err(|e| e.to_string())?;
    let stage = Stage::plan_with(&format!("{DECLARED}{query}"), &[], &udfs).map_err(|e| e.to_string())?;
    let settings = RunSettings { base: folder.path().to_owned(), workers: 2, epoch_rows: 3, stop_after: None, resume: None };
    let sink = Box::new(|_: usize, _: &_, _: &_, _: RecordBatch| Ok(()));
    run(&stage, settings, sink).map_err(|e| e.to_string())
}

#[test]
fn a_compiler_error_has_file_and_line() {
    let error = outcome("#[udf]\nfn broken(a: i64) -> i64 {\n    a + missing\n}", "SELECT broken(a) FROM t").unwrap_err();
    assert!(error.contains("udfs/f.rs does not compile") && error.contains("udfs/f.rs:4:9"), "{error}");
    assert!(error.contains("cannot find value `missing`"), "{error}");
}

#[test]
fn a_dependency_that_is_not_there_is_named() {
    let function = "/*\n[dependencies]\nno-such-crate-of-orderflow = \"1\"\n*/\n#[udf]\nfn unmet(a: i64) -> i64 { a }";
    let error = outcome(function, "SELECT unmet(a) FROM t").unwrap_err();
    assert!(error.contains("udfs/f.rs cannot be built") && error.contains("no-such-crate-of-orderflow"), "{error}");
}

#[test]
fn a_row_for_which_a_function_panics_is_left_out() {
    let summary =
        outcome("#[udf]\nfn picky(a: i64) -> i64 { if a == 3 { panic!(\"three\") } else { a } }", "SELECT picky(a) FROM t").unwrap();
    assert_eq!((summary.errors, summary.rows_out.as_slice()), (1, [4].as_slice()));
    assert!(summary.first_error.unwrap().contains("function picky() panicked"));
}

#[test]
fn an_aggregate_that_panics_fails_the_stage() {
    let error = outcome("#[udf]\nfn worst(a: Vec<i64>) -> i64 { a[100] }", "SELECT worst(a) FROM t GROUP BY tumble(INTERVAL '1 hour')")
        .unwrap_err();
    assert!(error.contains("function worst() panicked"), "{error}");
}

#[test]
fn an_async_function_that_panics_or_sleeps_fails_the_stage() {
    let error = outcome("#[udf]\nasync fn falls(a: i64) -> i64 { if a == 2 { panic!(\"two\") } else { a } }", "SELECT falls(a) FROM t")
        .unwrap_err();
    assert!(error.contains("function falls(): it panicked"), "{error}");
    let function = "/*\n[dependencies]\ntokio = { version = \"1\", features = [\"time\"] }\n*/\n\
        #[udf(timeout = \"50ms\", allowed_in_flight = 1)]\nasync fn sleeps(a: i64) -> i64 {\n\
        if a == 1 { tokio::time::sleep(std::time::Duration::from_secs(60)).await; }\n a }";
    let error = outcome(function, "SELECT sleeps(a) FROM t").unwrap_err();
    assert!(error.contains("function sleeps(): a call took longer than 50ms; raise #[udf(timeout"), "{error}");
}

#[test]
fn null_gives_null_without_a_call() {
    let function = "#[udf]\nasync fn quick(a: i64, b: Option<&str>) -> i64 { if a == 0 { panic!(\"asked\") } else { b.map_or(1, |b| b.len() as i64) } }";
    let summary =
        outcome(function, "SELECT quick(CASE WHEN a > 0 THEN a END, CASE WHEN a > 2 THEN b END) AS q FROM t WHERE a >= 0").unwrap();
    assert_eq!((summary.errors, summary.rows_out.as_slice()), (0, [5].as_slice()));
}

#[test]
fn a_function_has_a_name_of_its_own() {
    let error = outcome("#[udf]\nfn abs(a: i64) -> i64 { a }", "SELECT abs(a) FROM t").unwrap_err();
    assert!(error.contains("there is a function abs() already"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    for name in ["one.rs", "two.rs"] {
        std::fs::write(folder.path().join(name), "#[udf] fn f(a: i64) -> i64 { a }").unwrap();
    }
    let error = read_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("two.rs: a second function `f`, besides that of") && error.contains("one.rs"), "{error}");
}

#[test]
fn a_stage_is_given_the_functions_that_it_calls() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = folder_of(&root.join("tests/stages")).unwrap();
    assert_eq!(folder, root.join("udfs").canonicalize().unwrap());
    let names = |text: &str| called(text, read_folder(&folder).unwrap()).into_iter().map(|d| d.name).collect::<Vec<_>>();
    assert_eq!(names("SELECT Price_Band (1, 2), 'median_of(x)' -- look_up_region(1)\nFROM median_of"), ["price_band"]);
}
