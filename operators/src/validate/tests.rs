use super::*;
use crate::columns::u8s;
use crate::decoder::{Decoder, Topic};
use crate::epoch::{Epoch, NEVER, Place};

const GOOD: &str = r#"{"type":"order_placed","order_id":"o","customer_id":"c","event_time":1000,"currency":"EUR","lines":[{"sku":"s","quantity":3,"unit_price":5}]}"#;

fn info(watermark_before: Micros) -> EpochInfo {
    EpochInfo { epoch: Epoch(1), sealed_at: 2_000_000, watermark_before, watermark: watermark_before, checkpoint: false }
}

fn decode(messages: &[String]) -> RecordBatch {
    let mut decoder = Decoder::new("o", "i");
    for (at, message) in messages.iter().enumerate() {
        decoder.push(Topic::Orders, Place::new(0, at as i64), message.as_bytes());
    }
    let decoded = decoder.finish();
    assert!(decoded.malformed.is_none(), "{:?}", decoded.malformed);
    decoded.orders.unwrap()
}

fn settings() -> ValidateSettings {
    ValidateSettings {
        future_max: Some(1_000_000),
        dedup_horizon: 10_000_000,
        currencies: [("EUR".to_owned(), 1_100_000), ("USD".to_owned(), 1_000_000)].into(),
        ..ValidateSettings::default()
    }
}

fn details(orders: &RecordBatch) -> Vec<Vec<String>> {
    let detail = orders.column(orders::DETAIL).as_list::<i32>();
    (0..orders.num_rows()).map(|r| detail.value(r).as_string::<i32>().iter().flatten().map(str::to_owned).collect()).collect()
}

#[track_caller]
fn check(from: &str, to: &str, watermark: Micros, expected: &[&str]) {
    assert!(GOOD.contains(from), "{from}");
    let orders = Validate::new(settings(), vec![]).on_epoch(&info(watermark), &decode(&[GOOD.replace(from, to)]));
    assert_eq!(details(&orders), [expected], "{to}");
    assert_eq!(u8s(&orders, orders::STATUS), [!expected.is_empty() as u8]);
}

fn with(more: &str) -> String {
    format!("{{{more},")
}

#[test]
fn each_rule() {
    let long = "x".repeat(65);
    let fits = "x".repeat(64);
    check("{", "{", NEVER, &[]);
    check("\"o\"", "\"\"", NEVER, &["bad_order_id"]);
    check("\"o\"", &format!("\"{long}\""), NEVER, &["bad_order_id"]);
    check("\"o\"", &format!("\"{fits}\""), NEVER, &[]);
    check("\"c\"", "\"\"", NEVER, &["bad_customer_id"]);
    check("[{\"sku\":\"s\",\"quantity\":3,\"unit_price\":5}]", "[]", NEVER, &["no_lines"]);
    let line = r#"{"sku":"s","quantity":1,"unit_price":0}"#;
    let lines = |n: usize| format!("[{}]", vec![line; n].join(","));
    check("[{\"sku\":\"s\",\"quantity\":3,\"unit_price\":5}]", &lines(100), NEVER, &[]);
    check("[{\"sku\":\"s\",\"quantity\":3,\"unit_price\":5}]", &lines(101), NEVER, &["too_many_lines"]);
    check("\"s\"", "\"\"", NEVER, &["bad_sku"]);
    check("\"s\"", &format!("\"{long}\""), NEVER, &["bad_sku"]);
    check(":3", ":0", NEVER, &["bad_quantity"]);
    check(":3", ":10000", NEVER, &[]);
    check(":3", ":10001", NEVER, &["bad_quantity"]);
    check(":5", ":-1", NEVER, &["bad_price"]);
    check(":5", ":100000001", NEVER, &["bad_price"]);
    check("EUR", "eur", NEVER, &["unknown_currency"]);
    check("{\"type\"", &(with("\"total\":15") + "\"type\""), NEVER, &[]);
    check("{\"type\"", &(with("\"total\":16") + "\"type\""), NEVER, &["total_mismatch"]);
    for bad in ["us", "USA", "", "U1"] {
        check("{\"type\"", &(with(&format!("\"shipping_country\":\"{bad}\"")) + "\"type\""), NEVER, &["bad_country"]);
    }
    for (ip, good) in [("1.2.3.4", true), ("::1", true), ("1.2.3", false), ("", false), ("256.1.1.1", false), ("2001:db8::g", false)] {
        let expected: &[&str] = if good { &[] } else { &["bad_ip"] };
        check("{\"type\"", &(with(&format!("\"ip\":\"{ip}\"")) + "\"type\""), NEVER, expected);
    }
    // Sealed at 2 s, one second ahead is allowed.
    check(":1000,", ":3000,", NEVER, &[]);
    check(":1000,", ":3001,", NEVER, &["future"]);
    check(":1000,", ":1000,", 11_000_000, &[]);
    check(":1000,", ":1000,", 11_000_001, &["stale"]);
    check(":1000,", ":-9223372036854775,", NEVER, &[]);
}

