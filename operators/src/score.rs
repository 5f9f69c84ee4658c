//! The probability that an order is fraud, by a model read from a file.
//!
//! ```
//! use orderflow_operators::{features::WindowSet, score::Model};
//! let text = r#"{"name": "baseline", "version": 1, "kind": "logistic", "bias": -6.0,
//!                "terms": [{"feature": "card_orders_5m", "transform": "log1p", "weight": 1.2}]}"#;
//! assert_eq!(Model::from_json(text, &WindowSet::default())?.label(), "baseline/1");
//! let error = Model::from_json(&text.replace("card_orders_5m", "card_order_5m"), &WindowSet::default()).unwrap_err();
//! assert_eq!(error.to_string(), "unknown feature `card_order_5m` in term 1; the nearest is `card_orders_5m`");
//! # Ok::<_, orderflow_operators::score::ModelError>(())
//! ```

use arrow::array::{Float64Array, Int64Array, RecordBatch};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use serde::Deserialize;

use crate::columns::{i64s, u8s};
use crate::features::WindowSet;
use crate::rows::orders;
use crate::validate::Status;

/// Scores from which an order is refused, or is to be reviewed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// `rejected / fraud` from here on.
    pub reject: f64,
    /// `review` from here on.
    pub review: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds { reject: 0.90, review: 0.70 }
    }
}

/// A model, its features resolved to columns.
#[derive(Clone, Debug)]
pub struct Model {
    name: String,
    version: u64,
    label: String,
    kind: Kind,
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Not JSON, or not a model: a field is missing, unknown or of the wrong type, or the kind or a transform is unknown.
    #[error("not a model: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A term of a feature that there is not.
    #[error("unknown feature `{feature}` in term {term}; the nearest is `{nearest}`")]
    UnknownFeature {
        /// The feature named.
        feature: String,
        /// The term's number, from 1.
        term: usize,
        /// The known feature with the most similar name.
        nearest: String,
    },
    /// Numbers so large that a score could be undefined.
    #[error("the weights are too large: bias and terms must have a finite sum for any order")]
    Overflow,
}

