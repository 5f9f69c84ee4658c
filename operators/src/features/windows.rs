//! The sliding windows, their panes, and what the features are called.

use crate::epoch::Micros;

use super::KeyKind;

/// Panes in a window.
pub const PANES: i64 = 20;

/// 5 minutes, 1 hour, 24 hours; microseconds.
const DEFAULT_WIDTHS: [Micros; 3] = [300_000_000, 3_600_000_000, 86_400_000_000];

/// The windows of the features, from the shortest to the longest. Distinct counts are over the longest.
///
/// For an event time `t` and a window of width `w`, the pane is `p = floor(t / (w / 20))`, and the window covers the panes in `(p − 20, p]`.
///
/// ```
/// use orderflow_operators::features::WindowSet;
/// let windows = WindowSet::new(&[60_000_000, 3_600_000_000])?;
/// assert_eq!(windows.feature_names()[..4], ["customer_orders_1m", "customer_orders_1h", "customer_amount_1m", "customer_amount_1h"]);
/// # Ok::<_, orderflow_operators::features::WindowError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowSet {
    /// The width of the base pane: every window's pane is a whole number of them.
    base: Micros,
    /// How many, for each window.
    factors: Vec<i64>,
    feature_names: Vec<String>,
}

/// Why windows cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// There is none.
    #[error("there must be at least one window")]
    None,
    /// A width that has no panes.
    #[error("the window of {0} µs cannot be cut into {PANES} panes of whole microseconds")]
    Indivisible(Micros),
    /// A width that is not above the one before it.
    #[error("windows must rise: {after} does not follow {before}")]
    NotRising {
        /// The label of the one before.
        before: String,
        /// Its own label.
        after: String,
    },
}

impl WindowSet {
    /// Windows of these widths in microseconds, rising, each a multiple of 20 µs.
    ///
    /// # Errors
    /// If a width is not so, or if there is none.
    pub fn new(widths: &[Micros]) -> Result<WindowSet, WindowError> {
        if let Some(&width) = widths.iter().find(|&&width| width <= 0 || width % PANES != 0) {
            return Err(WindowError::Indivisible(width));
        }
        if let Some(pair) = widths.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(WindowError::NotRising { before: label(pair[0]), after: label(pair[1]) });
        }
        let base = widths.iter().map(|width| width / PANES).reduce(gcd).ok_or(WindowError::None)?;
        let factors = widths.iter().map(|width| width / PANES / base).collect();
        Ok(WindowSet { base, factors, feature_names: feature_names(widths) })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.factors.len()
    }

    /// Never: there is at least one.
    pub fn is_empty(&self) -> bool {
        self.factors.is_empty()
    }

    /// The features in the order of their columns: for each of customer, card, device and ip the orders in each window, then the amounts;
    /// then `device_cards`, `card_customers`, `ip_customers` and `customer_devices` in the longest window; then `country_mismatch`.
    pub fn feature_names(&self) -> &[String] {
        &self.feature_names
    }

    /// The width of the base pane in microseconds: the greatest common divisor of the windows' panes.
    pub(super) fn base(&self) -> Micros {
        self.base
    }

    /// Base panes in a pane of each window.
    pub(super) fn factors(&self) -> &[i64] {
        &self.factors
    }
}

impl Default for WindowSet {
    /// 5 minutes, 1 hour and 24 hours.
    fn default() -> Self {
        WindowSet::new(&DEFAULT_WIDTHS).expect("the default widths rise and divide")
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The largest unit up to hours of which the width is a whole number: `5m`, `24h`, `90s`.
fn label(width: Micros) -> String {
    let units = [(3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1_000, "ms"), (1, "us")];
    let (unit, name) = units.into_iter().find(|(unit, _)| width % unit == 0).expect("any width is whole microseconds");
    format!("{}{name}", width / unit)
}

fn feature_names(widths: &[Micros]) -> Vec<String> {
    let labels: Vec<_> = widths.iter().map(|&width| label(width)).collect();
    let mut names = Vec::new();
    for kind in KeyKind::ALL {
        for value in ["orders", "amount"] {
            names.extend(labels.iter().map(|label| format!("{}_{value}_{label}", kind.name())));
        }
    }
    for kind in KeyKind::BY_DISTINCT {
        names.extend(labels.last().map(|label| format!("{}_{label}", kind.distinct_name())));
    }
    names.push("country_mismatch".to_owned());
    names
}

/// Where an event time lies in each window's panes.
///
/// Keeps the last answer: rows that come one after the other mostly lie in the same panes, and divisions are slow.
#[derive(Debug)]
pub(super) struct Locator {
    base: Micros,
    /// The base pane and, of its event times, the first and the last.
    pane: i64,
    first: Micros,
    last: Micros,
    views: Vec<View>,
    /// The first base pane of all views.
    from: i64,
}

/// What one window sees from an event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Base panes in a pane.
    pub factor: i64,
    /// The window's pane.
    pub pane: i64,
    /// The first base pane in that pane.
    start: i64,
    /// The base panes that the window covers, from here …
    pub from: i64,
    /// … to here, which is the last of the pane.
    pub to: i64,
}

impl Locator {
    pub fn new(windows: &WindowSet) -> Self {
        let view = |&factor: &i64| View::at(0, factor);
        let views: Vec<_> = windows.factors().iter().map(view).collect();
        let mut locator = Locator { base: windows.base(), pane: 0, first: 0, last: windows.base() - 1, views, from: 0 };
        locator.from = locator.first_of_all();
        locator
    }

