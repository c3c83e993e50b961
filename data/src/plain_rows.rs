//! Rows as everybody can read them: plain types, in pieces of a bounded size.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StructArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use arrow::error::ArrowError;

/// The field with a type that every client can read.
pub fn plain_field(field: &FieldRef) -> FieldRef {
    let plain = plain_type(field.data_type());
    if plain == *field.data_type() {
        return Arc::clone(field);
    }
    Arc::new(field.as_ref().clone().with_data_type(plain))
}

/// The type in the form that every client can read: views, dictionaries and runs
/// become plain values.
pub fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, values) => plain_type(values),
        DataType::RunEndEncoded(_, values) => plain_type(values.data_type()),
        DataType::List(item) | DataType::ListView(item) => DataType::List(plain_field(item)),
        DataType::LargeList(item) | DataType::LargeListView(item) => DataType::LargeList(plain_field(item)),
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(plain_field(item), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(plain_field).collect()),
        DataType::Map(entries, sorted) => DataType::Map(plain_field(entries), *sorted),
        other => other.clone(),
    }
}

/// `batch` with the columns of `schema`, which are its own or what their types
/// are in plain.
///
/// # Errors
/// Where it has another number of columns, a null where none may be, or text of
/// more than 2 GiB: see [`in_pieces`].
pub fn conformed(schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    if batch.num_columns() != schema.fields().len() {
        return Err(ArrowError::SchemaError(format!(
            "{} columns were announced and {} came",
            schema.fields().len(),
            batch.num_columns()
        )));
    }
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, column)| {
            if field.data_type() == column.data_type() {
                Ok(Arc::clone(column))
            } else {
                cast(column, field.data_type())
            }
        })
        .collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

/// Halves the batch until each piece has at most `bytes_max` bytes or is a
/// single row. No row is copied. Halving by measured size, and not by the average
/// row, keeps one wide row from taking its neighbours along; and what many rows
/// share is counted for each of them, as it is once they are plain.
pub fn in_pieces(batch: RecordBatch, bytes_max: usize) -> Vec<RecordBatch> {
    let mut pieces = Vec::new();
    halve(batch, bytes_max, &mut pieces);
    pieces
}

fn halve(batch: RecordBatch, bytes_max: usize, pieces: &mut Vec<RecordBatch>) {
    let rows = batch.num_rows();
    if rows <= 1 || encoded_bytes(&batch) <= bytes_max {
        pieces.push(batch);
        return;
    }
    let half = rows / 2;
    halve(batch.slice(0, half), bytes_max, pieces);
    halve(batch.slice(half, rows - half), bytes_max, pieces);
}

/// About how many bytes the rows of a batch take once encoded, however much memory
/// they keep; exact for flat columns and views.
pub fn encoded_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| bytes_of(column.as_ref())).sum()
}

/// The same of a column.
fn bytes_of(column: &dyn Array) -> usize {
    let rows = column.len();
    match column.data_type() {
        DataType::Utf8View => {
            let lengths = column.as_string_view().lengths();
            rows * size_of::<i32>() + lengths.map(|length| length as usize).sum::<usize>()
        }
        DataType::BinaryView => {
            let lengths = column.as_binary_view().lengths();
            rows * size_of::<i32>() + lengths.map(|length| length as usize).sum::<usize>()
        }
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            let (first, last) = ends(list.value_offsets());
            let items = list.values().slice(first as usize, (last - first) as usize);
            rows * size_of::<i32>() + bytes_of(items.as_ref())
        }
        DataType::LargeList(_) => {
            let list = column.as_list::<i64>();
            let (first, last) = ends(list.value_offsets());
            let items = list.values().slice(first as usize, (last - first) as usize);
            rows * size_of::<i64>() + bytes_of(items.as_ref())
        }
        DataType::Map(..) => {
            let map = column.as_map();
            let (first, last) = ends(map.value_offsets());
            rows * size_of::<i32>()
                + struct_bytes(&map.entries().slice(first as usize, (last - first) as usize))
        }
        DataType::Struct(_) => struct_bytes(column.as_struct()),
        // All rows share the values; each is as long as their average.
        DataType::Dictionary(..) => {
            let values = column.as_any_dictionary().values();
            rows * (size_of::<i32>() + bytes_of(values.as_ref()) / values.len().max(1))
        }
        _ => column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()),
    }
}

fn struct_bytes(column: &StructArray) -> usize {
    column.columns().iter().map(|child| bytes_of(child.as_ref())).sum()
}

fn ends<T: Copy + Default>(offsets: &[T]) -> (T, T) {
    (offsets.first().copied().unwrap_or_default(), offsets.last().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, ListArray, StringViewArray};
    use arrow::datatypes::Int32Type;

    use super::*;

    #[test]
    fn text_that_rows_share_is_cut_by_what_they_show() {
        let mut text = arrow::array::StringViewBuilder::new();
        let block = text.append_block(vec![b'x'; 1 << 20].into());
        for _ in 0..5000 {
            text.try_append_view(block, 0, 1 << 20).unwrap();
        }
        let shared: ArrayRef = Arc::new(text.finish());
        let batch = RecordBatch::try_from_iter([("t", shared)]).unwrap();
        let plain: SchemaRef =
            Arc::new(arrow::datatypes::Schema::new(vec![plain_field(&batch.schema().fields()[0])]));
        let pieces = in_pieces(batch, 8 << 20);
        assert_eq!(pieces.iter().map(RecordBatch::num_rows).sum::<usize>(), 5000);
        assert!(pieces.iter().all(|piece| piece.num_rows() <= 8), "5 GiB do not fit in plain text");
        let first = conformed(&plain, &pieces[0]).unwrap();
        assert_eq!(first.column(0).as_string::<i32>().value(0).len(), 1 << 20);
    }

    #[test]
    fn a_piece_is_never_less_than_a_row_and_none_is_empty_but_an_empty_batch() {
        let texts: ArrayRef = Arc::new(StringViewArray::from_iter_values(["a".repeat(100), "b".into()]));
        let batch = RecordBatch::try_from_iter([("t", texts)]).unwrap();
        let rows =
            |batch: RecordBatch| in_pieces(batch, 10).iter().map(RecordBatch::num_rows).collect::<Vec<_>>();
        assert_eq!(rows(batch.clone()), [1, 1]);
        assert_eq!(rows(batch.slice(0, 0)), [0]);
    }

    #[test]
    fn the_shared_values_of_a_dictionary_do_not_scatter_its_rows() {
        let values: Vec<String> = (0..10_000).map(|n| format!("{n:0>1000}")).collect();
        let dictionary: DictionaryArray<Int32Type> = values.iter().map(String::as_str).collect();
        assert!(bytes_of(&dictionary.slice(0, 10)) < 20_000);
    }

    #[test]
    fn only_the_items_of_a_sliced_list_are_counted() {
        let list = ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>(
            (0..1000).map(|row| Some(vec![Some(row); 100])),
        );
        assert!(bytes_of(&list.slice(10, 1)) < 2000);
    }
}