/// The file.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum File {
    Logistic(LogisticFile),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogisticFile {
    name: String,
    version: u64,
    bias: f64,
    terms: Vec<TermFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TermFile {
    feature: String,
    transform: Transform,
    weight: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Transform {
    Identity,
    Log1p,
}

#[derive(Clone, Debug)]
enum Kind {
    /// 1 / (1 + exp(−(bias + Σ weight · transform(feature))))
    Logistic { bias: f64, terms: Vec<Term> },
}

#[derive(Clone, Copy, Debug)]
struct Term {
    source: Source,
    transform: Transform,
    weight: f64,
}

/// Where a feature's values are.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// Among the windows' features.
    Feature(usize),
    /// Among the order's own columns.
    Order(usize),
}

/// Features that are columns of the order.
const OF_ORDER: [(&str, usize); 3] = [("amount", orders::AMOUNT), ("line_count", orders::LINE_COUNT), ("unit_count", orders::UNIT_COUNT)];

impl Model {
    /// Reads a model: `name`, `version`, `kind` and what the kind needs; for `logistic` `bias` and `terms`, each of a
    /// `feature`, its `transform` (`identity` or `log1p`) and its `weight`. The features are those of the windows, and `amount`,
    /// `line_count` and `unit_count`.
    ///
    /// # Errors
    /// If the text is not such a model, or names a feature that there is not.
    pub fn from_json(text: &str, windows: &WindowSet) -> Result<Model, ModelError> {
        let File::Logistic(LogisticFile { name, version, bias, terms }) = serde_json::from_str(text)?;
        let term = |(at, term): (usize, TermFile)| {
            let source = source(&term.feature, windows).ok_or_else(|| ModelError::UnknownFeature {
                nearest: nearest(&term.feature, windows),
                feature: term.feature,
                term: at + 1,
            })?;
            Ok(Term { source, transform: term.transform, weight: term.weight })
        };
        let terms = terms.into_iter().enumerate().map(term).collect::<Result<Vec<_>, ModelError>>()?;
        // Then no sum can come to "infinity less infinity".
        let most: f64 = terms.iter().map(|term| term.weight.abs() * term.transform.apply(i64::MAX)).sum();
        if !(most + bias.abs()).is_finite() {
            return Err(ModelError::Overflow);
        }
        Ok(Model { label: format!("{name}/{version}"), name, version, kind: Kind::Logistic { bias, terms } })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// `name/version`, as in the column `model`.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The score of each order, between 0 and 1; null where its status is not [`Status::Fresh`].
    ///
    /// `orders` is [`orders::validated`] after `deduplicate`, `features` the columns in the order of [`WindowSet::feature_names`] for
    /// the windows that the model was read for, with a value for each fresh order.
    pub fn score(&self, orders: &RecordBatch, features: &[Int64Array]) -> Float64Array {
        let fresh = BooleanBuffer::from_iter(u8s(orders, orders::STATUS).iter().map(|&status| status == Status::Fresh as u8));
        let Kind::Logistic { bias, terms } = &self.kind;
        // By columns: for each order the terms are still added one after the other.
        let mut sums = vec![*bias; orders.num_rows()];
        for term in terms {
            let values = match term.source {
                Source::Feature(at) => &features[at].values()[..],
                Source::Order(column) => i64s(orders, column),
            };
            term.add(values, &mut sums);
        }
        let logistic = |(sum, fresh): (f64, bool)| if fresh { 1.0 / (1.0 + (-sum).exp()) } else { 0.0 };
        let scores: Vec<_> = sums.into_iter().zip(&fresh).map(logistic).collect();
        Float64Array::new(scores.into(), Some(NullBuffer::new(fresh)).filter(|nulls| nulls.null_count() > 0))
    }
}

impl Term {
    fn add(&self, values: &[i64], sums: &mut [f64]) {
        // Most values are small counts, whose logarithms are worth keeping.
        let small: [f64; 32] = std::array::from_fn(|value| self.weight * self.transform.apply(value as i64));
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum += match small.get(value as usize) {
                Some(product) => *product,
                None => self.weight * self.transform.apply(value),
            };
        }
    }
}

impl Transform {
    fn apply(self, value: i64) -> f64 {
        match self {
            Transform::Identity => value as f64,
            Transform::Log1p => (value as f64).ln_1p(),
        }
    }
}

fn source(feature: &str, windows: &WindowSet) -> Option<Source> {
    let of_windows = windows.feature_names().iter().position(|name| name == feature).map(Source::Feature);
    of_windows.or_else(|| OF_ORDER.iter().find(|(name, _)| *name == feature).map(|(_, column)| Source::Order(*column)))
}

fn nearest(feature: &str, windows: &WindowSet) -> String {
    let known = windows.feature_names().iter().map(String::as_str).chain(OF_ORDER.map(|(name, _)| name));
    let nearest = known.min_by_key(|name| strsim::damerau_levenshtein(name, feature));
    nearest.expect("there are features").to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Array;
    use expect_test::{Expect, expect};

    use super::*;
    use crate::test_orders::{Order, batch};

    fn model(terms: &str) -> String {
        format!(r#"{{"name":"m","version":3,"kind":"logistic","bias":-1.5,"terms":[{terms}]}}"#)
    }

    /// Features of three orders; all 0 but those given.
    fn features(given: &[(&str, [i64; 3])]) -> Vec<Int64Array> {
        let value = |name: &String| given.iter().find(|(given, _)| given == name).map_or([0; 3], |(_, values)| *values);
        WindowSet::default().feature_names().iter().map(|name| Int64Array::from(value(name).to_vec())).collect()
    }

    fn three_orders(statuses: [Status; 3]) -> RecordBatch {
        let row = |(at, status): (usize, Status)| Order {
            amount: 1000 * at as i64,
            lines: vec![("A".into(), 2, 7); at + 1],
            status: status as u8,
            ..Order::default()
        };
        batch(&statuses.into_iter().enumerate().map(row).collect::<Vec<_>>())
    }

    #[test]
    fn terms_are_added_in_the_order_of_the_file() {
        let text = model(
            r#"{"feature":"card_orders_5m","transform":"log1p","weight":1.2},
               {"feature":"amount","transform":"identity","weight":0.001},
               {"feature":"unit_count","transform":"log1p","weight":-0.3},
               {"feature":"country_mismatch","transform":"identity","weight":0.1},
               {"feature":"line_count","transform":"identity","weight":0.7}"#,
        );
        let (card, mismatch) = ([3, 31, 1_000_000], [1, 0, 1]);
        let scores = Model::from_json(&text, &WindowSet::default())
            .unwrap()
            .score(&three_orders([Status::Fresh; 3]), &features(&[("card_orders_5m", card), ("country_mismatch", mismatch)]));
        for at in 0..3 {
            let mut sum: f64 = -1.5;
            sum += 1.2 * (card[at] as f64).ln_1p();
            sum += 0.001 * (1000.0 * at as f64);
            sum += -0.3 * (2.0 * (at + 1) as f64).ln_1p();
            sum += 0.1 * mismatch[at] as f64;
            sum += 0.7 * (at + 1) as f64;
            // To the last bit: another order of the terms would differ there.
            assert_eq!(scores.value(at).to_bits(), (1.0 / (1.0 + (-sum).exp())).to_bits());
        }
        assert_eq!(scores.null_count(), 0);
    }

    #[test]
    fn only_fresh_orders_have_a_score() {
        let model = Model::from_json(&model(""), &WindowSet::default()).unwrap();
        let orders = three_orders([Status::Conflict, Status::Fresh, Status::Invalid]);
        let mut columns = orders.columns().to_vec();
        columns[orders::AMOUNT] = Arc::new(Int64Array::from(vec![Some(1), Some(2), None]));
        let orders = RecordBatch::try_new(orders.schema(), columns).unwrap();
        let scores: Vec<_> = model.score(&orders, &features(&[])).iter().collect();
        assert_eq!(scores, [None, Some(1.0 / (1.0 + 1.5_f64.exp())), None]);
    }

    #[test]
    fn scores_have_ends() {
        let text = model(r#"{"feature":"amount","transform":"identity","weight":1e200}"#);
        let model = Model::from_json(&text, &WindowSet::default()).unwrap();
        let order = |amount| Order { amount, ..Order::default() };
        let scores = model.score(&batch(&[order(0), order(i64::MAX), order(i64::MIN)]), &features(&[]));
        assert_eq!(scores.values()[1..], [1.0, 0.0]);
    }

    #[track_caller]
    fn check_error(text: &str, expect: Expect) {
        expect.assert_eq(&Model::from_json(text, &WindowSet::default()).unwrap_err().to_string());
    }

    #[test]
    fn errors_name_what_is_wrong() {
        check_error(
            &model(r#"{"feature":"amount","transform":"log1p","weight":1},{"feature":"unit_cuont","transform":"log1p","weight":1}"#),
            expect!["unknown feature `unit_cuont` in term 2; the nearest is `unit_count`"],
        );
        check_error(
            &model(r#"{"feature":"ip_orders_2h","transform":"log1p","weight":1}"#),
            expect!["unknown feature `ip_orders_2h` in term 1; the nearest is `ip_orders_1h`"],
        );
        check_error(
            &model(r#"{"feature":"amount","transform":"log","weight":1}"#),
            expect!["not a model: unknown variant `log`, expected `identity` or `log1p`"],
        );
        check_error(
            &model(r#"{"feature":"amount","transform":"log1p","wieght":1}"#),
            expect!["not a model: unknown field `wieght`, expected one of `feature`, `transform`, `weight`"],
        );
        check_error(
            &model(r#"{"feature":"amount","transform":"identity","weight":1e300}"#),
            expect!["the weights are too large: bias and terms must have a finite sum for any order"],
        );
        check_error(
            &model("").replace("logistic", "forest"),
            expect!["not a model: unknown variant `forest`, expected `logistic` at line 1 column 39"],
        );
        check_error(
            &model("").replace("bias", "bais"),
            expect!["not a model: unknown field `bais`, expected one of `name`, `version`, `bias`, `terms`"],
        );
        check_error(r#"{"name":"m","version":3}"#, expect!["not a model: missing field `kind` at line 1 column 24"]);
        check_error("", expect!["not a model: EOF while parsing a value at line 1 column 0"]);
    }
}
