//! What the ticket of a query says: enough to run it at any coordinator of the
//! cluster. It comes back from a stranger, and gives nobody more than a
//! statement would: it is parsed, planned and limited like one.

use arrow::datatypes::{DataType, Schema};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use datafusion_proto::protobuf;
use prost::Message;
use tonic::Status;

use super::sessions::checked_user;
use super::status::{invalid, not_found};
use crate::{Prepared, Session};

/// Bytes of a ticket. Clients take 4 MiB for all that they are told of a query,
/// and send its ticket in one message.
const BYTES_MAX: usize = 64 * 1024;
/// Bytes of a handle: a number and a uuid.
const HANDLE_BYTES_MAX: usize = 64;
/// Settings of one ticket: each takes a copy of all of them.
const SETTINGS_MAX: usize = 200;

/// The ticket of a query.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct QueryTicket {
    /// The cluster whose tables are meant.
    #[prost(string, tag = "1")]
    pub(super) cluster: String,
    /// Under which the coordinator that made it keeps the plan.
    #[prost(string, tag = "2")]
    pub(super) handle: String,
    /// What to run where there is no plan; none where that cannot be told.
    #[prost(message, optional, tag = "3")]
    pub(super) asked: Option<Asked>,
}

/// What of a parameter is not flat, by the numbers of datafusion-proto's
/// `ScalarValue`. A null of a nested type is made as large as the type says,
/// which a stranger may have chosen.
#[derive(Clone, PartialEq, prost::Message)]
struct Nested {
    #[prost(message, optional, tag = "33")]
    null_of: Option<protobuf::ArrowType>,
    #[prost(bytes = "vec", optional, tag = "16")]
    large_list: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "17")]
    list: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "18")]
    fixed_size_list: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "27")]
    dictionary: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "32")]
    structure: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "41")]
    map: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "42")]
    union: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "45")]
    run_end_encoded: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "46")]
    list_view: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "47")]
    large_list_view: Option<Vec<u8>>,
}

/// Whether an encoded parameter is a number, a text or the like, or a null of
/// such a type.
fn is_flat(encoded: &[u8]) -> bool {
    let Ok(mut nested) = Nested::decode(encoded) else { return false };
    let null_of = nested.null_of.take();
    let is_flat_type = |of: &protobuf::ArrowType| {
        let of = DataType::try_from(of);
        of.is_ok_and(|of| of.is_primitive() || of.is_null() || is_plain(&of))
    };
    nested == Nested::default() && null_of.as_ref().is_none_or(is_flat_type)
}

/// Whether it is a boolean, a text or bytes of any length.
fn is_plain(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Boolean
            | DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
            | DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
    )
}

/// A query, and in which session it was asked.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Asked {
    #[prost(string, tag = "1")]
    sql: String,
    #[prost(string, tag = "2")]
    user: String,
    #[prost(message, repeated, tag = "3")]
    settings: Vec<Setting>,
    /// Values as `datafusion_proto` encodes them, in the order of their numbers.
    #[prost(bytes = "vec", repeated, tag = "4")]
    parameters: Vec<Vec<u8>>,
    /// [`columns_sum`] of the columns that were announced.
    #[prost(uint32, tag = "5")]
    columns: u32,
}

/// A setting that the session had changed.
#[derive(Clone, PartialEq, prost::Message)]
struct Setting {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

impl QueryTicket {
    /// A ticket that says all that is needed, where it is not too long for one.
    pub(super) fn new(cluster: &str, handle: String, asked: Option<Asked>) -> Self {
        let ticket = Self { cluster: cluster.to_owned(), handle, asked };
        if ticket.encoded_len() <= BYTES_MAX { ticket } else { Self { asked: None, ..ticket } }
    }

