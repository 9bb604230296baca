//! How a message becomes a packet: version, sequence number, and the message in postcard.
//!
//! Both programs come from one build, so versions must be equal. The sequence number makes a packet that is sent twice,
//! left out or forged by somebody with a copy of the socket an error rather than a second command.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Version of all messages.
pub const VERSION: u16 = 4;
/// Largest packet in bytes.
pub const MAX_PACKET: usize = 64 << 10;

/// What comes before each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    version: u16,
    sequence: u32,
}

/// Why a packet is not a message.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum FrameError {
    #[error("a packet of {0} bytes: at most {MAX_PACKET} are allowed")]
    Size(usize),
    #[error("version {0} of the messages, this program speaks {VERSION}: install bulkhead's programs together")]
    Version(u16),
    #[error("packet {found} where {expected} was next: one was lost, repeated or forged")]
    Sequence { expected: u32, found: u32 },
    #[error("a packet that does not decode")]
    Decode(#[source] postcard::Error),
    #[error("a packet with {0} bytes too many at its end")]
    Trailing(usize),
    #[error("a packet in a form that no encoder of ours makes")]
    Form,
}

/// Encodes `message` as packet `sequence`. Fails only if it is too large.
pub fn encode<T: Serialize>(message: &T, sequence: u32) -> Result<Vec<u8>, FrameError> {
    let header = Header { version: VERSION, sequence };
    let bytes = postcard::to_stdvec(&(header, message)).map_err(FrameError::Decode)?;
    if bytes.len() > MAX_PACKET { Err(FrameError::Size(bytes.len())) } else { Ok(bytes) }
}

/// Decodes packet `expected`, all of it. There is one encoding of each message: a number in more bytes than it needs, which
/// postcard would take, is refused.
pub fn decode<T: Serialize + DeserializeOwned>(packet: &[u8], expected: u32) -> Result<T, FrameError> {
    if packet.len() > MAX_PACKET {
        return Err(FrameError::Size(packet.len()));
    }
    let (header, rest): (Header, &[u8]) = postcard::take_from_bytes(packet).map_err(FrameError::Decode)?;
    if header.version != VERSION {
        return Err(FrameError::Version(header.version));
    }
    if header.sequence != expected {
        return Err(FrameError::Sequence { expected, found: header.sequence });
    }
    let message = match postcard::take_from_bytes(rest) {
        Ok((message, [])) => message,
        Ok((_, rest)) => return Err(FrameError::Trailing(rest.len())),
        Err(source) => return Err(FrameError::Decode(source)),
    };
    if encode(&message, expected)? == packet { Ok(message) } else { Err(FrameError::Form) }
}
