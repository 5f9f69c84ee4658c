/*
[dependencies]
tokio = { version = "1", features = ["time"] }
*/

//! An asynchronous function: what a service would answer, after a moment; the longer, the smaller the number is, so that answers come in another order than calls.

use std::time::Duration;

use arroyo_udf_plugin::udf;

#[udf(ordered, timeout = "30s", allowed_in_flight = 100)]
async fn look_up_region(customer: i64, city: &str) -> Option<String> {
    tokio::time::sleep(Duration::from_micros(500 / (1 + customer.unsigned_abs() % 5))).await;
    if city.is_empty() { None } else { Some(format!("{city}-{}", customer % 3)) }
}