    /// Reads the ticket of a query in this cluster.
    ///
    /// # Errors
    /// `NotFound` where it is none.
    pub(super) fn read(bytes: &Bytes, cluster: &str) -> Result<Self, Status> {
        let ticket = match bytes.len() {
            0..=BYTES_MAX => Self::decode(bytes.clone()).ok(),
            _ => None,
        };
        let ticket = ticket.filter(|ticket| ticket.handle.len() <= HANDLE_BYTES_MAX);
        let ticket =
            ticket.ok_or_else(|| not_found("this is no ticket of a coordinator; run the statement again"))?;
        if ticket.cluster != cluster {
            return Err(not_found(
                "the ticket is of another cluster, or of another version; run the statement again",
            ));
        }
        Ok(ticket)
    }
}

impl Asked {
    /// What a session asked for; none where it cannot be told in a ticket.
    pub(super) fn of(
        session: &Session,
        prepared: &Prepared,
        parameters: &[ScalarValue],
        announced: &Schema,
    ) -> Option<Self> {
        let sql = prepared.sql();
        if sql.len() > BYTES_MAX {
            return None;
        }
        let settings = session.settings();
        let setting = |(name, value): &(String, String)| Setting { name: name.clone(), value: value.clone() };
        let settings: Vec<Setting> = settings.all_changed().map(setting).collect();
        if settings.len() > SETTINGS_MAX {
            return None;
        }
        let encoded = |value: &ScalarValue| {
            let value = protobuf::ScalarValue::try_from(value).ok()?;
            Some(value.encode_to_vec()).filter(|encoded| is_flat(encoded))
        };
        let parameters = parameters.iter().map(encoded).collect::<Option<Vec<_>>>()?;
        Some(Self {
            sql: sql.to_owned(),
            user: session.user().to_owned(),
            settings,
            parameters,
            columns: columns_sum(announced),
        })
    }

    /// The query's text.
    pub(super) fn sql(&self) -> &str {
        &self.sql
    }

    /// The user's name.
    ///
    /// # Errors
    /// `Invalid` for one that is too long.
    pub(super) fn user(&self) -> Result<String, Status> {
        checked_user(&self.user)
    }

    /// Names and values of the settings that the session had changed.
    ///
    /// # Errors
    /// `Invalid` for too many.
    pub(super) fn settings(&self) -> Result<Vec<(String, String)>, Status> {
        if self.settings.len() > SETTINGS_MAX {
            return Err(invalid(format!(
                "the ticket has {} settings; at most {SETTINGS_MAX} are taken",
                self.settings.len()
            )));
        }
        Ok(self.settings.iter().map(|setting| (setting.name.clone(), setting.value.clone())).collect())
    }

    /// The parameters, in the order of their numbers.
    ///
    /// # Errors
    /// `Invalid` for what is no value.
    pub(super) fn parameters(&self) -> Result<Vec<ScalarValue>, Status> {
        let unreadable = |why: String| invalid(format!("a parameter of the ticket cannot be read: {why}"));
        let decoded = |bytes: &Vec<u8>| {
            if !is_flat(bytes) {
                return Err(unreadable("only flat values are taken in a ticket".to_owned()));
            }
            let value = protobuf::ScalarValue::decode(bytes.as_slice())
                .map_err(|error| unreadable(error.to_string()))?;
            ScalarValue::try_from(&value).map_err(|error| unreadable(error.to_string()))
        };
        self.parameters.iter().map(decoded).collect()
    }

