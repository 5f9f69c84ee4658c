//! The state of a checkpoint as tables, to be asked with SQL.
//!
//! | table | a row for each | columns |
//! | --- | --- | --- |
//! | `stock` | SKU that has units | sku (text), on_hand, reserved (int64) |
//! | `reservations` | SKU of an order that holds stock | order_id (text), event_time (timestamp: of the order), status (uint8: 0 held, 1 confirmed), line (uint32: its number in the order, from 0), sku (text), quantity (int64) |
//! | `orders` | order id that is remembered | id (text), event_time (timestamp: the beginning of its time bucket), content (16 bytes) |
//! | `movements` | movement id that is remembered | id (text), event_time (timestamp: the beginning of its time bucket) |
//! | `customer`, `card`, `device`, `ip` | key and pane; key, member and pane | key (text), event_time (timestamp: the beginning of the pane), window (uint8: of which window; 255: of all), orders, amount (int64), member (text or null) |

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use orderflow_operators::deduplicate::{Deduplicate, DeduplicateMovements};
use orderflow_operators::features::Features;
use orderflow_operators::keys::{KEY_GROUPS, KeyGroup};
use orderflow_operators::reserve::{Desk, ReserveSettings, Stock};
use orderflow_operators::snapshot::KeyedState;
use orderflow_sql::{QueryError, Table};

use crate::checkpoint::{CheckpointError, CheckpointStore, Listed, Loader, Resumed};
use crate::config::Config;
use crate::job::{JobError, operator_settings};

/// Why the state could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The settings.
    #[error(transparent)]
    Settings(#[from] JobError),
    /// The query.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// A thread could not be started.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// An answer.
pub struct Answer {
    /// Of which epoch's end.
    pub epoch: u64,
    /// Columns.
    pub schema: SchemaRef,
    /// Rows.
    pub rows: Vec<RecordBatch>,
}

/// The tables that there are, which are the operators' states.
const TABLES: [&str; 8] = ["stock", "reservations", "orders", "movements", "customer", "card", "device", "ip"];

/// Asks the state of a checkpoint. Only tables whose names occur in the query are read.
///
/// # Errors
/// If the checkpoint is damaged or of other settings, or the query is wrong.
pub fn query(config: &Config, store: &CheckpointStore, listed: &Listed, sql: &str) -> Result<Answer, StateError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let Resumed { manifest } = runtime.block_on(Resumed::whole(store, listed))?;
    let settings = operator_settings(config)?;
    let epoch = manifest.epoch.0;
    let loader = Loader::new(store.clone(), manifest, runtime.handle().clone());
    let words: Vec<String> = sql.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_lowercase).collect();
    let horizon = settings.deduplicate.horizon;
    let mut tables = Vec::new();
    for name in TABLES {
        let mut state: Box<dyn KeyedState> = match name {
            "stock" => Box::new(Stock::new(0)),
            "reservations" => Box::new(Desk::new(
                0,
                ReserveSettings {
                    hold: settings.hold,
                    thresholds: settings.thresholds,
                    model: settings.model.label().to_owned(),
                    windows: settings.windows.clone(),
                },
            )),
            "orders" => Box::new(Deduplicate::new(settings.deduplicate)),
            "movements" => Box::new(DeduplicateMovements::new(settings.deduplicate)),
            _ => Box::new(Features::new(settings.windows.clone(), horizon)),
        };
        let mut rows = Vec::new();
        if words.iter().any(|word| word == name) {
            loader.restore(name, 0, 1, state.as_mut())?;
            rows.extend((0..KEY_GROUPS as u16).filter_map(|group| state.group(KeyGroup(group))));
        }
        tables.push(Table { name: name.to_owned(), schema: state.schema(), rows });
    }
    let (schema, rows) = runtime.block_on(orderflow_sql::query(tables, sql))?;
    Ok(Answer { epoch, schema: Arc::clone(&schema), rows })
}
