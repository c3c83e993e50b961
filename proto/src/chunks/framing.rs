//! The messages of `Files.Read` as they are on a connection, without a copy of the data
//! in them. Pure.

use std::fmt::Display;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{decode_varint, encode_varint};
use tonic::Status;

use crate::cluster::ReadChunk;

/// Bytes before each message of gRPC: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// What `data` begins with in a message: its number, and that its length follows. No
/// field has a lower number, so nothing comes before it.
const DATA_KEY: u8 = 0x0a;
/// Bytes of one number in a message, at most.
const NUMBER_BYTES_MAX: usize = 10;
/// Bytes of a message that are not its data, at most: those are collected.
const BESIDE_BYTES_MAX: usize = 64 * 1024;

/// A message, of less than 4 GiB, as it goes out: what comes before its data, and that.
pub(super) fn parts_of(chunk: ReadChunk) -> (Bytes, Bytes) {
    let mut head = BytesMut::with_capacity(PREFIX_BYTES + 1 + NUMBER_BYTES_MAX);
    head.put_u8(0);
    head.put_u32(chunk.encoded_len() as u32);
    if chunk.data.is_empty() || chunk.end.is_some() {
        // An end mark carries no data.
        head.put_slice(&chunk.encode_to_vec());
        return (head.freeze(), Bytes::new());
    }
    head.put_u8(DATA_KEY);
    encode_varint(chunk.data.len() as u64, &mut head);
    (head.freeze(), chunk.data)
}

/// Takes messages apart, however their bytes are cut.
#[derive(Debug, Default)]
pub(super) struct Unframing(At);

/// Where in a message the next byte belongs.
#[derive(Debug)]
enum At {
    /// Before its data; the message so far.
    Head(Vec<u8>),
    /// To its data, of which so much is still to come; and what is to come behind that.
    Data { left: usize, behind: usize },
    /// To what it has besides data; that so far.
    Beside { left: usize, held: Vec<u8> },
}

impl Default for At {
    fn default() -> Self {
        Self::Head(Vec::new())
    }
}

impl Unframing {
    /// What comes next in `bytes`, which is taken from them: a piece of a message's data, or
    /// the rest of a message. None where more must come, and then they are used up.
    ///
    /// # Errors
    /// `DataLoss` where this is no message.
    pub(super) fn next(&mut self, bytes: &mut Bytes) -> Result<Option<ReadChunk>, Status> {
        loop {
            let next = match &mut self.0 {
                At::Data { left: 0, behind } => At::Beside { left: *behind, held: Vec::new() },
                At::Beside { left: 0, held } => {
                    let chunk = ReadChunk::decode(held.as_slice()).map_err(unreadable)?;
                    self.0 = At::default();
                    // Of most messages nothing is left but their data, which has been given.
                    if chunk != ReadChunk::default() {
                        return Ok(Some(chunk));
                    }
                    continue;
                }
                _ if bytes.is_empty() => return Ok(None),
                At::Head(head) => {
                    head.push(bytes.get_u8());
                    match At::behind(head)? {
                        Some(next) => next,
                        None => continue,
                    }
                }
                At::Data { left, .. } => {
                    let data = bytes.split_to(bytes.len().min(*left));
                    *left -= data.len();
                    return Ok(Some(ReadChunk { data, end: None }));
                }
                At::Beside { left, held } => {
                    let part = bytes.split_to(bytes.len().min(*left));
                    *left -= part.len();
                    held.extend_from_slice(&part);
                    continue;
                }
            };
            self.0 = next;
        }
    }
}

impl At {
    /// What comes behind this beginning of a message; none where that is too short to tell.
    fn behind(head: &[u8]) -> Result<Option<Self>, Status> {
        let Some((prefix, message)) = head.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let [compressed, length @ ..] = *prefix;
        if compressed != 0 {
            return Err(unreadable("it is compressed"));
        }
        let length = u32::from_be_bytes(length) as usize;
        let Some(left) = length.checked_sub(message.len()) else {
            return Err(unreadable("it ends before its data"));
        };
        match message.split_first() {
            None if length > 0 => Ok(None),
            Some((&DATA_KEY, mut number)) => {
                let is_whole = number.last().is_some_and(|byte| byte & 0x80 == 0);
                if !is_whole && number.len() < NUMBER_BYTES_MAX {
                    return Ok(None);
                }
                let data = decode_varint(&mut number).map_err(unreadable)?;
                let data = usize::try_from(data).map_err(unreadable)?;
                let Some(behind) = left.checked_sub(data) else {
                    return Err(unreadable("its data is longer than itself"));
                };
                Ok(Some(Self::Data { left: data, behind: small(behind)? }))
            }
            _without_data => Ok(Some(Self::Beside { left: small(left)?, held: message.to_vec() })),
        }
    }
}

