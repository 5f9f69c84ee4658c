//! `tumble`, `hop` and `session`: what windows of event time are.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility};
use orderflow_operators::epoch::Micros;

use super::catalog::timestamp;

/// How event time is cut into windows. Widths are microseconds, and positive; windows begin at multiples of the slide since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Window {
    /// One after the other.
    Tumble {
        /// Of a window.
        width: Micros,
    },
    /// Overlapping; the width is a multiple of the slide.
    Hop {
        /// From one window's start to the next one's.
        slide: Micros,
        /// Of a window.
        width: Micros,
    },
    /// As long as a key's rows follow on each other with less than `gap` between them.
    Session {
        /// Without a row.
        gap: Micros,
    },
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Window::Tumble { width } => write!(f, "tumble({})", Length(*width)),
            Window::Hop { slide, width } => write!(f, "hop({}, {})", Length(*slide), Length(*width)),
            Window::Session { gap } => write!(f, "session({})", Length(*gap)),
        }
    }
}

/// A length of time as people write it.
pub(crate) struct Length(pub Micros);

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(i64, &str); 6] =
            [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"), (1_000, "ms"), (1, "µs")];
        let (unit, name) = UNITS.into_iter().find(|(unit, _)| self.0 % unit == 0).unwrap_or((1, "µs"));
        write!(f, "{} {name}", self.0 / unit)
    }
}

/// The struct that a window is: `start` and `end`.
pub fn window_type() -> DataType {
    DataType::Struct(Fields::from(vec![Field::new("start", timestamp(), false), Field::new("end", timestamp(), false)]))
}

/// A name that stands for a window in a query. It is never evaluated: planning takes it out.
#[derive(Debug, PartialEq, Eq, Hash)]
struct WindowMarker {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for WindowMarker {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(window_type())
    }
    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(DataFusionError::Plan(format!("{}() may only stand in GROUP BY", self.name)))
    }
}

/// The three functions.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    [("tumble", 1), ("hop", 2), ("session", 1)]
        .into_iter()
        .map(|(name, arguments)| {
            // Volatile, so that no rule of the optimizer moves or folds it.
            let signature = Signature::new(TypeSignature::Any(arguments), Volatility::Volatile);
            Arc::new(ScalarUDF::new_from_impl(WindowMarker { name, signature }))
        })
        .collect()
}

/// Whether a function's name is that of a window.
pub(crate) fn is_window(name: &str) -> bool {
    matches!(name, "tumble" | "hop" | "session")
}

/// The window that an expression is; `None` if it is something else.
pub(crate) fn window_of(expression: &Expr) -> Option<Result<Window, String>> {
    match expression {
        Expr::Alias(alias) => window_of(&alias.expr),
        Expr::ScalarFunction(f) if is_window(f.func.name()) => Some(read(f.func.name(), &f.args)),
        _ => None,
    }
}

fn read(name: &str, arguments: &[Expr]) -> Result<Window, String> {
    let lengths = arguments.iter().map(|a| length(a).map_err(|e| format!("{name}(): {e}"))).collect::<Result<Vec<_>, _>>()?;
    match (name, lengths.as_slice()) {
        ("tumble", &[width]) => Ok(Window::Tumble { width }),
        ("session", &[gap]) => Ok(Window::Session { gap }),
        ("hop", &[slide, width]) if width % slide != 0 => {
            Err(format!("hop(): the width, {}, is not a multiple of the slide, {}", Length(width), Length(slide)))
        }
        ("hop", &[slide, width]) if slide == width => Ok(Window::Tumble { width }),
        ("hop", &[slide, width]) => Ok(Window::Hop { slide, width }),
        _ => Err(format!("{name}() takes {}", if name == "hop" { "a slide and a width" } else { "one interval" })),
    }
}

fn length(argument: &Expr) -> Result<Micros, String> {
    let Expr::Literal(value, _) = argument else {
        return Err("an interval must be written out, as in INTERVAL '1 minute'".to_owned());
    };
    let micros = match value {
        ScalarValue::IntervalMonthDayNano(Some(i)) if i.months != 0 => {
            return Err("months have no fixed length; take days".to_owned());
        }
        ScalarValue::IntervalMonthDayNano(Some(i)) => {
            i64::from(i.days).checked_mul(86_400_000_000).and_then(|days| days.checked_add(i.nanoseconds / 1_000))
        }
        ScalarValue::IntervalDayTime(Some(i)) => {
            i64::from(i.days).checked_mul(86_400_000_000).and_then(|days| days.checked_add(i64::from(i.milliseconds) * 1_000))
        }
        _ => return Err(format!("{value} is not an interval; write INTERVAL '1 minute'")),
    };
    match micros {
        Some(micros) if (1..=LENGTH_MAX).contains(&micros) => Ok(micros),
        _ => Err(format!("{value} is no length of a window; it must be positive and at most 100 years")),
    }
}

/// So that ends of windows do not overflow.
const LENGTH_MAX: Micros = 100 * 366 * 86_400_000_000;
