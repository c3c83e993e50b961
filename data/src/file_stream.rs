//! Both ends of `Files.Read`: bytes of a file cut into messages, and what comes of
//! those put together again. A stream that stops without its end mark, or
//! whose bytes are not those that were sent, is an error on the reader's side.
//! Between the two is `shoal_proto::chunks`.
//!
//! What a name stands for, and who may read it, is the caller's business.

use std::fs::File;
use std::io;
use std::iter;
use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use shoal_proto::chunks::{self, Chunks};
use shoal_proto::cluster::files_client::FilesClient;
use shoal_proto::cluster::{ReadChunk, ReadEnd, ReadRequest, StatReply, StatRequest};
use shoal_proto::{Channels, ErrorCode, Failure};
use tonic::Status;

use crate::checksum::{self, Joiner};

/// Bytes in one message: whole blocks of a segment, no more than a frame of HTTP/2 takes, and
/// few enough to stay in the processor's caches on their way.
pub const CHUNK_BYTES: u64 = 256 * 1024;
/// Messages that are read at a time: the next one, and the one behind it.
const READ_AHEAD: usize = 2;

/// Of messages.
static JOINER: LazyLock<Joiner> = LazyLock::new(|| Joiner::of_pieces(CHUNK_BYTES as usize));
/// How long a reader that has no other source waits for the next message
/// before it gives the sender up.
pub const STALL_MAX: Duration = Duration::from_secs(5);

/// Reads `range` of `file` in one go; for blocking threads.
///
/// # Errors
/// `UnexpectedEof` where the file is shorter than the range.
pub fn read_exact(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    // Not zeroed first: that costs as much as reading does.
    let mut buffer = Vec::with_capacity(length_of(&range)?);
    read_into(&mut buffer, file, range)?;
    Ok(Bytes::from(buffer))
}

/// The same into a buffer that is used again once nobody has the bytes any more: for
/// what is sent at once.
pub(crate) fn read_to_send(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    // Into a larger buffer more would be read than is wanted.
    if length_of(&range)? != SENT_BYTES {
        return read_exact(file, range);
    }
    let mut buffer = Sent(SPARE.lock().pop().unwrap_or_else(|| Vec::with_capacity(SENT_BYTES)));
    read_into(&mut buffer.0, file, range)?;
    Ok(Bytes::from_owner(buffer))
}

fn length_of(range: &Range<u64>) -> io::Result<usize> {
    usize::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)
}

/// Into an empty buffer that has room for it.
fn read_into(buffer: &mut Vec<u8>, file: &File, range: Range<u64>) -> io::Result<()> {
    let length = length_of(&range)?;
    while buffer.len() < length {
        let at = range.start + buffer.len() as u64;
        match rustix::io::pread(file, spare_capacity(buffer), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    buffer.truncate(length);
    Ok(())
}

/// What a whole message has.
const SENT_BYTES: usize = CHUNK_BYTES as usize;
/// Buffers that wait to be used again, at most.
const SPARE_MAX: usize = 16;
/// They have their memory already: the system gives fresh memory page by page, each of
/// them zeroed, which takes longer than to read into it.
static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Bytes that are being sent.
struct Sent(Vec<u8>);

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        buffer.clear();
        let mut spare = SPARE.lock();
        if spare.len() < SPARE_MAX {
            spare.push(buffer);
        }
    }
}

/// The range that a request names, if the file is that long.
pub fn checked_range(offset: u64, length: u64, bytes: u64) -> Option<Range<u64>> {
    let end = offset.checked_add(length)?;
    (end <= bytes).then_some(offset..end)
}

/// Bytes that can be sent. For blocking threads.
pub trait Source: Send + Sync + 'static {
    /// The bytes of `range`, and their CRC-32C.
    ///
    /// # Errors
    /// Where they cannot be read, or are not what they should be.
    fn read(&self, range: Range<u64>) -> io::Result<(Bytes, u32)>;
}

