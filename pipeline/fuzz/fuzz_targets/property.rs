//! What must hold for any text: it is planned, or refused with a message for people, and the planner never panics. What can be planned can be drawn, and what is
//! written for Arroyo can be planned again.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use orderflow_sql::stage::export::{Topics, to_arroyo};
use orderflow_sql::stage::{NamedStream, Stage};

static STREAMS: LazyLock<Vec<NamedStream>> = LazyLock::new(|| {
    let columns = vec![
        Field::new("order_id", DataType::Utf8, false),
        Field::new("sku", DataType::Utf8, true),
        Field::new("quantity", DataType::Int64, true),
        Field::new("score", DataType::Float64, true),
        Field::new("detail", DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))), false),
        Field::new("event_time", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
    ];
    let schema = Arc::new(Schema::new(columns));
    ["order_lines", "order_decisions"].map(|name| NamedStream { name: name.to_owned(), schema: schema.clone(), updating: false }).to_vec()
});

/// Panics where it does not hold.
pub fn check(text: &str) {
    let stage = match Stage::plan(text, &STREAMS) {
        Ok(stage) => stage,
        Err(error) => {
            let shown = error.to_string();
            assert!(!error.message().is_empty() && !shown.contains("this is a bug"), "{text}\n{shown}");
            return;
        }
    };
    assert!(stage.graph.to_svg().ends_with("</svg>\n"));
    assert!(stage.graph.to_dot().starts_with("digraph"));
    let topics = Topics { brokers: "kafka:9092".to_owned(), prefix: "orderflow.".to_owned(), watermark_delay: 5_000_000 };
    if let Ok(written) = to_arroyo(text, &stage, &STREAMS, &topics) {
        let again = Stage::plan(&written, &[]).unwrap_or_else(|error| panic!("{text}\n---\n{written}\n{error}"));
        assert_eq!(again.graph.sinks.len(), stage.graph.sinks.len(), "{written}");
    }
}
