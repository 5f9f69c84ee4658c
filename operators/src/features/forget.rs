//! What no order to come can see.

use crate::epoch::Micros;

use super::windows::{PANES, WindowSet};

/// The first panes that a window of an order to come may cover.
///
/// An order that counts is not stale, `t ≥ W(e−1) − horizon`, and the watermark never goes back: after epoch `e`, no order comes with
/// `t < W(e) − horizon`, and no window looks further back than 19 panes behind the pane of that time. Forgetting earlier panes
/// cannot be observed, whenever it happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reachable {
    /// Of the base panes, over all windows.
    pub base: i64,
    /// Of each window's own panes.
    pub windows: Vec<i64>,
    /// The pane of the longest window in which the earliest order to come may lie.
    pub now: i64,
}

impl Reachable {
    pub fn new(windows: &WindowSet, horizon: Micros, watermark: Micros) -> Self {
        let earliest = watermark.saturating_sub(horizon).div_euclid(windows.base());
        let pane = |factor: &i64| earliest.div_euclid(*factor);
        let first = |factor: &i64| pane(factor).saturating_sub(PANES - 1);
        Reachable {
            base: windows.factors().iter().map(|factor| first(factor).saturating_mul(*factor)).min().unwrap_or(i64::MIN),
            windows: windows.factors().iter().map(first).collect(),
            now: windows.factors().last().map_or(i64::MIN, pane),
        }
    }

    /// Of the longest window's panes: from where members can be seen.
    pub fn members(&self) -> i64 {
        self.now.saturating_sub(PANES - 1)
    }
}