    /// Whether a result of these columns is what was announced.
    pub(super) fn is_announced(&self, columns: &Schema) -> bool {
        self.columns == columns_sum(columns)
    }
}

/// A checksum of names and types: a client has been told of them already.
fn columns_sum(columns: &Schema) -> u32 {
    let columns = columns.fields().iter();
    let told: Vec<_> = columns.map(|field| format!("{:?} {}", field.name(), field.data_type())).collect();
    crc32c::crc32c(told.join(", ").as_bytes())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;

    use super::*;

    fn asked(sql: &str) -> Asked {
        let value = |value: &ScalarValue| protobuf::ScalarValue::try_from(value).unwrap().encode_to_vec();
        Asked {
            sql: sql.to_owned(),
            user: "ada".to_owned(),
            settings: vec![Setting { name: "shoal.colocate".into(), value: "false".into() }],
            parameters: [
                ScalarValue::Int64(Some(7)),
                ScalarValue::Utf8(None),
                ScalarValue::Decimal128(Some(125), 10, 2),
                ScalarValue::TimestampNanosecond(Some(1), Some("+02:00".into())),
            ]
            .iter()
            .map(value)
            .collect(),
            columns: 1,
        }
    }

    fn bytes_of(ticket: &QueryTicket) -> Bytes {
        ticket.encode_to_vec().into()
    }

    #[test]
    fn a_ticket_comes_back_as_it_was_given() {
        let given = QueryTicket::new("c", "1-x".into(), Some(asked("SELECT 1")));
        let read = QueryTicket::read(&bytes_of(&given), "c").unwrap();
        assert_eq!(read, given);
        let asked = read.asked.unwrap();
        assert_eq!((asked.sql(), asked.user().unwrap().as_str()), ("SELECT 1", "ada"));
        assert_eq!(asked.settings().unwrap(), [("shoal.colocate".to_owned(), "false".to_owned())]);
        let parameters = asked.parameters().unwrap();
        assert_eq!(parameters[0], ScalarValue::Int64(Some(7)));
        assert_eq!(parameters[1], ScalarValue::Utf8(None));
        assert_eq!(parameters[2], ScalarValue::Decimal128(Some(125), 10, 2));
        assert_eq!(parameters[3], ScalarValue::TimestampNanosecond(Some(1), Some("+02:00".into())));
    }

    #[test]
    fn a_statement_that_is_too_long_stays_at_its_coordinator() {
        let long = format!("SELECT '{}'", "x".repeat(BYTES_MAX));
        let ticket = QueryTicket::new("c", "1-x".into(), Some(asked(&long)));
        assert_eq!(ticket.asked, None);
        assert_eq!(QueryTicket::read(&bytes_of(&ticket), "c").unwrap().handle, "1-x");
    }

    #[test]
    fn what_is_no_ticket_of_this_cluster_is_refused() {
        let other = QueryTicket::new("d", "1-x".into(), Some(asked("SELECT 1")));
        let long =
            |bytes| bytes_of(&QueryTicket { cluster: "c".into(), handle: "x".repeat(bytes), asked: None });
        for bytes in [
            Bytes::new(),
            Bytes::from_static(b"0123456789abcdef"),
            Bytes::from_static(b"\xff\x00junk"),
            bytes_of(&other),
            long(HANDLE_BYTES_MAX + 1),
            long(BYTES_MAX + 1),
        ] {
            let refused = QueryTicket::read(&bytes, "c").unwrap_err();
            assert_eq!(refused.code(), tonic::Code::NotFound);
            assert!(refused.message().contains("run the statement again"), "{refused}");
        }
    }

    #[test]
    fn what_a_stranger_puts_into_a_ticket_is_checked() {
        let setting = |number: usize| Setting { name: format!("s{number}"), value: String::new() };
        let many = Asked { settings: (0..=SETTINGS_MAX).map(setting).collect(), ..asked("SELECT 1") };
        assert!(many.settings().unwrap_err().message().contains("settings"));
        let junk = Asked { parameters: vec![b"\xff\x00junk".to_vec()], ..asked("SELECT 1") };
        assert!(junk.parameters().unwrap_err().message().contains("parameter"));
        let nothing = Asked { parameters: vec![Vec::new()], ..asked("SELECT 1") };
        assert!(nothing.parameters().is_err());
        let long = Asked { user: "u".repeat(10_000), ..asked("SELECT 1") };
        assert!(long.user().is_err());
        // It would be made: terabytes of nulls.
        let item = Field::new_list_field(DataType::Int64, true);
        let inner = DataType::FixedSizeList(item.into(), i32::MAX);
        let huge = DataType::FixedSizeList(Field::new_list_field(inner, true).into(), i32::MAX);
        let null_of = protobuf::ArrowType::try_from(&huge).ok();
        let bomb = Nested { null_of, ..Nested::default() }.encode_to_vec();
        let refused = Asked { parameters: vec![bomb], ..asked("SELECT 1") }.parameters().unwrap_err();
        assert!(refused.message().contains("only flat values"), "{refused}");
    }

    #[test]
    fn other_columns_are_noticed() {
        let schema = |name: &str, data_type| Schema::new(vec![Field::new(name, data_type, true)]);
        let told = Asked { columns: columns_sum(&schema("a", DataType::Int64)), ..asked("SELECT 1") };
        assert!(told.is_announced(&schema("a", DataType::Int64)));
        assert!(!told.is_announced(&schema("b", DataType::Int64)));
        assert!(!told.is_announced(&schema("a", DataType::Int32)));
        assert!(!told.is_announced(&Schema::empty()));
    }
}
