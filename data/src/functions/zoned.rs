//! `to_timestamp` and its kin in a time zone. DataFusion's declare the
//! session's, and for a column of text leave it out of the values, which whatever
//! compares the two refuses.

use std::sync::Arc;

use arrow::array::make_array;
use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::Result;
use datafusion::config::ConfigOptions;
use datafusion::functions::datetime::to_timestamp::{
    ToTimestampFunc, ToTimestampMicrosFunc, ToTimestampMillisFunc, ToTimestampNanosFunc,
    ToTimestampSecondsFunc,
};
use datafusion::logical_expr::udf_eq::UdfEq;
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

/// All of them, under DataFusion's names. They get their time zone when they are
/// added to a session.
pub(super) fn to_timestamp_functions() -> [Arc<ScalarUDF>; 5] {
    [
        Zoned::of(Arc::new(ToTimestampFunc::default())),
        Zoned::of(Arc::new(ToTimestampSecondsFunc::default())),
        Zoned::of(Arc::new(ToTimestampMillisFunc::default())),
        Zoned::of(Arc::new(ToTimestampMicrosFunc::default())),
        Zoned::of(Arc::new(ToTimestampNanosFunc::default())),
    ]
}

/// A function whose values get the type that it declares.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Zoned {
    inner: UdfEq<Arc<dyn ScalarUDFImpl>>,
}

impl Zoned {
    fn of(inner: Arc<dyn ScalarUDFImpl>) -> Arc<ScalarUDF> {
        Arc::new(ScalarUDF::from(Self { inner: inner.into() }))
    }
}

impl ScalarUDFImpl for Zoned {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arguments)
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let updated = self.inner.with_updated_config(config)?;
        Some(ScalarUDF::from(Self { inner: Arc::clone(updated.inner()).into() }))
    }

    fn invoke_with_args(&self, mut arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let declared = arguments.return_field.data_type().clone();
        if self.name() == "to_timestamp"
            && let Some(first) = arguments.args.first_mut()
            && first.data_type().is_integer()
        {
            // Seconds since 1970 in UTC, which it would take for local time.
            *first = first.cast_to(&DataType::Timestamp(TimeUnit::Second, Some("+00:00".into())), None)?;
        }
        match (self.inner.invoke_with_args(arguments)?, &declared) {
            (ColumnarValue::Array(instants), DataType::Timestamp(unit, Some(_)))
                if *instants.data_type() == DataType::Timestamp(*unit, None) =>
            {
                // The instants are right, and stay: a cast would take them for local time.
                let zoned = instants.to_data().into_builder().data_type(declared).build()?;
                Ok(ColumnarValue::Array(make_array(zoned)))
            }
            (value, _) => Ok(value),
        }
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}