impl Source for File {
    fn read(&self, range: Range<u64>) -> io::Result<(Bytes, u32)> {
        let data = read_to_send(self, range)?;
        let crc32c = checksum::crc32c(&data);
        Ok((data, crc32c))
    }
}

/// Where a message ends that begins at `from`, of those that carry a range up to `end`.
/// Of several the first one ends where a whole one would, whatever the range begins
/// with: those behind it are whole blocks then, whose checksums are known.
fn message_end(from: u64, end: u64) -> u64 {
    match end.saturating_sub(from) {
        ..=CHUNK_BYTES => end,
        _several => from - from % CHUNK_BYTES + CHUNK_BYTES,
    }
}

/// The messages that carry `range` of a source, and the mark that ends them.
/// `name` is for messages only.
pub fn send(
    source: impl Source,
    name: String,
    range: Range<u64>,
) -> BoxStream<'static, Result<ReadChunk, Status>> {
    let (start, end) = (range.start, range.end.max(range.start));
    let source = Arc::new(source);
    // It begins here, not when somebody waits for it.
    let read = move |from: u64| {
        let (source, to) = (Arc::clone(&source), message_end(from, end));
        tokio::task::spawn_blocking(move || source.read(from..to))
    };
    let starts = iter::successors(Some(start), move |from| Some(message_end(*from, end)));
    let starts = starts.take_while(move |from| *from < end);
    let chunks = stream::iter(starts).map(read).buffered(READ_AHEAD).boxed();
    stream::unfold(Some((chunks, 0)), move |state| {
        let name = name.clone();
        async move {
            let (mut chunks, crc32c) = state?;
            Some(match chunks.next().await {
                Some(Ok(Ok((data, of_chunk)))) => {
                    let crc32c = JOINER.join(crc32c, of_chunk, data.len());
                    (Ok(ReadChunk { data, end: None }), Some((chunks, crc32c)))
                }
                Some(Ok(Err(error))) => (Err(read_failure(&name, &error).to_status()), None),
                Some(Err(join)) => (Err(read_failure(&name, &io::Error::other(join)).to_status()), None),
                None => {
                    let end = ReadEnd { bytes: end - start, crc32c };
                    (Ok(ReadChunk { data: Bytes::new(), end: Some(end) }), None)
                }
            })
        }
    })
    .boxed()
}

/// The failure for bytes that could not be read from a local file: another
/// replica may have them.
pub fn read_failure(name: &str, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::NotFound,
        _ => ErrorCode::Corrupt,
    };
    Failure::new(code, format!("cannot read `{name}`: {error}"))
}

/// The bytes `range` of `name` at `address`, in the pieces in which they come; the last item
/// comes only after the end mark was seen and was right. Each piece may take
/// as long as `patience`.
///
/// # Errors
/// `Unavailable` where nobody answers, `Corrupt` where the bytes are not what
/// was sent, and what the other side says.
pub async fn receive(
    channels: &Channels,
    address: &str,
    name: &str,
    range: Range<u64>,
    patience: Duration,
) -> Result<BoxStream<'static, Result<Bytes, Failure>>, Failure> {
    open(channels, address, name, range, patience, Some(0)).await
}

/// As [`receive`], for whoever knows the checksum of these bytes and looks at it:
/// here it is not.
///
/// # Errors
/// As [`receive`].
pub async fn receive_unsummed(
    channels: &Channels,
    address: &str,
    name: &str,
    range: Range<u64>,
    patience: Duration,
) -> Result<BoxStream<'static, Result<Bytes, Failure>>, Failure> {
    open(channels, address, name, range, patience, None).await
}