fn small(beside: usize) -> Result<usize, Status> {
    if beside > BESIDE_BYTES_MAX {
        return Err(unreadable(format!("it has {beside} bytes besides its data")));
    }
    Ok(beside)
}

fn unreadable(why: impl Display) -> Status {
    Status::data_loss(format!("a message of `Files.Read` cannot be read: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ReadEnd;

    fn data(length: usize) -> ReadChunk {
        ReadChunk { data: (0..length).map(|index| (index * 31 % 251) as u8).collect(), end: None }
    }

    fn end(bytes: u64) -> ReadChunk {
        ReadChunk { data: Bytes::new(), end: Some(ReadEnd { bytes, crc32c: 0xfeed_cafe }) }
    }

    /// A message as everybody else writes it.
    fn plainly(chunk: &ReadChunk) -> Vec<u8> {
        let message = chunk.encode_to_vec();
        let mut framed = vec![0_u8];
        framed.put_u32(message.len() as u32);
        framed.put_slice(&message);
        framed
    }

    /// The data and the end marks in bytes that come in pieces of this length.
    fn taken_apart(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, Vec<ReadEnd>), Status> {
        let mut unframing = Unframing::default();
        let (mut data, mut ends) = (Vec::new(), Vec::new());
        for part in bytes.chunks(piece) {
            let mut part = Bytes::copy_from_slice(part);
            while let Some(chunk) = unframing.next(&mut part)? {
                data.extend_from_slice(&chunk.data);
                ends.extend(chunk.end);
            }
            assert!(part.is_empty(), "more is waited for before these are used up");
        }
        Ok((data, ends))
    }

    #[test]
    fn messages_go_out_as_others_write_them_and_come_apart_however_they_are_cut() {
        let both = ReadChunk { end: end(9).end, ..data(300) };
        let chunks =
            [data(1), data(127), data(128), end(7), both, ReadChunk::default(), data(70_000), end(8)];
        let mut bytes: Vec<u8> = Vec::new();
        let mut expected: (Vec<u8>, Vec<ReadEnd>) = Default::default();
        for chunk in chunks {
            expected.0.extend_from_slice(&chunk.data);
            expected.1.extend(chunk.end);
            let plainly = plainly(&chunk);
            let (head, data) = parts_of(chunk);
            assert_eq!([head, data].concat(), plainly);
            bytes.extend(plainly);
        }
        for piece in [1, 2, 3, 5, 6, 7, 1000, bytes.len()] {
            assert!(taken_apart(&bytes, piece).unwrap() == expected, "in pieces of {piece} bytes");
        }
    }

    #[test]
    fn data_is_nowhere_copied() {
        let chunk = data(100_000);
        let at = chunk.data.as_ptr();
        let (head, data) = parts_of(chunk.clone());
        assert_eq!(data.as_ptr(), at);

        let mut came = Bytes::from(plainly(&chunk));
        let at = came.as_ptr().wrapping_add(head.len());
        let taken = Unframing::default().next(&mut came).unwrap().unwrap();
        assert_eq!(taken.data.as_ptr(), at);
        assert!(taken == chunk);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let number_without_end = [&[0, 0, 0, 0, 20, DATA_KEY][..], &[0xff; 10]].concat();
        let cases: [(&[u8], &str); 7] = [
            (&[1, 0, 0, 0, 0], "compressed"),
            (&[0, 0, 0, 0, 3, DATA_KEY, 5], "longer than itself"),
            (&[0, 0, 0, 0, 1, DATA_KEY, 0x80], "ends before its data"),
            (&number_without_end, "varint"),
            (&[0, 0, 2, 0, 0, 0x12], "besides its data"),
            (&[0, 0, 2, 0, 0, DATA_KEY, 1], "besides its data"),
            (&[0, 0, 0, 0, 2, 0x12, 5], "cannot be read"),
        ];
        for (bytes, why) in cases {
            let refused = taken_apart(bytes, bytes.len()).unwrap_err();
            assert!(refused.message().contains(why), "{bytes:?}: {refused}");
        }
    }
}
