//! All-or-nothing reservation over SKUs, the orders' life cycle, and expiry of holds: equal to a serial walk.
//!
//! # Design
//!
//! Two operators in a loop. The [`Desk`] is keyed by order: it keeps the orders of an epoch and what became of
//! earlier ones, and asks the owners of their SKUs. The [`Stock`] is keyed by SKU and answers what is certain.
//!
//! ```text
//!   scored orders ──┐           requests (by SKU): lines, releases, shipments, expiries
//!   life cycle ─────┤──► [desk] ───────────────────────────────► [stock] ◄── movements (by SKU)
//!                   │     │ ▲  ── decisions (to the line's worker) ──►│
//!       decisions ◄─┼─────┘ └────── verdicts, time + 1 ◄─────────────┤
//!     order_lines ◄─┘                                                └──► reservation_events, stock_movements
//! ```
//!
//! An order whose lines are all *certainly* available is granted, one with a line that certainly is not is refused; that
//! makes other lines certain, and a next round runs in the same epoch until none is open. See [`Stock`] for the bounds, and why it ends.
//!
//! A verdict never changes once given, and more information only makes more lines certain. The outcome therefore does not
//! depend on the order or grouping of messages within an epoch: both sides act on what arrives instead of waiting
//! for a round to complete.
//!
//! The life cycle of an order is known to its desk up to one bit: whether it was granted. A message for an
//! order of the same epoch that is still open is therefore sent to the stock *conditionally*, tied to the order's line there.

mod desk;
mod messages;
mod stock;
mod wiring;

pub use desk::{Desk, Finished, ReservationStatus, ReserveSettings, scored_schema};
pub use messages::{decision_schema, request_schema, verdict_schema};
pub use stock::{Settled, Stock};
pub use wiring::{DeskObserver, Reserved, Sides, StockObserver, reserve};

#[cfg(test)]
mod tests;
