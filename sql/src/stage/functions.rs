//! Functions of stages besides DataFusion's own: JSON.
//!
//! JSON is text. `json_get` and its kind take keys (texts, and integers for places in an array) and have PostgreSQL's operators `->`, `->>` and `?`;
//! `extract_json` and its kind take a JSONPath. What is not there, and what is no JSON, gives NULL.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanBuilder, Float64Builder, Int64Builder, ListBuilder, StringBuilder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use datafusion::sql::sqlparser::ast::BinaryOperator;
use serde_json::Value;
use serde_json_path::JsonPath;

/// All of them.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let by_key = [
        ("json_get", Answer::Json),
        ("json_get_json", Answer::Json),
        ("json_get_str", Answer::Text),
        ("json_get_int", Answer::Int),
        ("json_get_float", Answer::Float),
        ("json_get_bool", Answer::Bool),
        ("json_as_text", Answer::AsText),
        ("json_contains", Answer::Contains),
        ("json_length", Answer::Length),
        ("json_object_keys", Answer::Keys),
    ];
    let by_path = [("extract_json", Answer::All), ("get_first_json_object", Answer::Json), ("extract_json_string", Answer::Text)];
    let by_key = by_key.map(|(name, answer)| JsonFunction::new(name, answer, false));
    let by_path = by_path.map(|(name, answer)| JsonFunction::new(name, answer, true));
    by_key.into_iter().chain(by_path).map(|f| Arc::new(ScalarUDF::new_from_impl(f))).collect()
}

/// The planner of `->`, `->>` and `?`.
pub(crate) fn operators() -> Arc<dyn ExprPlanner> {
    Arc::new(JsonOperators)
}

#[derive(Debug)]
struct JsonOperators;

impl ExprPlanner for JsonOperators {
    fn plan_binary_op(&self, expr: RawBinaryExpr, _schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let function = match expr.op {
            BinaryOperator::Arrow => JsonFunction::new("json_get", Answer::Json, false),
            BinaryOperator::LongArrow => JsonFunction::new("json_as_text", Answer::AsText, false),
            BinaryOperator::Question => JsonFunction::new("json_contains", Answer::Contains, false),
            _ => return Ok(PlannerResult::Original(expr)),
        };
        let function = Arc::new(ScalarUDF::new_from_impl(function));
        Ok(PlannerResult::Planned(Expr::ScalarFunction(ScalarFunction::new_udf(function, vec![expr.left, expr.right]))))
    }
}

/// What a function makes of the value that it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Answer {
    /// It, as JSON.
    Json,
    /// It, if it is a text.
    Text,
    /// It, without quotes if it is a text.
    AsText,
    Int,
    Float,
    Bool,
    /// Whether there is one.
    Contains,
    /// Entries of an object or array.
    Length,
    /// Names of an object's entries.
    Keys,
    /// All that a path finds, each as JSON.
    All,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonFunction {
    name: &'static str,
    answer: Answer,
    /// Whether it takes a JSONPath.
    takes_path: bool,
    signature: Signature,
}

impl JsonFunction {
    fn new(name: &'static str, answer: Answer, takes_path: bool) -> Self {
        let signature =
            if takes_path { Signature::string(2, Volatility::Immutable) } else { Signature::variadic_any(Volatility::Immutable) };
        JsonFunction { name, answer, takes_path, signature }
    }

    fn wrong(&self, what: &str) -> DataFusionError {
        DataFusionError::Plan(format!("{}(): {what}", self.name))
    }
}

fn texts() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)))
}

