//! Tables on standard output.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

/// A table with a title above. Columns of numbers stand to the right.
pub(super) fn render(title: &str, heads: &[String], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_header(heads);
    for row in rows {
        table.add_row(row.iter().map(|text| {
            let number = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || ".,-+% _".contains(c));
            Cell::new(text).set_alignment(if number { CellAlignment::Right } else { CellAlignment::Left })
        }));
    }
    let note = if rows.is_empty() { "\n(no rows)" } else { "" };
    format!("{title}\n{table}{note}\n")
}

/// A whole number in groups of three.
pub(super) fn grouped(n: u64) -> String {
    indicatif::HumanCount(n).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn numbers_stand_to_the_right() {
        let heads = ["decision", "orders"].map(str::to_owned);
        let rows = [vec!["accepted".to_owned(), grouped(1_234_567)], vec!["rejected / fraud".to_owned(), grouped(7)]];
        expect![[r#"
            Decisions
            ┌──────────────────┬───────────┐
            │ decision         ┆ orders    │
            ╞══════════════════╪═══════════╡
            │ accepted         ┆ 1,234,567 │
            │ rejected / fraud ┆         7 │
            └──────────────────┴───────────┘
        "#]]
        .assert_eq(&render("Decisions", &heads, &rows));
    }
}
