//! What a server sends, read by a client that trusts nothing.

use coracle::Message;
use coracle::internals::Agreement;
use miniz_oxide::DataFormat;
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{MZError, MZFlush, MZStatus};

/// What a server has said, up to where its stream was cut.
#[derive(Debug, Default)]
pub struct Said {
    pub messages: Vec<Message>,
    pub pongs: Vec<Vec<u8>>,
    /// The code of its close frame, 1005 for none, and its reason.
    pub close: Option<(u16, String)>,
    /// The stream ended between two frames.
    pub whole: bool,
}

/// Reads everything.
///
/// # Panics
///
/// If a server may not send this (RFC 6455, RFC 7692). An unfinished frame at the end may be sent.
pub fn said_by_server(mut bytes: &[u8], agreement: Option<Agreement>) -> Said {
    let mut said = Said::default();
    let mut inflater = Inflater::default();
    // Of the message that is being received: opcode, whether it is compressed, payload.
    let mut message: Option<(u8, bool, Vec<u8>)> = None;
    while let Some((first, payload, rest)) = frame(bytes) {
        assert!(said.close.is_none(), "nothing follows a close frame");
        bytes = rest;
        let (fin, reserved, opcode) = (first & 0x80 != 0, first & 0x70, first & 0x0F);
        let may_be_compressed = agreement.is_some() && matches!(opcode, 1 | 2);
        assert!(reserved == 0 || (reserved == 0x40 && may_be_compressed), "reserved bits");
        match opcode {
            0 => message.as_mut().expect("a continuation of something").2.extend(payload),
            1 | 2 => {
                let begun = (opcode, reserved != 0, payload.to_vec());
                assert!(message.replace(begun).is_none(), "no message inside of a message");
            }
            8..=10 => {
                assert!(fin && payload.len() <= 125, "a control frame is short and whole");
                match opcode {
                    8 => said.close = Some(close(payload)),
                    10 => said.pongs.push(payload.to_vec()),
                    _ => {}
                }
                continue;
            }
            _ => panic!("reserved opcode {opcode}"),
        }
        if let Some((opcode, compressed, mut payload)) = message.take_if(|_| fin) {
            if compressed {
                let takeover = agreement.is_some_and(|agreement| agreement.server_takeover);
                let read = inflater.message(&payload, takeover);
                payload = read.expect("a message that can be decompressed");
            }
            said.messages.push(match opcode {
                1 => String::from_utf8(payload).expect("a text is UTF-8").into(),
                _ => payload.into(),
            });
        }
    }
    said.whole = bytes.is_empty();
    said
}

/// The first byte of a frame, its payload, and what comes behind it; `None` if it is not all there.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [first, second, rest @ ..] = bytes else {
        return None;
    };
    let (len, rest) = match second {
        0x80.. => panic!("a server does not mask"),
        126 => {
            let (len, rest) = rest.split_first_chunk()?;
            let len = u16::from_be_bytes(*len);
            assert!(len >= 126, "the shortest form");
            (u64::from(len), rest)
        }
        127 => {
            let (len, rest) = rest.split_first_chunk()?;
            let len = u64::from_be_bytes(*len);
            assert!(len > 0xFFFF && len >> 63 == 0, "the shortest form");
            (len, rest)
        }
        len => (u64::from(*len), rest),
    };
    let (payload, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    Some((*first, payload, rest))
}

fn close(payload: &[u8]) -> (u16, String) {
    match payload {
        [] => (1005, String::new()),
        [_] => panic!("half a close code"),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            assert!(
                matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999),
                "{code} may not be sent"
            );
            (code, String::from_utf8(reason.to_vec()).expect("a reason is UTF-8"))
        }
    }
}

/// The other side's decompressor, which shares no code with the server's.
#[derive(Default)]
pub struct Inflater(Option<Box<InflateState>>);

impl Inflater {
    /// What a message says up to its end or that of its stream; `None` if it is none.
    pub fn message(&mut self, compressed: &[u8], takeover: bool) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let state = self.0.get_or_insert_with(|| InflateState::new_boxed(DataFormat::Raw));
        let whole = [compressed, &[0, 0, 0xFF, 0xFF]].concat();
        let mut rest = &whole[..];
        let mut buffer = [0; 4096];
        loop {
            let step = inflate(state, rest, &mut buffer, MZFlush::Sync);
            rest = &rest[step.bytes_consumed..];
            out.extend_from_slice(&buffer[..step.bytes_written]);
            match step.status {
                Ok(MZStatus::Ok) if !rest.is_empty() || step.bytes_written > 0 => {}
                Ok(MZStatus::Ok | MZStatus::StreamEnd) | Err(MZError::Buf) => break,
                _ => return None,
            }
        }
        if !takeover {
            self.0 = None;
        }
        Some(out)
    }
}
