//! Functions that every node knows beyond DataFusion's own, and some in place of them.

mod single_value;
mod zoned;

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::{Result, exec_err};
use datafusion::execution::SessionStateBuilder;
use datafusion::logical_expr::{
    AggregateUDF, ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use shoal_proto::fault;

pub use single_value::{SINGLE_VALUE, SingleValue};

/// Where this is set, the functions that break things on purpose exist:
/// `shoal_panic(x, n)` gives `x` back and panics on a row where it is `n`;
/// `shoal_step(x)` gives `x` back and is a step for [`shoal_proto::fault`].
pub const FAULT_FUNCTIONS_VARIABLE: &str = "SHOAL_FAULT_FUNCTIONS";

/// Adds the functions to a session. Coordinator and workers must add the same
/// ones, or a plan of the one is not understood by the other.
pub fn register(builder: &mut SessionStateBuilder) {
    let single_value = Arc::new(AggregateUDF::from(SingleValue::default()));
    builder.aggregate_functions().get_or_insert_default().push(single_value);
    let scalar_functions = builder.scalar_functions().get_or_insert_default();
    scalar_functions.extend(zoned::to_timestamp_functions());
    if std::env::var_os(FAULT_FUNCTIONS_VARIABLE).is_some() {
        let signature = |arguments| Signature::exact(vec![DataType::Int64; arguments], Volatility::Volatile);
        scalar_functions.extend([
            Arc::new(ScalarUDF::from(Panic { signature: signature(2) })),
            Arc::new(ScalarUDF::from(Step { signature: signature(1) })),
        ]);
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Step {
    signature: Signature,
}

impl ScalarUDFImpl for Step {
    fn name(&self) -> &str {
        "shoal_step"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, mut arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        fault::point(fault::Step::TaskBatch);
        match arguments.args.pop() {
            Some(same) if arguments.args.is_empty() => Ok(same),
            _ => exec_err!("shoal_step takes one argument"),
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Panic {
    signature: Signature,
}

impl ScalarUDFImpl for Panic {
    fn name(&self) -> &str {
        "shoal_panic"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    #[expect(clippy::panic, reason = "it is what this function is for")]
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&arguments.args)?;
        let [values, fatal] = arrays.as_slice() else {
            return exec_err!("shoal_panic takes two arguments");
        };
        let (values, fatal) = (values.as_primitive::<Int64Type>(), fatal.as_primitive::<Int64Type>());
        if values.iter().zip(fatal.iter()).any(|(value, fatal)| value.is_some() && value == fatal) {
            panic!("shoal_panic met its row");
        }
        let same: Int64Array = values.clone();
        Ok(ColumnarValue::Array(Arc::new(same) as ArrayRef))
    }
}