impl ScalarUDFImpl for JsonFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        if !self.takes_path {
            let is_text = |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null);
            match arguments.split_first() {
                Some((json, _)) if !is_text(json) => return Err(self.wrong(&format!("JSON is text, not {json}"))),
                Some((_, keys)) => {
                    if let Some(key) = keys.iter().find(|k| !is_text(k) && !k.is_integer()) {
                        return Err(self.wrong(&format!("a key is a text or an integer, not {key}")));
                    }
                }
                None => return Err(self.wrong("the JSON is missing")),
            }
        }
        Ok(match self.answer {
            Answer::Json | Answer::Text | Answer::AsText => DataType::Utf8,
            Answer::Int | Answer::Length => DataType::Int64,
            Answer::Float => DataType::Float64,
            Answer::Bool | Answer::Contains => DataType::Boolean,
            Answer::Keys | Answer::All => texts(),
        })
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let (json, path) = arguments.args.split_first().ok_or_else(|| self.wrong("the JSON is missing"))?;
        let json = cast(&json.to_array(rows)?, &DataType::Utf8)?;
        let documents = json.as_string::<i32>().iter().map(|text| text.and_then(|t| serde_json::from_str::<Value>(t).ok()));
        let answer = if self.takes_path {
            let path = match path {
                [ColumnarValue::Scalar(ScalarValue::Utf8(Some(p)) | ScalarValue::LargeUtf8(Some(p)) | ScalarValue::Utf8View(Some(p)))] => p,
                _ => return Err(self.wrong("the path must be a text that is written out")),
            };
            let path = JsonPath::parse(path).map_err(|e| self.wrong(&format!("`{path}` is no JSONPath: {e}")))?;
            self.answers(documents, |_, document| path.query(document).all())
        } else {
            let keys = path.iter().map(|key| Keys::new(&key.to_array(rows)?)).collect::<Result<Vec<_>>>()?;
            self.answers(documents, |row, document| {
                keys.iter().try_fold(document, |value, keys| keys.step(row, value)).into_iter().collect()
            })
        };
        Ok(ColumnarValue::Array(answer))
    }
}

impl JsonFunction {
    /// One value for each document; `find` says what the keys or the path of a row lead to.
    fn answers(&self, documents: impl Iterator<Item = Option<Value>>, find: impl Fn(usize, &Value) -> Vec<&Value>) -> ArrayRef {
        /// Appends to `builder` what `read` makes of the first value found.
        macro_rules! first {
            ($builder:expr, $read:expr) => {{
                let mut builder = $builder;
                for (row, document) in documents.enumerate() {
                    let found = document.as_ref().and_then(|document| find(row, document).first().copied().and_then($read));
                    builder.append_option(found);
                }
                Arc::new(builder.finish())
            }};
        }
        match self.answer {
            Answer::Json => first!(StringBuilder::new(), |v: &Value| Some(v.to_string())),
            Answer::Text => first!(StringBuilder::new(), |v: &Value| v.as_str().map(str::to_owned)),
            Answer::AsText => first!(StringBuilder::new(), |v: &Value| match v {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            }),
            Answer::Int => first!(Int64Builder::new(), Value::as_i64),
            Answer::Float => first!(Float64Builder::new(), Value::as_f64),
            Answer::Bool => first!(BooleanBuilder::new(), Value::as_bool),
            Answer::Length => first!(Int64Builder::new(), |v: &Value| match v {
                Value::Array(items) => Some(items.len() as i64),
                Value::Object(entries) => Some(entries.len() as i64),
                _ => None,
            }),
            Answer::Contains => {
                let mut builder = BooleanBuilder::new();
                for (row, document) in documents.enumerate() {
                    builder.append_option(document.map(|document| !find(row, &document).is_empty()));
                }
                Arc::new(builder.finish())
            }
            Answer::Keys | Answer::All => {
                let mut lists = ListBuilder::new(StringBuilder::new());
                for (row, document) in documents.enumerate() {
                    let found = document.as_ref().map(|document| find(row, document));
                    let items: Option<Vec<String>> = match (self.answer, found.as_deref()) {
                        (Answer::All, Some(found)) => Some(found.iter().map(|v| v.to_string()).collect()),
                        (_, Some([Value::Object(entries), ..])) => Some(entries.keys().cloned().collect()),
                        _ => None,
                    };
                    match items {
                        Some(items) => lists.append_value(items.into_iter().map(Some)),
                        None => lists.append_null(),
                    }
                }
                Arc::new(lists.finish())
            }
        }
    }
}

/// The keys of one step, row by row.
enum Keys {
    Names(ArrayRef),
    Places(ArrayRef),
}

impl Keys {
    fn new(keys: &ArrayRef) -> Result<Keys> {
        if keys.data_type().is_integer() {
            Ok(Keys::Places(cast(keys, &DataType::Int64)?))
        } else {
            Ok(Keys::Names(cast(keys, &DataType::Utf8)?))
        }
    }

    fn step<'v>(&self, row: usize, value: &'v Value) -> Option<&'v Value> {
        match self {
            Keys::Names(names) if names.is_valid(row) => value.as_object()?.get(names.as_string::<i32>().value(row)),
            Keys::Places(places) if places.is_valid(row) => {
                value.as_array()?.get(usize::try_from(places.as_primitive::<Int64Type>().value(row)).ok()?)
            }
            _ => None,
        }
    }
}
