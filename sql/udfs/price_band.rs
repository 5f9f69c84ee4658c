//! A scalar function: which band an amount falls into.

use arroyo_udf_plugin::udf;

#[udf]
fn price_band(amount: i64, currency: Option<&str>) -> Option<String> {
    let band = match amount {
        ..0 => return None,
        0..1_000 => "small",
        1_000..100_000 => "medium",
        _ => "large",
    };
    Some(format!("{band} {}", currency.unwrap_or("in no currency")))
}