    /// Goes to an event time.
    pub fn go_to(&mut self, event_time: Micros) {
        if (self.first..=self.last).contains(&event_time) {
            return;
        }
        self.pane = event_time.div_euclid(self.base);
        let past = event_time.rem_euclid(self.base);
        self.first = event_time.saturating_sub(past);
        self.last = event_time.saturating_add(self.base - 1 - past);
        for view in &mut self.views {
            if !(view.start..=view.to).contains(&self.pane) {
                *view = View::at(self.pane, view.factor);
            }
        }
        self.from = self.first_of_all();
    }

    fn first_of_all(&self) -> i64 {
        self.views.iter().map(|view| view.from).min().expect("there is at least one window")
    }

    /// The base pane.
    pub fn pane(&self) -> i64 {
        self.pane
    }

    /// What each window sees.
    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// The pane of the longest window.
    pub fn longest_pane(&self) -> i64 {
        self.views.last().expect("there is at least one window").pane
    }

    /// The first base pane that any window covers.
    pub fn from(&self) -> i64 {
        self.from
    }
}

impl View {
    fn at(base_pane: i64, factor: i64) -> View {
        // Beyond the range of i64 there are no panes, so that ends may be cut to it.
        let cut = |pane: i128| pane.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        let pane = base_pane.div_euclid(factor);
        let (wide, factor_wide) = (i128::from(pane), i128::from(factor));
        View {
            factor,
            pane,
            start: cut(wide * factor_wide),
            from: cut((wide - i128::from(PANES - 1)) * factor_wide),
            to: cut((wide + 1) * factor_wide - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn names_of_the_default_windows() {
        expect![[r#"
            customer_orders_5m
            customer_orders_1h
            customer_orders_24h
            customer_amount_5m
            customer_amount_1h
            customer_amount_24h
            card_orders_5m
            card_orders_1h
            card_orders_24h
            card_amount_5m
            card_amount_1h
            card_amount_24h
            device_orders_5m
            device_orders_1h
            device_orders_24h
            device_amount_5m
            device_amount_1h
            device_amount_24h
            ip_orders_5m
            ip_orders_1h
            ip_orders_24h
            ip_amount_5m
            ip_amount_1h
            ip_amount_24h
            device_cards_24h
            card_customers_24h
            ip_customers_24h
            customer_devices_24h
            country_mismatch"#]]
        .assert_eq(&WindowSet::default().feature_names().join("\n"));
    }

    #[test]
    fn labels() {
        let labels = [86_400_000_000, 5_400_000_000, 90_000_000, 1_500_000, 20].map(label);
        assert_eq!(labels, ["24h", "90m", "90s", "1500ms", "20us"]);
    }

    #[test]
    fn errors() {
        let error = |widths: &[i64]| WindowSet::new(widths).unwrap_err().to_string();
        assert_eq!(error(&[]), "there must be at least one window");
        assert_eq!(error(&[0]), "the window of 0 µs cannot be cut into 20 panes of whole microseconds");
        assert_eq!(error(&[20, 50]), "the window of 50 µs cannot be cut into 20 panes of whole microseconds");
        assert_eq!(error(&[3_600_000_000, 300_000_000]), "windows must rise: 5m does not follow 1h");
        assert_eq!(error(&[300_000_000, 300_000_000]), "windows must rise: 5m does not follow 5m");
    }

    #[test]
    fn panes_of_windows_that_do_not_divide_each_other() {
        let windows = WindowSet::new(&[40, 60]).unwrap();
        assert_eq!((windows.base(), windows.factors()), (1, &[2, 3][..]));
        let mut locator = Locator::new(&windows);
        for (time, expected) in [
            (0, [(0, -38, 1), (0, -57, 2)]),
            (5, [(2, -34, 5), (1, -54, 5)]),
            (-1, [(-1, -40, -1), (-1, -60, -1)]),
            (i64::MAX, [(i64::MAX / 2, i64::MAX - 39, i64::MAX), (i64::MAX / 3, i64::MAX - 58, i64::MAX)]),
            (i64::MIN, [(i64::MIN / 2, i64::MIN, i64::MIN + 1), (i64::MIN / 3 - 1, i64::MIN, i64::MIN + 1)]),
        ] {
            locator.go_to(time);
            let views: Vec<_> = locator.views().iter().map(|view| (view.pane, view.from, view.to)).collect();
            assert_eq!(views, expected, "at {time}");
            assert_eq!(locator.pane(), time);
        }
    }
}
