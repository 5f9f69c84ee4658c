//! How many orders a key had in each pane, and for how much.

use smallvec::SmallVec;

use super::forget::Reachable;
use super::pane_map::PaneMap;
use super::windows::{Locator, PANES, View, WindowSet};
use crate::prefetch::prefetch;

/// More base panes than this, and a key gets a level for each window.
const FEW_MAX: usize = 32;

/// Orders and their amounts.
///
/// Sums saturate. Amounts are not negative, so that a saturated sum is the lesser of the true sum and the largest `i64`, however it is
/// grouped: sums of panes are the same as sums of orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub orders: i64,
    pub amount: i64,
}

impl Totals {
    #[inline]
    pub fn add(&mut self, other: Totals) {
        self.orders = self.orders.saturating_add(other.orders);
        self.amount = self.amount.saturating_add(other.amount);
    }
}

/// The totals of one key.
#[derive(Debug)]
pub(super) enum Sums {
    /// By base pane, rising: most keys have one to five.
    Few(SmallVec<[(i64, Totals); 2]>),
    /// For each window by the window's own pane, so that a window is never more than 20 entries.
    Levels(Box<[PaneMap<Totals, 0>]>),
}

impl Default for Sums {
    fn default() -> Self {
        Sums::Few(SmallVec::new())
    }
}

impl Sums {
    /// Adds an order.
    pub fn add(&mut self, at: &Locator, order: Totals, reachable: &Reachable, windows: &WindowSet) {
        match self {
            Sums::Few(few) => {
                let pane = at.pane();
                // From the end: orders mostly come in order.
                let behind = few.iter().rposition(|entry| entry.0 <= pane).map_or(0, |at| at + 1);
                if behind > 0 && few[behind - 1].0 == pane {
                    few[behind - 1].1.add(order);
                    return;
                }
                let full = few.len() == few.capacity();
                few.insert(behind, (pane, order));
                if full || few.len() > FEW_MAX {
                    // Rather than have more memory, see what is no longer needed.
                    few.retain(|entry| entry.0 >= reachable.base);
                }
                if few.len() > FEW_MAX {
                    *self = Sums::Levels(levels(few, windows));
                }
            }
            Sums::Levels(levels) => {
                for ((level, view), &first) in levels.iter_mut().zip(at.views()).zip(&reachable.windows) {
                    let (totals, made) = level.insert(view.pane);
                    totals.add(order);
                    if made {
                        level.forget_half_before(first);
                    }
                }
            }
        }
    }

    /// Adds up what each window sees.
    pub fn read(&self, at: &Locator, totals: &mut [Totals]) {
        totals.fill(Totals::default());
        match self {
            Sums::Few(few) => {
                for (pane, sum) in few.iter().rev().take_while(|entry| entry.0 >= at.from()) {
                    for (View { from, to, .. }, total) in at.views().iter().zip(totals.iter_mut()) {
                        if from <= pane && pane <= to {
                            total.add(*sum);
                        }
                    }
                }
            }
            Sums::Levels(levels) => {
                for ((level, view), total) in levels.iter().zip(at.views()).zip(totals) {
                    level.each_in(view.pane.saturating_sub(PANES - 1)..=view.pane, |sum| total.add(*sum));
                }
            }
        }
    }

    /// Shows what there is, to be taken up by [`take_up`](Sums::take_up): the window (`None`: all of them), the pane (of that window, or the base pane),
    /// and what was in it.
    pub fn each(&self, mut show: impl FnMut(Option<usize>, i64, Totals)) {
        match self {
            Sums::Few(few) => few.iter().for_each(|&(pane, totals)| show(None, pane, totals)),
            Sums::Levels(levels) => {
                for (window, level) in levels.iter().enumerate() {
                    level.each(|pane, totals| show(Some(window), pane, *totals));
                }
            }
        }
    }

    /// Adds what some orders were together, for all windows or for one.
    pub fn take_up(&mut self, window: Option<usize>, at: &Locator, orders: Totals, reachable: &Reachable, windows: &WindowSet) {
        let Some(window) = window else { return self.add(at, orders, reachable, windows) };
        if let Sums::Few(few) = self {
            *self = Sums::Levels(levels(few, windows));
        }
        if let Sums::Levels(levels) = self {
            levels[window].at(at.views()[window].pane).add(orders);
        }
    }

    /// Asks for what an order will most likely touch.
    pub fn prefetch(&self) {
        if let Sums::Few(few) = self
            && few.spilled()
            && let Some(last) = few.last()
        {
            prefetch(last);
        }
    }

    /// Drops what no window can see any more.
    pub fn forget(&mut self, reachable: &Reachable) {
        match self {
            Sums::Few(few) => few.retain(|entry| entry.0 >= reachable.base),
            Sums::Levels(levels) => {
                for (level, &first) in levels.iter_mut().zip(&reachable.windows) {
                    level.forget_before(first);
                }
            }
        }
    }

    /// About how many bytes there are outside of the value itself.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Sums::Few(few) if few.spilled() => few.capacity() * size_of::<(i64, Totals)>(),
            Sums::Few(_) => 0,
            Sums::Levels(levels) => levels.iter().map(|level| size_of_val(level) + level.heap_bytes()).sum(),
        }
    }
}

fn levels(few: &[(i64, Totals)], windows: &WindowSet) -> Box<[PaneMap<Totals, 0>]> {
    let level = |factor: &i64| {
        let mut level = PaneMap::<Totals, 0>::default();
        for (pane, totals) in few {
            level.at(pane.div_euclid(*factor)).add(*totals);
        }
        level
    };
    windows.factors().iter().map(level).collect()
}