async fn open(
    channels: &Channels,
    address: &str,
    name: &str,
    range: Range<u64>,
    patience: Duration,
    crc32c: Option<u32>,
) -> Result<BoxStream<'static, Result<Bytes, Failure>>, Failure> {
    let channel = channels.get(address)?;
    let length = range.end.saturating_sub(range.start);
    let request = ReadRequest { name: name.to_owned(), offset: range.start, length };
    let chunks = within(patience, address, chunks::read(channel, request)).await?;
    let reader = Reader {
        chunks,
        what: format!("`{name}` from {address}"),
        address: address.to_owned(),
        patience,
        length,
        bytes: 0,
        crc32c,
    };
    Ok(stream::try_unfold(Some(reader), |reader| async move {
        let Some(mut reader) = reader else {
            return Ok(None);
        };
        Ok(reader.next().await?.map(|data| (data, Some(reader))))
    })
    .boxed())
}

/// All bytes `range` of `name` at `address`.
///
/// # Errors
/// As [`receive`].
pub async fn receive_all(
    channels: &Channels,
    address: &str,
    name: &str,
    range: Range<u64>,
    patience: Duration,
) -> Result<Bytes, Failure> {
    let length = range.end.saturating_sub(range.start);
    let mut stream = receive(channels, address, name, range, patience).await?;
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(data) = stream.next().await {
        let data = data?;
        // What is one piece needs no copy: a footer, a few pages. Columns of a large
        // segment are many.
        match &first {
            None => first = Some(data),
            Some(head) => {
                if rest.is_empty() {
                    rest.reserve(usize::try_from(length).unwrap_or(0));
                    rest.extend_from_slice(head);
                }
                rest.extend_from_slice(&data);
            }
        }
    }
    Ok(if rest.is_empty() { first.unwrap_or_default() } else { rest.freeze() })
}

/// Length and time of change of `name` at `address`.
///
/// # Errors
/// `Unavailable` where nobody answers, and what the other side says.
pub async fn stat(channels: &Channels, address: &str, name: &str) -> Result<StatReply, Failure> {
    let mut client = FilesClient::new(channels.get(address)?);
    let request = StatRequest { name: name.to_owned() };
    Ok(within(STALL_MAX, address, client.stat(request)).await?.into_inner())
}

async fn within<T>(
    patience: Duration,
    address: &str,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(patience, call).await {
        Ok(reply) => reply.map_err(|status| Failure::of_call(&status)),
        Err(_) => {
            Err(Failure::new(ErrorCode::Unavailable, format!("{address} sent nothing for {patience:?}")))
        }
    }
}

/// The receiving end of one stream.
struct Reader {
    chunks: Chunks,
    what: String,
    address: String,
    patience: Duration,
    length: u64,
    bytes: u64,
    /// Of the bytes so far; none where nobody looks at it.
    crc32c: Option<u32>,
}

impl Reader {
    /// The next bytes; none after the end mark.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let Some(chunk) = within(self.patience, &self.address, self.chunks.message()).await? else {
                return Err(self.broken("it stops without its end mark"));
            };
            // What comes before the mark comes by itself; what comes with it would be lost.
            if chunk.end.is_some() && !chunk.data.is_empty() {
                return Err(self.broken("its end mark carries bytes"));
            }
            self.bytes += chunk.data.len() as u64;
            self.crc32c = self.crc32c.map(|crc32c| crc32c::crc32c_append(crc32c, &chunk.data));
            if self.bytes > self.length {
                return Err(self.broken("there are more bytes than were asked for"));
            }
            if let Some(end) = chunk.end {
                return match end {
                    _ if end.bytes != self.bytes || self.bytes != self.length => {
                        Err(self.broken("bytes are missing"))
                    }
                    _ if self.crc32c.is_some_and(|crc32c| crc32c != end.crc32c) => {
                        Err(self.broken("its checksum does not match"))
                    }
                    _ => Ok(None),
                };
            }
            if !chunk.data.is_empty() {
                return Ok(Some(chunk.data));
            }
        }
    }

    fn broken(&self, why: &str) -> Failure {
        Failure::new(
            ErrorCode::Corrupt,
            format!("{} is not complete after {} of {} bytes: {why}", self.what, self.bytes, self.length),
        )
    }
}

#[cfg(test)]
mod tests;
