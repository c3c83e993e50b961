//! Operators that every node knows beyond DataFusion's own.

mod compact;
mod hand_on;
mod once;
mod pieces;
mod plain_filter;
mod runtime_filter;
mod slices;

use std::sync::Arc;

use datafusion::common::{Result, internal_err, not_impl_err};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};

use self::compact::Compact;
use self::hand_on::HandOnExec;
use self::once::Once;
use self::pieces::InPieces;
use self::slices::InSlices;

pub use self::plain_filter::is_plain_filter;
pub use self::runtime_filter::{
    FilterKeys, JoinKeysExec, ROWS_PRUNED_METRIC, RuntimeFilterExec, WAIT_METRIC, into_scans, passage,
};

/// An input in batches that hold no more than their own rows.
pub type CompactExec = HandOnExec<Compact>;
/// An input that can be read once only.
pub type OnceExec = HandOnExec<Once>;
/// An input in pieces.
pub type PiecesExec = HandOnExec<InPieces>;

/// An input in slices of a bounded size.
pub type SlicesExec = HandOnExec<InSlices>;

/// Sends these operators from the coordinator to workers: each is its name, some
/// with what they are told, with its inputs below it.
#[derive(Debug)]
pub struct OperatorCodec;

impl PhysicalExtensionCodec for OperatorCodec {
    fn try_decode(
        &self,
        name: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        _context: &TaskContext,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if let [input] = inputs {
            if let Some(keys) = FilterKeys::from_bytes(JoinKeysExec::NAME, name) {
                return Ok(Arc::new(JoinKeysExec::new(Arc::clone(input), keys)));
            }
            if let Some(keys) = FilterKeys::from_bytes(RuntimeFilterExec::NAME, name) {
                return Ok(Arc::new(RuntimeFilterExec::new(Arc::clone(input), keys)));
            }
        }
        match (name, inputs) {
            (CompactExec::NAME_BYTES, [input]) => Ok(Arc::new(CompactExec::new(Arc::clone(input)))),
            (OnceExec::NAME_BYTES, [input]) => Ok(Arc::new(OnceExec::new(Arc::clone(input)))),
            (PiecesExec::NAME_BYTES, [input]) => Ok(Arc::new(PiecesExec::new(Arc::clone(input)))),
            (SlicesExec::NAME_BYTES, [input]) => Ok(Arc::new(SlicesExec::new(Arc::clone(input)))),
            _ => internal_err!(
                "an operator `{}` over {} inputs is not known",
                String::from_utf8_lossy(name),
                inputs.len()
            ),
        }
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        name: &mut Vec<u8>,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        if let Some(gathers) = node.downcast_ref::<JoinKeysExec>() {
            name.extend(gathers.keys().to_bytes(JoinKeysExec::NAME)?);
            return Ok(());
        }
        if let Some(filter) = node.downcast_ref::<RuntimeFilterExec>() {
            name.extend(filter.keys().to_bytes(RuntimeFilterExec::NAME)?);
            return Ok(());
        }
        let bytes = match () {
            () if node.is::<CompactExec>() => CompactExec::NAME_BYTES,
            () if node.is::<OnceExec>() => OnceExec::NAME_BYTES,
            () if node.is::<PiecesExec>() => PiecesExec::NAME_BYTES,
            () if node.is::<SlicesExec>() => SlicesExec::NAME_BYTES,
            () => return not_impl_err!("{} cannot be sent to workers", node.name()),
        };
        name.extend_from_slice(bytes);
        Ok(())
    }
}
