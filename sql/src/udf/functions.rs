//! UDFs as DataFusion's functions.

use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::concat;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::definition::{ValueType, list_of};
use super::library::{AsyncLibrary, SyncLibrary};
use super::{AsyncOptions, Definition, Function, UdfError, UdfKind};

/// A function whose library is built.
///
/// # Errors
/// If the library cannot be loaded.
pub(super) fn load(definition: &Definition, library: &Path) -> Result<Function, UdfError> {
    let shape = Arc::new(Shape {
        name: definition.name.clone(),
        arguments: definition.arguments.clone(),
        result: definition.result.data_type.clone(),
        library: library.display().to_string(),
    });
    Ok(match definition.kind {
        UdfKind::Scalar => {
            let library = SyncLibrary::load(library)?;
            Function::Scalar(Arc::new(ScalarUDF::new_from_impl(ScalarFunction {
                signature: shape.signature(Volatility::Immutable),
                shape,
                library,
            })))
        }
        UdfKind::Aggregate => {
            let library = SyncLibrary::load(library)?;
            Function::Aggregate(Arc::new(AggregateUDF::new_from_impl(UdfAggregate {
                signature: shape.signature(Volatility::Immutable),
                shape,
                library,
            })))
        }
        UdfKind::Async(options) => {
            let library = AsyncLibrary::load(library)?;
            // A call is dear: volatile functions are neither moved nor doubled by the optimizer.
            let signature = shape.signature(Volatility::Volatile);
            Function::Scalar(Arc::new(ScalarUDF::new_from_impl(AsyncFunction { signature, shape, library, options })))
        }
    })
}

/// What is common to all kinds. The library's path has the hash of the text that it was built of.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    name: String,
    arguments: Vec<ValueType>,
    result: DataType,
    library: String,
}

impl Shape {
    fn signature(&self, volatility: Volatility) -> Signature {
        Signature::exact(self.arguments.iter().map(|argument| argument.data_type.clone()).collect(), volatility)
    }

    fn call(&self, library: SyncLibrary, arguments: &[ArrayRef]) -> Result<ArrayRef> {
        match library.run(arguments)? {
            Some(values) => Ok(values),
            None => Err(DataFusionError::Execution(format!("function {}() panicked", self.name))),
        }
    }
}

/// Makes two functions equal when their libraries are.
macro_rules! equal_by_library {
    ($type:ident) => {
        impl PartialEq for $type {
            fn eq(&self, other: &Self) -> bool {
                self.shape == other.shape
            }
        }
        impl Eq for $type {}
        impl Hash for $type {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.shape.library.hash(state);
            }
        }
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.shape.fmt(f)
            }
        }
    };
}

/// The methods that a function's shape answers, whatever its kind.
macro_rules! of_shape {
    () => {
        fn name(&self) -> &str {
            &self.shape.name
        }
        fn signature(&self) -> &Signature {
            &self.signature
        }
        fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
            Ok(self.shape.result.clone())
        }
    };
}

struct ScalarFunction {
    signature: Signature,
    shape: Arc<Shape>,
    library: SyncLibrary,
}

equal_by_library!(ScalarFunction);

impl ScalarUDFImpl for ScalarFunction {
    of_shape!();

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let constant = arguments.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let arrays =
            arguments.args.iter().map(|argument| argument.to_array(if constant { 1 } else { rows })).collect::<Result<Vec<_>>>()?;
        let values = self.shape.call(self.library, &arrays)?;
        if constant { Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&values, 0)?)) } else { Ok(ColumnarValue::Array(values)) }
    }
}

/// An asynchronous function. An operator of its own asks it, not the evaluation of an expression.
pub(crate) struct AsyncFunction {
    signature: Signature,
    shape: Arc<Shape>,
    pub library: AsyncLibrary,
    pub options: AsyncOptions,
}

equal_by_library!(AsyncFunction);

impl AsyncFunction {
    /// Whether each argument may be NULL.
    pub fn nullable(&self) -> Vec<bool> {
        self.shape.arguments.iter().map(|argument| argument.nullable).collect()
    }
}

impl ScalarUDFImpl for AsyncFunction {
    of_shape!();

    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(DataFusionError::Execution(format!("async function {}() cannot be evaluated within an expression", self.shape.name)))
    }
}

/// An aggregate that is given all values of its group.
pub(crate) struct UdfAggregate {
    signature: Signature,
    shape: Arc<Shape>,
    library: SyncLibrary,
}

equal_by_library!(UdfAggregate);

impl AggregateUDFImpl for UdfAggregate {
    of_shape!();

    fn accumulator(&self, _arguments: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let values = vec![Vec::new(); self.shape.arguments.len()];
        Ok(Box::new(Values { shape: self.shape.clone(), library: self.library, values }))
    }
    /// A list of values for each argument.
    fn state_fields(&self, arguments: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let of = |(i, argument): (usize, &ValueType)| Arc::new(Field::new(format!("{}[{i}]", arguments.name), list_of(argument), true));
        Ok(self.shape.arguments.iter().enumerate().map(of).collect())
    }
}

/// The values of a group, by argument, in the order of the rows.
struct Values {
    shape: Arc<Shape>,
    library: SyncLibrary,
    values: Vec<Vec<ArrayRef>>,
}

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "values of {}", self.shape.name)
    }
}

impl Values {
    /// All values of each argument in one array.
    fn whole(&mut self) -> Result<Vec<ArrayRef>> {
        for (parts, argument) in self.values.iter_mut().zip(&self.shape.arguments) {
            let whole = match parts.as_slice() {
                [] => arrow::array::new_empty_array(&argument.data_type),
                [one] => one.clone(),
                many => concat(&many.iter().map(|part| part.as_ref()).collect::<Vec<&dyn Array>>())?,
            };
            *parts = vec![whole];
        }
        Ok(self.values.iter().map(|parts| parts[0].clone()).collect())
    }
}

/// Adds values behind others. Of two neighbours the first is more than twice as long, so that there are few parts, and a value is copied few times.
fn push(parts: &mut Vec<ArrayRef>, values: &ArrayRef) -> Result<()> {
    // A slice would keep the whole batch.
    let places = arrow::array::UInt32Array::from_iter_values(0..values.len() as u32);
    parts.push(arrow::compute::take(values, &places, None)?);
    while let [.., before, last] = parts.as_slice()
        && before.len() <= 2 * last.len()
    {
        let both = concat(&[before.as_ref(), last.as_ref()])?;
        parts.truncate(parts.len() - 2);
        parts.push(both);
    }
    Ok(())
}

impl Accumulator for Values {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.values.iter_mut().zip(values).try_for_each(|(parts, values)| push(parts, values))
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let values = self.whole()?;
        ScalarValue::try_from_array(&self.shape.call(self.library, &values)?, 0)
    }

    fn size(&self) -> usize {
        self.values.iter().flatten().map(|part| part.get_array_memory_size()).sum()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(self.whole()?.into_iter().map(|values| SingleRowListArrayBuilder::new(values).build_list_scalar()).collect())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for (parts, lists) in self.values.iter_mut().zip(states) {
            lists.as_list::<i32>().iter().flatten().try_for_each(|values| push(parts, &values))?;
        }
        Ok(())
    }
}
