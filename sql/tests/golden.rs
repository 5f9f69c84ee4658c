//! Every stage of `tests/stages`, in every cut, with restarts and other numbers of workers. `UPDATE_GOLDEN=1` writes what comes out.

use std::path::Path;

use orderflow_sql::golden::test_folder;

#[test]
fn golden_stages() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("tests/stages");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let outcomes = test_folder(&folder, Some(&root.join("udfs")), update, |outcome| match &outcome.error {
        None => println!("ok    {}", outcome.name),
        Some(error) => println!("WRONG {}\n{error}", outcome.name),
    });
    let wrong: Vec<String> = outcomes.expect("the folder is there").into_iter().filter(|o| o.error.is_some()).map(|o| o.name).collect();
    assert!(wrong.is_empty(), "wrong: {}", wrong.join(", "));
}
