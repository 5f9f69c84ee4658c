//! What decides an order's fate: batches, epochs, key groups, keyed state, and one file an operator.
//!
//! An operator is a plain synchronous struct: it takes whole epochs of rows in canonical order and returns
//! rows. It knows no clock, does no I/O and draws no random numbers, so it cannot fail but by a bug,
//! and it is tested with no dataflow at all. [`dataflow`] puts the operators on timely's edges.
//!
//! | stage | module | keyed by |
//! | --- | --- | --- |
//! | JSON to columns | [`decoder`] | – |
//! | rules of a single order | [`validate`] | – |
//! | first occurrence of an id | [`deduplicate`] | order id, movement id |
//! | sliding windows per customer, card, device, ip | [`features`] | that key |
//! | probability of fraud | [`score`] | – |
//! | all lines or none, life cycle, expiry | [`reserve`] | order id and SKU |

pub mod batch;
mod by_group;
pub mod columns;
pub mod dataflow;
pub mod decoder;
pub mod deduplicate;
pub mod epoch;
pub mod exchange;
pub mod features;
mod growth;
pub mod keys;
mod prefetch;
pub mod reserve;
pub mod rows;
pub mod score;
pub mod snapshot;
pub mod streams;
#[cfg(test)]
mod test_orders;
pub mod validate;
pub mod watermark;