#[test]
fn all_rules_in_order_and_each_once() {
    let bad = r#"{"type":"order_placed","order_id":"","customer_id":"","event_time":9000,"currency":"?","total":1,"lines":[{"sku":"","quantity":0,"unit_price":-1},{"sku":"","quantity":9223372036854775807,"unit_price":9223372036854775807}],"ip":"?","billing_country":"?"}"#;
    let orders = Validate::new(settings(), vec![]).on_epoch(&info(NEVER), &decode(&[bad.to_owned()]));
    assert_eq!(
        details(&orders)[0],
        [
            "bad_order_id",
            "bad_customer_id",
            "bad_sku",
            "bad_quantity",
            "bad_price",
            "unknown_currency",
            "total_mismatch",
            "bad_country",
            "bad_ip",
            "future"
        ]
    );
    assert!(orders.column(orders::TOTAL).is_null(0) && orders.column(orders::AMOUNT).is_null(0));
}

#[test]
fn sums_and_rounding() {
    let message = |lines: &str| GOOD.replace("[{\"sku\":\"s\",\"quantity\":3,\"unit_price\":5}]", lines);
    let one = |quantity: i64, price: i64| message(&format!("[{{\"sku\":\"s\",\"quantity\":{quantity},\"unit_price\":{price}}}]"));
    let orders = [one(1, 5), one(1, 4), one(3, -5), one(i64::MAX, 2), one(1, i64::MAX), one(1, 45)];
    let orders = Validate::new(settings(), vec![]).on_epoch(&info(NEVER), &decode(&orders));
    let column = |c: usize| orders.column(c).as_primitive::<Int64Type>().iter().collect::<Vec<_>>();
    assert_eq!(column(orders::TOTAL), [Some(5), Some(4), Some(-15), None, Some(i64::MAX), Some(45)]);
    // 5.5 → 6, 4.4 → 4, −16.5 → −16, 49.5 → 50
    assert_eq!(column(orders::AMOUNT), [Some(6), Some(4), Some(-16), None, None, Some(50)]);
    assert_eq!(column(orders::UNIT_COUNT)[3], Some(i64::MAX));
}

#[test]
fn a_total_is_exact_whatever_its_parts() {
    let (least, most) = (i64::MIN, i64::MAX);
    let total = |lines: &[(i64, i64)]| {
        let lines: Vec<_> = lines.iter().map(|(q, p)| format!(r#"{{"sku":"s","quantity":{q},"unit_price":{p}}}"#)).collect();
        let message = GOOD.replace("[{\"sku\":\"s\",\"quantity\":3,\"unit_price\":5}]", &format!("[{}]", lines.join(",")));
        let orders = Validate::new(settings(), vec![]).on_epoch(&info(NEVER), &decode(&[message]));
        orders.column(orders::TOTAL).as_primitive::<Int64Type>().iter().next().flatten()
    };
    assert_eq!(total(&[(most, 1), (1, 1), (-1, 1)]), Some(most));
    assert_eq!(total(&[(least, -1)]), None);
    // The first two are 2¹²⁷, beyond 128 bits; with the next four it is 0.
    let zero = [(least, least), (least, least), (least, most), (least, most), (least, 1), (least, 1)];
    assert_eq!(total(&zero), Some(0));
    assert_eq!(total(&zero[..5]), None);
}

struct Own;
impl Predicate for Own {
    fn name(&self) -> &str {
        "own"
    }
    /// Totals of 15 break it, of 10 are null, of 5 cannot be computed.
    fn evaluate(&self, orders: &RecordBatch) -> Result<BooleanArray, String> {
        let total = orders.column(orders::TOTAL).as_primitive::<Int64Type>();
        total
            .iter()
            .map(|t| match t {
                Some(15) => Ok(Some(false)),
                Some(10) => Ok(None),
                Some(5) => Err("no".to_owned()),
                _ => Ok(Some(true)),
            })
            .collect()
    }
}

#[test]
fn rules_of_ones_own() {
    let orders: Vec<String> = [1, 3, 2, 4, 1, 3].iter().map(|q| GOOD.replace(":3", &format!(":{q}"))).collect();
    let orders = Validate::new(settings(), vec![Box::new(Own)]).on_epoch(&info(NEVER), &decode(&orders));
    let own = vec!["own".to_owned()];
    assert_eq!(details(&orders), [own.clone(), own.clone(), vec![], vec![], own.clone(), own]);
}
